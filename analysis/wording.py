"""Numbers in sentences: with the singular or plural of their noun, and rounded to what can be read from them."""

from __future__ import annotations

from typing import Any

import numpy as np


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun, such as "1 study" or "2 studies". The plural is that with "s" by default."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def clips_of(prompts: int, seeds: int, kind: str = "prompt") -> str:
    """Return the size of a set of clips, such as "8 prompts x 4 seeds"."""
    return f"{counted(prompts, kind)} x {counted(seeds, 'seed')}"


def rounded(value: Any, missing: str = "not measured") -> str:
    """Return a number with three digits, or with all digits before its decimal point if it has more of them."""
    if not np.isfinite(value):
        return missing
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def change(share: float) -> str:
    """Return a relative change as text, such as "+75%"."""
    return f"{share:+.0%}".replace("-", "−") if np.isfinite(share) else "not measurable"


def interval(low: float, high: float) -> str:
    """Return an interval of relative changes as text, such as "[42, 100]" for 42% to 100%."""
    if not np.isfinite([low, high]).all():
        # An interval over prompts needs two of them.
        return "[no interval]"
    return f"[{100 * low:.0f}, {100 * high:.0f}]".replace("-", "−")
