"""State how much of a tempo change is a change in beat tempo.

Such a statement is needed because the interval between onsets also depends on the number of notes per beat.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.wording import change, interval

INTERVAL, BEAT = "tempo_ioi", "tempo"


def by_the_beat(measured: str, cross: pd.DataFrame, strength: float) -> list[str]:
    """Return a sentence that reports the change in beat tempo alongside a finding based on intervals between onsets.

    The sentence is returned in a list, which is empty for other measures. `cross` contains the effect of the chosen
    steering on every measure (`test_result.cross_effects`). Music with more notes per beat has shorter intervals at the
    same beat tempo.
    """
    if measured != INTERVAL:
        return []
    beats = cross[cross["measure"] == BEAT]
    changes = [_change(beats[np.isclose(beats["strength"], sign * strength)]) for sign in (1, -1)]
    known = [change for change in changes if change]
    stated = f"measured by the beat, it changed by {' and '.join(known)}" if known else "the beat was not measured"
    return [f"Tempo is measured by the interval between onsets, which includes notes between the beats; {stated}."]


def _change(row: pd.DataFrame) -> str:
    """Return one effect as text, such as "+41% [30, 55]", or an empty string if the effect could not be measured."""
    if row.empty or not np.isfinite(row["effect"].iloc[0]):
        return ""
    effect, low, high = (float(row[name].iloc[0]) for name in ("effect", "low", "high"))
    return f"{change(effect)} {interval(low, high)}"
