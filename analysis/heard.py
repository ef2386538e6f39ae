"""Measure a batch of codes: the sound of its clips, their measures, and the numbers that decide whether they failed.

Every process decodes and measures in the same way and on one thread, so results do not depend on which process computed
them. `analysis.listening` calls this module in the calling process, and `analysis.workers` in other processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from audiolens import measure
from audiolens.measure.clips import read
from audiolens.measure.failure import Levels, onset_counts
from audiolens.measure.table import table_of_clips

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.tracing.generation import Generation

CHUNK = 32
"""Number of clips decoded at a time on an accelerator. On a CPU, decoding one clip at a time takes about half as long
per clip, because several clips do not fit in its cache."""


@dataclass(frozen=True)
class Wanted:
    """What to return about a batch besides its codes and levels.

    Attributes:
        measures: names from `audiolens.measure.MEASURES`. With no name, only codes and levels are returned.
        sound: the rows whose sound is returned. Sound is by far the largest part of a batch.
        made: whether to return what `lens.generate` returned.
    """

    measures: tuple[str, ...] = ()
    sound: tuple[int, ...] = ()
    made: bool = False


@dataclass(frozen=True)
class Heard:
    """A batch of codes and its measures, with one entry per clip, in the order of the batch.

    Attributes:
        frame: the measures.
        levels: the numbers that are divided by those of the baseline.
        onsets: the number of onsets of each clip, unless no measure was wanted.
        audio: the sound of some rows, by row.
        made: what `lens.generate` returned, if it was wanted.
        at_once: the number of rows that fitted in memory, if a worker had to divide the batch.
    """

    codes: Int[np.ndarray, "row codebook frame"]
    frame: pd.DataFrame
    levels: Levels
    onsets: Int[np.ndarray, " row"] | None
    audio: Mapping[int, Float[np.ndarray, "channel sample"]]
    sample_rate: int
    made: Generation | None = None
    at_once: int | None = None


def hear(
    codes: Int[np.ndarray, "row codebook frame"],
    audio: Float[np.ndarray, "row channel sample"],
    sample_rate: int,
    wanted: Wanted,
    made: Generation | None = None,
) -> Heard:
    """Measure a batch whose codes were decoded to `audio`."""
    # A codec can produce NaN or infinity on codes far from its training data. Such a clip is measured as silence, not
    # rejected.
    audio = np.where(np.isfinite(audio).all(axis=(1, 2), keepdims=True), audio, 0.0).astype(np.float32)
    # One reading serves the table and the onset counts, because a clip keeps the onsets that were computed for it.
    clips = read(audio, sample_rate)[0]
    return Heard(
        codes=codes,
        frame=table_of_clips(clips, wanted.measures) if wanted.measures else pd.DataFrame(),
        levels=Levels.of(clips, codes),
        onsets=onset_counts(clips) if wanted.measures else None,
        audio={row: audio[row] for row in wanted.sound},
        sample_rate=sample_rate,
        made=made if wanted.made else None,
        at_once=None if made is None else made.settings.get("at_once"),
    )


def sound_of(
    lens: AudioLens, codes: Int[torch.Tensor, "row codebook frame"]
) -> Float[np.ndarray, "row channel sample"]:
    """Decode a batch where the model is."""
    with one_thread(), torch.no_grad():
        parts = codes.split(1 if lens.device.type == "cpu" else CHUNK)
        return torch.cat([lens.decode_codes(part) for part in parts]).detach().float().cpu().numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, because the number of threads changes the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def warm_up(measures: Sequence[str] | None = None) -> None:
    """Measure a clip of noise once, so that lazy imports and compilation happen now."""
    measure.table(np.random.default_rng(0).normal(0, 0.1, (1, 1, 16_000)), 16_000, measures=measures)
