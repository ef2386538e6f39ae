"""The learning-rate schedule of codec and decoder: linear warm-up, then a cosine decay to a share of the peak."""

from __future__ import annotations

import math


def warm_cosine(step: int, total: int, peak: float, warmup: int, floor: float) -> float:
    """The learning rate at `step` of `total`; `floor` is the final rate as a share of `peak`."""
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total)))
