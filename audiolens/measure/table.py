"""Many clips, many measures, one frame: what sweeps and studies call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolens.measure.clips import Clip, each
from audiolens.measure.pitch import major_minor, register_hz
from audiolens.measure.rhythm import beat_tempo, clarity_of_pulse, ioi_tempo, rate_of_onsets
from audiolens.measure.timbre import centroid_hz, level_dbfs

if TYPE_CHECKING:
    import pandas as pd

MEASURES: Mapping[str, Callable[[Clip], float]] = MappingProxyType(
    {
        "tempo": beat_tempo,
        "tempo_ioi": ioi_tempo,
        "onset_rate": rate_of_onsets,
        "pulse_clarity": clarity_of_pulse,
        "brightness": centroid_hz,
        "loudness": level_dbfs,
        "pitch": register_hz,
        "mode": major_minor,
    }
)
"""Column of `table` -> the measure of one clip."""
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "tempo": "BPM",
        "tempo_ioi": "BPM",
        "onset_rate": "onsets/s",
        "pulse_clarity": "",
        "brightness": "Hz",
        "loudness": "dBFS",
        "pitch": "Hz",
        "mode": "minor to major",
    }
)
"""Column of `table` -> its unit, for axes and captions."""


def table(audio: Any, sample_rate: float, measures: Sequence[str] | None = None, n_jobs: int = 1) -> pd.DataFrame:
    """Measure every clip: one row per clip in order, one column per measure.

    Args:
        audio: [row, channel, sample] (or one clip), or a list of clips that may differ in length.
        sample_rate: of all clips, in Hz.
        measures: names from `MEASURES`; all of them by default. Spectra and onsets are shared between them.
        n_jobs: processes, -1 for one per core. The numbers do not depend on it. They start once (about 2 s) and stay.
    """
    import pandas as pd

    names = list(MEASURES if measures is None else measures)
    if isinstance(measures, str) or any(name not in MEASURES for name in names):
        raise ValueError(f"measures are {measures!r}; expected a list of names out of {', '.join(MEASURES)}")
    clips = list(each(audio, sample_rate))
    if n_jobs == 1 or len(clips) < 2:
        rows = _measure(clips, names)
    else:
        from joblib import Parallel, delayed, effective_n_jobs

        n_parts = min(4 * effective_n_jobs(n_jobs), len(clips))
        parts = [clips[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(clips)), n_parts)]
        done = Parallel(n_jobs=n_jobs)(delayed(_measure)(part, names) for part in parts)
        rows = [row for part in done for row in part or ()]
    return pd.DataFrame(rows, columns=names, dtype=float)


def _measure(clips: list[Clip], names: list[str]) -> list[list[float]]:
    return [[MEASURES[name](clip) for name in names] for clip in clips]
