"""How far listeners agree: Krippendorff's alpha.

Alpha is 1 - observed / expected disagreement over all pairs of answers to the same item (Krippendorff 2011, "Computing
Krippendorff's Alpha-Reliability"). It is 1 if all agree, 0 if they agree as often as answers drawn from all answers
would, and below 0 if they agree less often. Items with fewer than two answers say nothing about agreement. If only one
answer was ever given, to whatever item, alpha is undefined (0 / 0): people who do not listen can also answer so.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from audiolens.errors import InputError


def alpha(values: Float[np.ndarray, "listener item"], level: Literal["nominal", "interval"] = "nominal") -> float:
    """Return Krippendorff's alpha of answers, where NaN marks a missing one.

    It is NaN, which means undefined, if all answers are the same or no item has two.

    Args:
        level: "nominal" counts two answers as different or not, "interval" by their squared difference.
    """
    if level not in ("nominal", "interval"):
        raise InputError(f"level={level!r}: expected nominal or interval.")
    there = np.isfinite(values)
    paired = there.sum(0) > 1
    kept = [values[there[:, item], item] for item in np.flatnonzero(paired)]
    everything = np.concatenate(kept) if kept else np.empty(0)
    observed = sum(_disagreement(one, level) / (len(one) - 1) for one in kept)
    expected = _disagreement(everything, level) / max(len(everything) - 1, 1)
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _disagreement(answers: np.ndarray, level: str) -> float:
    """Return the sum of the differences between all ordered pairs of answers."""
    n = len(answers)
    if level == "interval":
        # Without the shift, the difference of two large sums would leave a rounding error where all are the same.
        own = answers - answers[:1]
        return float(2 * (n * (own**2).sum() - own.sum() ** 2))
    _, counts = np.unique(answers, return_counts=True)
    return float(n**2 - (counts**2).sum())


def in_words(found: float) -> str:
    """Return alpha as text."""
    return f"alpha {found:.2f}" if np.isfinite(found) else "alpha undefined"
