"""Steering that looks at what it does: gates that decide at every step, and strengths found from measured clips."""
