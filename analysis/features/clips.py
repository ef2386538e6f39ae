"""Clips with prompts and labels, on which the latents of a sparse autoencoder are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.features.described import FEWEST_CLIPS
from audiolens.checks import MOST_SEED, checked_amount, checked_count, checked_flags, in_order, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.etude.synth import CLIP_SECONDS

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

LEAST = 4
"""The fewest clips with a label, and without it, for which an AUC is computed."""
_ENCODED = 16
_SHORTEST = 1.0


@guarded
@dataclass(frozen=True, eq=False)
class Clips:
    """Clips to look at latents on, which should be none that the autoencoder was trained on.

    Attributes:
        prompts: the prompt of each clip; `None` means no prompt.
        codes: the codes of each clip.
        labels: what is known about each clip, as a column per label. Strings and Booleans are classes, and each class
            is an attribute: it applies, or another class does. Numbers are quantities with two attributes: "high" (the
            upper third, against the lower third) and "low". A missing value leaves the clip out.
    """

    prompts: Sequence[str | None]
    codes: Int[Tensor, "row codebook frame"]
    labels: pd.DataFrame | Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", in_order("prompts", self.prompts, "prompts"))
        if not isinstance(self.codes, Tensor) or self.codes.ndim != 3:
            raise InputTypeError(f"codes={shown(self.codes)}: expected codes, 'row codebook frame'.")
        if len(self.codes) != len(self.prompts):
            raise InputError(f"{len(self.prompts)} prompts for {len(self.codes)} clips: give one per clip.")
        try:
            table = pd.DataFrame({} if self.labels is None else dict(self.labels))
        except (TypeError, ValueError):
            raise InputTypeError(f"labels={shown(self.labels)}: expected a table with one row per clip.") from None
        if len(table.columns) and len(table) != len(self.codes):
            raise InputError(f"labels of {len(table)} rows for {len(self.codes)} clips: give one per clip.")
        object.__setattr__(self, "labels", table.reset_index(drop=True))
        object.__setattr__(self, "_truths", _attributes(table))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def truths(self) -> dict[str, np.ndarray]:
        """For each attribute, 1 for clips that have it, 0 for those that do not, and NaN for those left out."""
        return dict(vars(self)["_truths"])

    def __repr__(self) -> str:
        return f"Clips({len(self)} clips of {self.codes.shape[-1]} frames, {len(self.truths)} attributes)"


@guarded
def synthesised(
    lens: AudioLens, n: int = 400, *, seed: int = 9, seconds: float = CLIP_SECONDS, progress: bool = False
) -> Clips:
    """Return clips of the synthesiser that étude was trained on, with their captions and every label.

    The quantities (tempo, timbre, register, density, loudness) are "low" or "high" in the outer thirds of their range,
    and left out between. The other labels are mode, instrument, meter and tonic. All are drawn independently.

    Args:
        n: number of clips, at least 64.
        seed: étude's codec and decoder were trained on clips with seeds 1 and 2, so use others.
        seconds: length of each clip, at least 1.

    Raises:
        InputError: if a number is out of range.
    """
    from audiolens.etude import synth

    checked_flags(progress=progress)
    n = checked_count("n", n, FEWEST_CLIPS)
    seed = checked_count("seed", seed, 0, MOST_SEED)
    if not checked_amount("seconds", seconds) >= _SHORTEST:
        raise InputError(f"seconds={seconds}: expected at least {_SHORTEST:g}, so that every clip has notes.")
    codes = []
    with tqdm(total=n, desc="encoding", unit="clip", disable=not progress) as bar:
        for first in range(0, n, _ENCODED):
            numbers = range(first, min(first + _ENCODED, n))
            audio = np.stack([synth.labelled_clip(number, seed, seconds).audio for number in numbers])
            codes.append(lens.encode_audio(torch.from_numpy(audio)[:, None], synth.SAMPLE_RATE).cpu())
            bar.update(len(numbers))
    prompts, labels = labelled(n, seed)
    return Clips(prompts, torch.cat(codes), labels)


def labelled(n: int, seed: int) -> tuple[tuple[str, ...], pd.DataFrame]:
    """Return the captions and the labels of the synthesiser's clips, without their sound."""
    from audiolens.etude import synth
    from audiolens.etude.attributes import CONCEPTS, RANGES

    captions, rows = [], []
    for number in range(n):
        attributes, caption, _ = synth.label(number, seed)
        row: dict[str, str | None] = {"meter": str(attributes.meter), "tonic": str(attributes.tonic)}
        for concept, name in CONCEPTS.items():
            level = attributes.level(concept)
            # Between the outer thirds of its range, a clip is neither low nor high.
            row[concept] = None if name in RANGES and level == "mid" else level
        captions.append(caption.text)
        rows.append(row)
    return tuple(captions), pd.DataFrame(rows)


def _attributes(labels: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the attributes of labels.

    Raises:
        InputError: if a label has one class, or a class has too few clips.
    """
    found: dict[str, np.ndarray] = {}
    for name in labels:
        column = labels[name]
        known = column.notna().to_numpy()
        values = column[known]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = column.to_numpy(dtype=float, na_value=np.nan)
            low, high = np.nanquantile(numbers, [1 / 3, 2 / 3]) if known.any() else (np.nan, np.nan)
            if not low < high:
                raise InputError(f"labels: {name!s} is the same number in most clips: expected a quantity that varies.")
            outer = np.where(numbers >= high, 1.0, np.where(numbers <= low, 0.0, np.nan))
            if (fewest := min((outer == 1).sum(), (outer == 0).sum())) < LEAST:
                raise InputError(
                    f"labels: {name!s} is high or low in {fewest} clips: expected at least {LEAST} of either."
                )
            found |= {f"{name}: high": outer, f"{name}: low": 1 - outer}
            continue
        texts = values.astype(str)
        counts = texts.value_counts()
        if len(counts) < 2:
            only = f"only {shown(counts.index[0])}" if len(counts) else "no value"
            raise InputError(f"labels: {name!s} has {only}: expected at least two classes.")
        if counts.min() < LEAST:
            raise InputError(
                f"labels: {name!s} is {shown(counts.idxmin())} in {counts.min()} clips: expected at least {LEAST} of "
                "each class."
            )
        for kind in sorted(counts.index):
            truth = np.full(len(column), np.nan)
            truth[known] = (texts == kind).to_numpy(dtype=float)
            found[f"{name}: {kind}"] = truth
    return found
