"""A labelled data set of prompts or sounds, with one label per row and groups of rows that must stay together.

The rows come from one of three sources: prompts (with clips generated for them, or given codes), your own sound
(arrays, or a folder and a CSV), or the synthesiser whose clips étude was trained on. Synthesised data sets follow
SynTheory (Wei et al., ISMIR 2024). Probing and PCA use these data sets. This module does not read activations. It uses
a model only to generate clips and to encode sound.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.probing.labels import Task, checked_groups, checked_labels, groups_of, labels_text, same, same_codes
from analysis.probing.table import numbers_or_text, read_columns
from audiolens.checks import (
    MOST_SEED,
    as_array,
    checked_amount,
    checked_count,
    checked_flags,
    checked_text,
    in_order,
    shown,
)
from audiolens.door import guarded
from audiolens.errors import InputError, shortened
from audiolens.etude.labels import attribute_of
from audiolens.etude.synth import CLIP_SECONDS
from audiolens.groups import takes
from audiolens.measure.clips import as_float
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

_ENCODED = 16
"""Number of clips encoded at a time."""
_SEARCHED = 100
"""Maximum number of synthesiser clips to examine for each clip that is kept."""


@guarded
@dataclass(frozen=True, eq=False)
class Dataset:
    """The rows of a data set, with their labels.

    Attributes:
        labels: one label per row: strings or Booleans (classes), or numbers (a quantity).
        prompts: one prompt per row; `None` means no prompt.
        codes: the music that the model reads in each row. With `None`, the model reads only the start token, so the
            text is the only source of information.
        audio: the sound that the codes were made from, "row sample", for the mel baseline. With `None`, the sound is
            decoded from the codes.
        sample_rate: sample rate of `audio`, in hertz.
        groups: the group of each row. Rows of one group are never on both sides of a split. By default, rows that share
            a prompt or a clip form a group. A prompt or clip that all rows share is ignored.
        name, unit: name and unit of the label, for tables and figures.
        grouped: whether it is known which rows belong together. By default, this is true if groups or prompts were
            given.

    Raises:
        InputError: if lengths differ, if a label is missing, or if `groups` would put one prompt or clip on both sides
            of a split.
    """

    labels: np.ndarray
    prompts: tuple[str | None, ...]
    codes: Int[Tensor, "row codebook frame"] | None = None
    audio: Float[np.ndarray, "row sample"] | None = None
    sample_rate: int | None = None
    groups: np.ndarray | None = None
    name: str = "label"
    unit: str = ""
    grouped: bool | None = None

    def __post_init__(self) -> None:
        checked_text("name", self.name)
        checked_text("unit", self.unit)
        object.__setattr__(self, "prompts", in_order("prompts", self.prompts, "prompts"))
        object.__setattr__(self, "labels", checked_labels(self.labels, len(self.prompts)))
        for what, given in (("codes", self.codes), ("audio", self.audio)):
            if given is not None and len(given) != len(self.prompts):
                raise InputError(
                    f"{what} of {len(given)} rows for {len(self.prompts)} prompts: give one row per prompt."
                )
        if self.grouped is None:
            known = self.groups is not None or any(prompt is not None for prompt in self.prompts)
            object.__setattr__(self, "grouped", known)
        ties = [same(self.prompts), *([] if self.codes is None else [same_codes(self.codes)])]
        object.__setattr__(self, "groups", checked_groups(self.groups, len(self.prompts), ties))

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        sound = "text alone" if self.codes is None else f"{self.codes.shape[-1]} frames"
        groups = len(np.unique(np.asarray(self.groups)))
        return f"Dataset({self.name}: {len(self)} rows in {groups} groups, {sound}, {labels_text(self.labels)})"

    @classmethod
    @takes("sampling", Sampling, keeps="all")
    def from_prompts(
        cls,
        lens: AudioLens,
        prompts: Sequence[str | None],
        labels: Sequence[Any],
        *,
        codes: Int[Tensor, "row codebook frame"] | None = None,
        seconds: float = 2.0,
        seeds: Sequence[int] | None = None,
        guidance_scale: float = 3.0,
        groups: Sequence[Any] | None = None,
        batch_size: int = 32,
        name: str = "label",
        progress: bool = False,
        sampling: Sampling | None = None,
    ) -> Dataset:
        """Return a data set of prompts, with clips generated for them or with given `codes`.

        `codes` has one row per prompt, or one row for all prompts. Generated codes reflect what the prompt asked for,
        so every block can read the concept from the earlier music. If all rows or both poles share the same codes, the
        text is the only source of information. `sampling` is a `Sampling` that replaces `guidance_scale` and, if it
        contains a clip length, `seconds`. Its temperature and top_k also apply.
        """
        checked_flags(progress=progress)
        listed = in_order("prompts", prompts, "prompts")
        checked = checked_labels(labels, len(listed))
        if codes is None:
            numbers = list(range(len(listed))) if seeds is None else list(in_order("seeds", seeds, "seeds"))
            drawing = replace(sampling or Sampling(guidance_scale), seconds=seconds)
            codes = lens.generate(
                listed, seeds=numbers, sampling=drawing, decode=False, batch_size=batch_size, progress=progress
            ).codes.cpu()
        elif codes.ndim == 3 and len(codes) == 1:
            codes = codes.expand(len(listed), -1, -1)
        return cls(checked, listed, codes, groups=groups_of(groups, len(listed)), name=name)

    @classmethod
    def from_arrays(
        cls,
        lens: AudioLens,
        sounds: Sequence[Any],
        sample_rate: int,
        labels: Sequence[Any],
        *,
        prompts: Sequence[str | None] | None = None,
        groups: Sequence[Any] | None = None,
        seconds: float | None = None,
        name: str = "label",
        unit: str = "",
    ) -> Dataset:
        """Return a data set of your own sounds, which must all have the same sample rate.

        Each sound is "sample" or "channel sample", as floats or as int16 or int32 PCM.

        Args:
            groups: the source of each sound (piece, artist, album). Without groups, excerpts of one piece could be on
                both sides of a split and reveal each other's label.
            seconds: how much of each sound to use, from its beginning (default: the length of the shortest sound).

        Raises:
            InputError: if the labels do not match the sounds, or a sound is shorter than `seconds`.
        """
        if seconds is not None:
            seconds = checked_amount("seconds", seconds, above=0)
        given = in_order("sounds", sounds, "sounds")
        if not given:
            raise InputError("sounds is empty: give at least two sounds per label.")
        known = checked_labels(labels, len(given))
        waves = [_mono(sound, number) for number, sound in enumerate(given)]
        shortest = min(len(wave) for wave in waves)
        samples = shortest if seconds is None else round(seconds * sample_rate)
        if shortest < samples or not samples:
            number = int(np.argmin([len(wave) for wave in waves]))
            raise InputError(
                f"sound {number} lasts {shortest / sample_rate:g} s, less than seconds={seconds}: leave it out, or "
                "give a smaller value."
            )
        audio = np.stack([wave[:samples] for wave in waves])
        codes = encoded(lens, audio, sample_rate)
        texts = (None,) * len(waves) if prompts is None else in_order("prompts", prompts, "prompts")
        return cls(known, texts, codes, audio, sample_rate, groups_of(groups, len(waves)), name, unit)

    @classmethod
    def from_folder(
        cls,
        lens: AudioLens,
        folder: str | os.PathLike[str],
        table: str | os.PathLike[str],
        label: str,
        *,
        file: str = "file",
        group: str | None = None,
        prompt: str | None = None,
        seconds: float | None = None,
    ) -> Dataset:
        """Return a data set of the sound files in a folder, labelled by a CSV with one row per file.

        Every cell is read as text. Labels are converted to numbers only if all of them are numbers and no two different
        labels would become equal. For example, if one label is "01", all labels stay text.

        Args:
            table: the CSV. Its column `file` gives the path of each file relative to `folder`.
            label, group, prompt: names of the columns with the label, the group (piece or artist) whose rows must stay
                together, and the text given to the model with the sound. By default there is no text; a blank cell
                also means no text.

        Raises:
            InputError: if a file or column is missing, if a line lacks its file, label or group, if the sample rates
                differ, or if a sound is shorter than `seconds`.
        """
        from audiolens.sound import soundfiles

        columns = read_columns(Path(table), filled=[file, label, *filter(None, [group])], blank=[prompt])
        sounds, rates = [], set()
        for name in columns[file]:
            try:
                sound, rate = soundfiles.read(Path(folder) / name)
            except InputError as error:
                raise InputError(f"{error} It is named in {table}.") from None
            sounds.append(sound)
            rates.add(rate)
        if len(rates) != 1:
            raise InputError(
                f"the sounds have {len(rates)} sample rates ({shortened(map(str, sorted(rates)))}): resample them to "
                "one."
            )
        return cls.from_arrays(
            lens,
            sounds,
            rates.pop(),
            numbers_or_text(columns[label]).tolist(),
            prompts=None if prompt is None else [text or None for text in columns[prompt]],
            groups=None if group is None else columns[group],
            seconds=seconds,
            name=label,
        )

    @classmethod
    def from_synth(
        cls,
        lens: AudioLens,
        concept: str,
        n: int = 200,
        *,
        task: Task = "classification",
        seed: int = 0,
        seconds: float = CLIP_SECONDS,
    ) -> Dataset:
        """Return `n` synthesised clips, labelled by `concept`. All other properties are independent of the label.

        The concepts tempo, timbre, register, density and loudness have the classes "low" and "high", which are the
        outer thirds of the range. For regression, the label of a clip is its position in that range, from 0 to 1. The
        other concepts are mode, instrument, tonic (pitch class) and meter. Classes have equal numbers of clips. No
        prompt is given, so that the sound is the only source of information.

        étude's codec and decoder were trained on clips with seeds 1 and 2, so use other seeds.

        Raises:
            InputError: if the synthesiser does not have the concept, if the task or a number is invalid, or if `n` is
                too small.
        """
        from audiolens.etude import synth

        n = checked_count("n", n, 2)
        seed = checked_count("seed", seed, 0, MOST_SEED)
        seconds = checked_amount("seconds", seconds, above=0)
        if task not in get_args(Task):
            raise InputError(f"task={shown(task)}: expected {' or '.join(map(repr, get_args(Task)))}.")
        chosen, labels = _drawn(concept, n, task, seed)
        audio = np.stack([synth.labelled_clip(index, seed, seconds).audio for index in chosen])
        codes = encoded(lens, audio, synth.SAMPLE_RATE)
        unit = "share of the range" if task == "regression" else ""
        return cls(
            np.array(labels), (None,) * n, codes, audio, synth.SAMPLE_RATE, name=concept, unit=unit, grouped=True
        )


def encoded(
    lens: AudioLens, audio: Float[np.ndarray, "row sample"], sample_rate: int
) -> Int[Tensor, "row codebook frame"]:
    """Return the codes of sounds, encoding a few sounds at a time."""
    parts = [audio[start : start + _ENCODED] for start in range(0, len(audio), _ENCODED)]
    return torch.cat([lens.encode_audio(torch.from_numpy(part)[:, None], sample_rate).cpu() for part in parts])


def _drawn(concept: str, n: int, task: Task, seed: int) -> tuple[list[int], list[Any]]:
    """Return the indices and labels of synthesiser clips, chosen by label alone, with equal numbers of each class."""
    from audiolens.etude import synth
    from audiolens.etude.attributes import INSTRUMENTS, METERS, MODES, RANGES, TONICS

    attribute = attribute_of(concept, quantity=task == "regression")
    if task == "regression":
        span = RANGES[attribute]
        drawn = [synth.label(index, seed)[0] for index in range(n)]
        return list(range(n)), [span.position(getattr(one, attribute)) for one in drawn]
    kinds = {"instrument": INSTRUMENTS, "mode": MODES, "tonic": TONICS, "meter": METERS}
    classes: tuple[Any, ...] = ("low", "high") if attribute in RANGES else kinds[attribute]
    if n < 2 * len(classes):
        raise InputError(f"n={n}: {concept} has {len(classes)} classes, and each needs at least two clips.")
    wanted = {name: n // len(classes) + (number < n % len(classes)) for number, name in enumerate(classes)}
    chosen, labels = [], []
    for index in range(_SEARCHED * n):
        attributes = synth.label(index, seed)[0]
        value = getattr(attributes, attribute)
        kind = RANGES[attribute].level(value) if attribute in RANGES else value
        if wanted.get(kind, 0):
            wanted[kind] -= 1
            chosen.append(index)
            labels.append(kind)
        if len(chosen) == n:
            break
    return chosen, labels


def _mono(sound: Any, number: int) -> Float[np.ndarray, " sample"]:
    samples = sound if isinstance(sound, np.ndarray | Tensor) else as_array(f"sound {number}", sound)
    wave = as_float(samples, f"sound {number}")
    if wave.ndim not in (1, 2) or not wave.size:
        raise InputError(f"sound {number} of shape {wave.shape}: expected 'sample' or 'channel sample'.")
    if not np.isfinite(wave).all():
        raise InputError(f"sound {number} contains NaN or infinite samples: expected finite numbers.")
    return wave if wave.ndim == 1 else wave.mean(0)
