"""Measure many clips with many measures, and collect the results in one table, as sweeps and studies do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolens.checks import MOST_JOBS, checked_count, in_order, shown
from audiolens.door import guarded
from audiolens.errors import InputError, nearest
from audiolens.measure.beats import beat_this_tempo, require
from audiolens.measure.clips import Audio, Clip, is_path, of_file, read
from audiolens.measure.pitch import key_tonic, major_minor, register_hz
from audiolens.measure.rhythm import ambiguity, beat_tempo, clarity_of_pulse, ioi_tempo, octave_tempo, rate_of_onsets
from audiolens.measure.timbre import centroid_hz, level_dbfs, ltas_centroid_hz, rolloff_hz
from audiolens.model.spans import checked_span
from audiolens.sound.soundfiles import SoundPath, Span

if TYPE_CHECKING:
    import pandas as pd

MEASURES: Mapping[str, Callable[[Clip], float]] = MappingProxyType(
    {
        "tempo": beat_tempo,
        "tempo_ioi": ioi_tempo,
        "tempo_ambiguity": ambiguity,
        "tempo_octave": octave_tempo,
        "onset_rate": rate_of_onsets,
        "pulse_clarity": clarity_of_pulse,
        "brightness": centroid_hz,
        "ltas_centroid": ltas_centroid_hz,
        "rolloff": rolloff_hz,
        "loudness": level_dbfs,
        "pitch": register_hz,
        "pitch_class": key_tonic,
        "mode": major_minor,
    }
)
"""Maps each column of `table` to the function that measures one clip."""
EXTRA_MEASURES: Mapping[str, Callable[[Clip], float]] = MappingProxyType({"tempo_beat_this": beat_this_tempo})
"""The same mapping for measures that need an extra package and are computed only on request."""
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "tempo": "BPM",
        "tempo_ioi": "BPM",
        "tempo_ambiguity": "",
        "tempo_octave": "BPM",
        "onset_rate": "onsets/s",
        "pulse_clarity": "",
        "brightness": "Hz",
        "ltas_centroid": "Hz",
        "rolloff": "Hz",
        "loudness": "dBFS",
        "pitch": "Hz",
        "pitch_class": "semitones above C",
        "mode": "minor to major",
        "tempo_beat_this": "BPM",
    }
)
"""Maps each column of `table` to its unit, for axes and captions."""


@guarded
def table(
    audio: Audio, sample_rate: float | None = None, measures: Sequence[str] | None = None, n_jobs: int = 1
) -> pd.DataFrame:
    """Measure every clip: one row per clip in order, one column per measure.

    Args:
        audio: [row, channel, sample] (or one clip), a sound file, what `lens.generate` returned, or a list of these;
            clips can differ in length.
        sample_rate: sample rate of all arrays, in Hz; files have their own.
        measures: names from `MEASURES` or `EXTRA_MEASURES`; all of `MEASURES` by default. Measures share spectra and
            onsets.
        n_jobs: the number of processes, or -1 for one per core, which does not affect the results. Processes are
            started once (about 2 s) and reused.

    Raises:
        InputError: if a clip cannot be measured (`table_of_files` instead continues with the other files).
    """
    import pandas as pd

    names = checked_measures(measures)
    listed = audio if isinstance(audio, list | tuple) else [audio]
    if listed and all(is_path(part) for part in listed) and sample_rate is None:
        # Each process opens its own files, because sending paths to a process is faster than sending audio.
        rows = spread(_measure, list(listed), n_jobs, names)
    else:
        rows = spread(_measure, read(audio, sample_rate)[0], n_jobs, names)
    return pd.DataFrame(rows, columns=names, dtype=float)


def table_of_clips(clips: Sequence[Clip], measures: Sequence[str]) -> pd.DataFrame:
    """Return `table` of clips that were already read. What it computes of a clip stays with the clip (`once`)."""
    import pandas as pd

    names = checked_measures(measures)
    return pd.DataFrame(_measure(list(clips), names), columns=names, dtype=float)


@guarded
def table_of_files(
    paths: Sequence[SoundPath], measures: Sequence[str] | None = None, n_jobs: int = 1, seconds: Span | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Measure sound files, and record why any file could not be measured; see `audiolens measure`.

    Args:
        paths, measures, n_jobs: as for `table`.
        seconds: the part (from, to) of every file to measure, in seconds; by default the whole file.

    Returns:
        A table with one row per measured file, in order, whose first columns are `file` and `seconds`, and a dict that
        maps each file that could not be measured to the reason.
    """
    import pandas as pd

    names = checked_measures(measures)
    span = None if seconds is None else checked_span(seconds)
    done = spread(_measure_or_say, list(paths), n_jobs, names, span)
    refused = {str(path): found for path, found in zip(paths, done, strict=True) if isinstance(found, str)}
    rows = [[str(path), *found] for path, found in zip(paths, done, strict=True) if not isinstance(found, str)]
    return pd.DataFrame(rows, columns=["file", "seconds", *names]), refused


def checked_measures(measures: Sequence[str] | None) -> list[str]:
    """Return the names of measures, each once, by default those in `MEASURES`.

    Raises:
        InputError: if a name is unknown; the message lists the known names.
    """
    if measures is None:
        return list(MEASURES)
    names = [] if isinstance(measures, str) else list(measures)
    if not names:
        raise InputError(f"measures={shown(measures)}: expected a list of names, such as ['tempo_ioi', 'brightness'].")
    return [*dict.fromkeys(known_measure("measures", name, [*MEASURES, *EXTRA_MEASURES]) for name in names)]


def known_measure(argument: str, name: Any, known: Sequence[str] = tuple(MEASURES)) -> str:
    """Return the name of a measure that was given as an argument (or option).

    Raises:
        InputError: if it is not one of those known; the message lists them.
    """
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"{argument}={shown(name)}: no such measure.{nearest(str(name), known)} Choose from: {', '.join(known)}."
        )
    return name


@guarded
def refuse_lacking(measures: Sequence[str]) -> None:
    """Raise an error, before any clip is generated, if one of the measures cannot be computed.

    Raises:
        MissingPackageError: if "tempo_beat_this" is requested and the package beat_this is not installed.
        InputError: if "tempo_beat_this" is requested and the weights of Beat This cannot be loaded, or if a file in the
            working directory would be opened instead of these weights.
    """
    if "tempo_beat_this" in in_order("measures", measures, "names"):
        require()


def spread(function: Callable[..., list[Any]], items: list[Any], n_jobs: int, *arguments: Any) -> list[Any]:
    """Call `function(part, *arguments)` on parts of `items` in several processes; return all results in order."""
    n_jobs = -1 if n_jobs == -1 else checked_count("n_jobs", n_jobs, 1, MOST_JOBS)
    if n_jobs == 1 or len(items) < 2:
        return function(items, *arguments)
    from joblib import Parallel, delayed, effective_n_jobs

    n_parts = min(4 * effective_n_jobs(n_jobs), len(items))
    parts = [items[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(items)), n_parts)]
    done = Parallel(n_jobs=n_jobs)(delayed(function)(part, *arguments) for part in parts)
    return [row for part in done for row in part or ()]


def _measure(clips: list[Clip | SoundPath], names: list[str]) -> list[list[float]]:
    return [_measured(clip if isinstance(clip, Clip) else of_file(clip), names) for clip in clips]


def _measure_or_say(paths: list[SoundPath], names: list[str], seconds: Span | None) -> list[list[float] | str]:
    found: list[list[float] | str] = []
    for path in paths:
        try:
            clip = of_file(path, seconds)
            found.append([clip.seconds, *_measured(clip, names)])
        except InputError as error:
            reason = str(error)
            found.append(reason if str(path) in reason else f"{path}: {reason}")
    return found


def _measured(clip: Clip, names: list[str]) -> list[float]:
    measures = {**MEASURES, **EXTRA_MEASURES}
    return [measures[name](clip) for name in names]
