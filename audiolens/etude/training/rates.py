"""The learning-rate schedule of codec and decoder: linear warm-up, then cosine decay to a fraction of the peak."""

from __future__ import annotations

import math


def warm_cosine(step: int, total: int, peak: float, warmup: int, floor: float) -> float:
    """The learning rate at `step` of `total`; `floor` is the final rate as a fraction of `peak`."""
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total)))
