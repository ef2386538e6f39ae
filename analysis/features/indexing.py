"""The feature index: for every latent, the seconds at which it is most active, its words and its attributes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from analysis.features import matching
from analysis.features.clips import Clips
from analysis.features.described import OWN_AUC
from analysis.features.sae import SAE
from analysis.features.source import activations
from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from audiolens import ranking
from audiolens.checks import checked_amount, checked_count, checked_flags, checked_seed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model import text
from audiolens.model.sites import Site
from audiolens.sound.codec import checked_codes
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

    from audiolens.lens import AudioLens

_WORD = re.compile(r"[^\W\d_]{3,}")
_FEWEST = 5
"""The fewest clips whose prompts have a word, and the fewest without it, for which it is compared with latents."""
_LIKELY = 0.65
"""The least AUC of a word that is listed."""
_WORDS = 3


@guarded
@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """What the latents of a sparse autoencoder do on clips.

    Attributes:
        sae: the autoencoder.
        clips: the clips.
        pooled: the mean of every latent over the steps of every clip, without the tail.
        latents: one row per latent: `rate` (share of steps at which it is active), `mean` (when active), `peak`, the
            `attribute` with the highest `auc` over all clips, and the `words` of the prompts that go with it. These
            AUCs are the largest of many, and are for reading only.
        tops: the seconds at which each latent is most active, one per clip: `latent`, `rank`, `clip`, `start` in
            seconds, `value` and `prompt`.
        attributes: one row per attribute. Latents are chosen on one half of the clips, and everything is reported on
            the other, to which all clips of a prompt belong or none (if there are at least ten prompts): the best
            `latent` and its `auc`, the latent `matched` to this attribute alone (Hungarian method; -1 if there are more
            attributes than latents) and its `matched_auc`, the number of latents `above` the threshold in both halves
            (more than one: the attribute is split), the `several_auc` of the sum of the best few, and the share
            `absorbed`: clips with the attribute that the best latent misses, and another of these few finds.
        threshold: the AUC from which a latent counts as the attribute's own.
        several: the number of latents that are summed.
        seconds: the length of a top-activating window.
        frame_rate: steps per second.

    An AUC of 1 says that a latent ranks clips by an attribute. It does not say that the model uses the latent for it:
    ablate or clamp it (`splice`), and measure the sound.
    """

    sae: SAE
    clips: Clips
    pooled: Float[np.ndarray, "clip latent"]
    latents: pd.DataFrame
    tops: pd.DataFrame
    attributes: pd.DataFrame
    threshold: float
    several: int
    seconds: float
    frame_rate: float

    @property
    def own(self) -> int:
        """The number of attributes with a latent of their own."""
        return int((self.attributes["auc"] >= self.threshold).sum()) if len(self.attributes) else 0

    @property
    def matching_score(self) -> float:
        """The mean AUC of attributes and latents matched one to one; NaN without labels."""
        return float(self.attributes["matched_auc"].mean()) if len(self.attributes) else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per attribute, or one per latent if the clips have no labels."""
        return self.attributes.copy() if len(self.attributes) else self.latents.copy()

    def page(
        self,
        path: str | os.PathLike[str],
        lens: AudioLens,
        latents: Sequence[int] | None = None,
        *,
        most: int = 24,
        sounds: int = 4,
    ) -> Path:
        """Write a page that plays the top-activating seconds of latents, as one HTML file that opens offline.

        Args:
            lens: the model whose codec decodes the clips.
            latents: the latents to show (default: those matched to attributes, then the most active ones).
            most: the most latents to choose by default.
            sounds: the most sounds per latent.

        Raises:
            InputError: if a latent does not exist, or the file cannot be written.
        """
        from analysis.features import page

        chosen = None if latents is None else self.sae.numbers("latents", latents)
        return page.write(self, path, lens, chosen, checked_count("most", most), checked_count("sounds", sounds))

    @drawable
    def plot(self) -> Figure:
        """Draw the AUC of the best latent, and of several together, for each attribute."""
        from analysis.features import figures

        return figures.paper(self._labelled())

    @interactive
    def figure(self) -> go.Figure:
        """Return the interactive version of `plot` (plotly)."""
        from analysis.features import figures

        return figures.screen(self._labelled())

    def __repr__(self) -> str:
        active = int((self.latents["rate"] > 0).sum())
        found = f"FeatureIndex({active} of {self.sae.width} latents active on {len(self.clips)} clips"
        if not len(self.attributes):
            return f"{found}, which have no labels)"
        return (
            f"{found}: {self.own} of {len(self.attributes)} attributes have a latent of AUC >= {self.threshold:g}; "
            f"matched one to one, the mean AUC is {self.matching_score:.2f})"
        )

    def _labelled(self) -> FeatureIndex:
        if not len(self.attributes):
            raise InputError("these clips have no labels: give features.Clips labels=, or use features.synthesised.")
        return self


@guarded
def index(
    lens: AudioLens,
    sae: SAE,
    clips: Clips,
    *,
    top: int = 6,
    seconds: float = 1.0,
    threshold: float = OWN_AUC,
    several: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> FeatureIndex:
    """Read clips, and return what every latent of a sparse autoencoder does on them.

    Args:
        clips: clips that the SAE was not trained on: `Clips(prompts, codes, labels)`, or `synthesised(lens, n)`.
        top: number of top-activating seconds to keep per latent, each in another clip.
        seconds: their length.
        threshold: the AUC from which a latent counts as an attribute's own.
        several: the number of best latents that are summed, to see whether an attribute is spread over them.
        seed: of the division of the prompts into two halves.
        batch_size: number of clips to read at once.
        progress: show a progress bar.

    Raises:
        InputError: if the SAE does not fit the model, the clips are not the model's, or a half of the clips lacks an
            attribute.
    """
    checked_flags(progress=progress)
    if not isinstance(sae, SAE):
        raise InputTypeError(f"sae={shown(sae)}: expected an SAE.")
    if not isinstance(clips, Clips):
        raise InputTypeError(f"clips={shown(clips)}: expected features.Clips, such as features.synthesised returns.")
    top, several = checked_count("top", top), checked_count("several", several)
    seconds = checked_amount("seconds", seconds, above=0)
    threshold = checked_amount("threshold", threshold, above=0.5)
    if threshold > 1:
        raise InputError(f"threshold={threshold}: expected an AUC between 0.5 and 1.")
    sae.refuse_other(lens)
    codes = checked_codes(clips.codes, lens.config)
    prompts, _ = text.checked(list(clips.prompts), lens.model, lens.tokenizer)
    parts = matching.halves(np.zeros((len(clips), 1)), clips.truths, prompts, checked_seed(seed))
    for part in parts:
        if (name := matching.lacking(part)) is not None:
            raise InputError(f"labels: half of the clips are alike in {name!r}: give more clips, or another seed=.")
    found = _read(lens, sae, prompts, codes, whole_batch_size(batch_size), progress)
    truths = clips.truths
    choosing, reporting = matching.halves(found["pooled"], truths, prompts, seed)
    attributes = matching.table(choosing, reporting, threshold, min(several, sae.width)) if truths else pd.DataFrame()
    seconds = min(seconds, codes.shape[-1] / lens.config.frame_rate)
    return FeatureIndex(
        sae, clips, found["pooled"], _latents(found, truths, prompts),
        _tops(found, prompts, top, seconds, codes.shape[-1], lens.config.frame_rate), attributes, threshold, several,
        seconds, lens.config.frame_rate,
    )  # fmt: skip


def _read(
    lens: AudioLens, sae: SAE, prompts: Sequence[str | None], codes: Any, size: int, progress: bool
) -> dict[str, np.ndarray]:
    """Return the mean, the peak and its step per clip and latent, and how often each latent is active, and how much."""
    frames = codes.shape[-1]
    active, total = torch.zeros(sae.width, dtype=torch.float64), torch.zeros(sae.width, dtype=torch.float64)

    def read(rows: slice) -> tuple[Tensor, ...]:
        latents = sae.encode(activations(lens, Site(sae.site, sae.layer), prompts[rows], codes[rows]))[:, :frames]
        peak = latents.max(1)
        found = latents.mean(1), peak.values, peak.indices, (latents > 0).sum((0, 1)), latents.sum((0, 1))
        return tuple(values.cpu() for values in found)

    parts: list[tuple[Tensor, ...]] = []
    # The latents of every step, in single precision.
    wide = 2 * 4 * lens.timeline(frames).steps * sae.width
    fit = reading_fit(lens.traced_model, prompts, frames, size, rows="clips being indexed", more=lambda: wide)
    with tqdm(total=len(codes), desc="indexing", unit="clip", disable=not progress) as bar:
        for rows, (*found, fired, summed) in fit.run(len(codes), read):
            parts.append(tuple(found))
            active += fired
            total += summed
            bar.update(rows.stop - rows.start)
    pooled, peaks, steps = (torch.cat(one).numpy() for one in zip(*parts, strict=True))
    return {
        "pooled": pooled, "peaks": peaks, "steps": steps,
        "rate": (active / (len(codes) * frames)).numpy(),
        "mean": (total / active).numpy(),
    }  # fmt: skip


def _latents(
    found: dict[str, np.ndarray], truths: dict[str, np.ndarray], prompts: Sequence[str | None]
) -> pd.DataFrame:
    pooled, peaks = found["pooled"], found["peaks"]
    width = pooled.shape[1]
    table = pd.DataFrame(
        {"latent": range(width), "rate": found["rate"], "mean": found["mean"], "peak": peaks.max(0),
         "attribute": None, "auc": np.nan, "words": _words(pooled, prompts)}
    )  # fmt: skip
    if truths:
        matrix = matching.Half(pooled, truths).aucs()
        best = matrix.argmax(0)
        table["attribute"] = np.array(list(truths), dtype=object)[best]
        table["auc"] = matrix[best, np.arange(width)]
        table.loc[table["rate"] == 0, ["attribute", "auc"]] = [None, np.nan]
    return table


def _words(pooled: Float[np.ndarray, "clip latent"], prompts: Sequence[str | None]) -> list[str]:
    """Return for each latent the words whose prompts it ranks highest, most likely first."""
    sets = [set(_WORD.findall((prompt or "").lower())) for prompt in prompts]
    counts = Counter(word for words in sets for word in words)
    kept = sorted(word for word, count in counts.items() if _FEWEST <= count <= len(prompts) - _FEWEST)
    if not kept:
        return [""] * pooled.shape[1]
    there = np.array([[word in words for word in kept] for words in sets])
    n = there.sum(0)
    matrix = ranking.area(ranking.ranks(pooled.T) @ there, n, len(prompts) - n)
    order = np.argsort(-matrix, axis=-1, kind="stable")[:, :_WORDS]
    return [", ".join(kept[word] for word in best if matrix[latent, word] >= _LIKELY)
            for latent, best in enumerate(order)]  # fmt: skip


def _tops(
    found: dict[str, np.ndarray], prompts: Sequence[str | None], top: int, seconds: float, frames: int, rate: float
) -> pd.DataFrame:
    peaks, steps = found["peaks"], found["steps"]
    order = np.argsort(-peaks, axis=0, kind="stable")[:top]
    rank, latent = np.nonzero(np.take_along_axis(peaks, order, 0) > 0)
    clip = order[rank, latent]
    # The loudest moment in the middle, as far as the clip reaches.
    start = np.clip((steps[clip, latent] + 0.5) / rate - seconds / 2, 0, frames / rate - seconds)
    table = pd.DataFrame({"latent": latent, "rank": rank, "clip": clip, "start": start, "value": peaks[clip, latent]})
    table["prompt"] = np.array(list(prompts), dtype=object)[clip]
    return table.sort_values(["latent", "rank"], ignore_index=True)
