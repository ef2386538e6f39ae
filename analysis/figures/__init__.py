"""Shared parts of figures (colours, styles, captions, heat maps and spectrograms), and the figures of a study."""
