"""Collect finished batches in memory or write them to a folder, and report what is kept if a worker dies."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from analysis.distributed.backend import Backend, WorkersLostError
from analysis.heard import Heard
from analysis.sweep import ledger as ledgers
from analysis.sweep.batch_files import small, sound_file
from analysis.sweep.batches import Batches
from analysis.sweep.conditions import BASELINE, Condition, Plan, PromptSeed
from analysis.sweep.rows import OnRows
from audiolens.errors import InputError, StoppedError
from audiolens.files.atomic import put
from audiolens.files.integrity import read_json, sealed_json
from audiolens.sound import soundfiles

if TYPE_CHECKING:
    from audiolens import AudioLens

DEVICES = "devices.json"
SoundFormat = Literal["wav", "flac"]
_BYTES_PER_ROW = 400
"""Bytes of one stored copy of a table row. Every row is stored twice, in its batch and in the whole table."""


def check_sound(sound: Any, out: Any) -> None:
    """Raise an error for an unknown file format, or if sound is requested without a folder to write it to."""
    if sound is not None and (out is None or sound not in get_args(SoundFormat)):
        raise InputError(f"sound={sound!r}, out={out!r}: expected 'wav' or 'flac', and a folder to write it to.")


def is_among(clips: Sequence[PromptSeed], kinds: Sequence[str], condition: Condition, clip: PromptSeed) -> bool:
    """Return whether `clips` contains a clip and `kinds` the kind of its condition, for use in `keep_audio`."""
    return clip in clips and condition.labels["kind"] in kinds


def in_memory(
    measured: Iterator[tuple[int, Heard, pd.DataFrame]], todo: Plan, bar: Any, hand: OnRows
) -> tuple[pd.DataFrame, np.ndarray, dict[int, np.ndarray]]:
    """Return the table, the codes, and the kept sound by row number, once all batches are measured."""
    found, audio, labels = {}, {}, todo.labels
    for number, batch, frame in measured:
        audio.update({todo.starts[number] + place: sound for place, sound in batch.audio.items()})
        found[number] = frame, small(batch.codes)
        frame = frame.set_axis(range(todo.starts[number], todo.starts[number] + len(frame)))
        hand(pd.concat([labels.loc[frame.index], frame], axis=1))
        bar.update(len(frame))
    # Batches can finish in any order.
    frames, codes = zip(*(found[number] for number in sorted(found)), strict=True)
    table = pd.concat([labels, pd.concat(frames, ignore_index=True)], axis=1)
    return table, np.concatenate(codes), {row: audio[row] for row in sorted(audio)}


def into_folder(
    kept: Batches,
    measured: Iterator[tuple[int, Heard, pd.DataFrame]],
    todo: Plan,
    sound: SoundFormat | None,
    bar: Any,
    hand: OnRows,
) -> None:
    """Write each batch once it is measured, with its sound if requested, and hand its rows on."""
    labels = todo.labels
    for number, batch, frame in measured:
        start = todo.starts[number]
        rows = labels.iloc[start : start + len(frame)].reset_index(drop=True)
        rows = pd.concat([rows, frame], axis=1)
        sounds: dict[str, bytes] = {}
        if sound is not None:
            files: list[str | None] = [None] * len(rows)
            for place, clip in batch.audio.items():
                name = sound_file(start + place, len(todo), sound)
                sounds[name] = _file(clip, batch.sample_rate, sound)
                files[place] = name
            rows["file"] = files
        # With these numbers, a resumed sweep need not decode its baselines again.
        levels = batch.levels if todo.batches[number][0][0].name == BASELINE else None
        kept.keep(number, rows, batch.codes, sounds, levels)
        hand(rows.set_axis(range(start, start + len(rows))))
        bar.update(len(rows))


@contextmanager
def stops(out: Path | None, todo: Plan) -> Iterator[None]:
    """Raise `StoppedError`, which states what is kept, if a sweep ends because a worker died."""
    try:
        yield
    except (BrokenProcessPool, WorkersLostError) as error:
        nothing = "Nothing was kept: give a folder (out=) to keep what is finished."
        kept = nothing if out is None else ledgers.kept_of(out, len(todo.batches))
        raise StoppedError(
            f"a worker process died (killed, or out of memory: with fewer jobs, less is needed). {kept}"
        ) from error


def size_of(lens: AudioLens, todo: Plan, seconds: float, sound: SoundFormat | None) -> int:
    """Return the approximate size of a plan's results on disk, in bytes."""
    config = lens.config
    codes = config.n_codebooks * seconds * config.frame_rate * 2
    samples = config.sample_rate * seconds * config.channels * 2
    # FLAC compresses music to about 0.6 of its size.
    sound_bytes = {None: 0.0, "wav": 1.0, "flac": 0.6}[sound] * samples
    return round(len(todo) * (codes + sound_bytes + 2 * _BYTES_PER_ROW))


Measured = Iterator[tuple[int, Heard, pd.DataFrame]]


def with_devices(folder: Path, ear: Backend, measured: Measured) -> Measured:
    """Yield measured batches. Before, write how much the devices differ that they were generated on, if they do."""
    written: Mapping[str, float] = {}
    for one in measured:
        if ear.differences != written:
            written = dict(ear.differences)
            put(folder / DEVICES, sealed_json({"format": "audiolens.devices.1", **devices_of(folder), **written}))
        yield one


def devices_of(folder: Path) -> dict[str, float]:
    """Return what `with_devices` wrote: the share of unequal codes by device. It is empty if all devices were alike.

    Raises:
        DamagedError: if the file is damaged.
    """
    try:
        found = read_json(folder / DEVICES)
    except FileNotFoundError:
        return {}
    return {name: float(share) for name, share in found.items() if isinstance(share, float)}


def _file(audio: np.ndarray, sample_rate: int, sound: SoundFormat) -> bytes:
    buffer = io.BytesIO()
    soundfiles.write(buffer, audio, sample_rate, "FLAC" if sound == "flac" else "WAV")
    return buffer.getvalue()
