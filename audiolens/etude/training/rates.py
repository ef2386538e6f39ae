"""The learning rate of every training here: a linear warm-up under half a cosine that ends at a share of the peak."""

from __future__ import annotations

import math


def warm_cosine(step: int, total: int, peak: float, warmup: int, floor: float) -> float:
    """The rate at `step` of `total`; `floor` is the share of `peak` that is left at the end."""
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total)))
