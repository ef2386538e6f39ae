"""Words: what a page says of a study's numbers, in sentences that name how they came about."""

from __future__ import annotations

from typing import Any

import numpy as np


def number(value: Any, form: str, missing: str = "not measured") -> str:
    """A number in words, with a real minus."""
    return format(value, form).replace("-", "−") if np.isfinite(value) else missing
