"""Decode the predictions of each block to sound (the audible logit lens)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.logit_lens.reading import checked, log_probabilities, read_parts
from audiolens import measure
from audiolens.cache.activation_cache import ActivationCache
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model.timeline import Real
from audiolens.model.tokens import named_once
from audiolens.tracing.generation import Generation
from audiolens.tracing.noise import RowNoise
from audiolens.tracing.sampling import checked_seeds, checked_settings


@guarded
@dataclass(frozen=True, eq=False)
class Audible:
    """What each block would play at every frame of the given clips.

    Attributes:
        clips: the clips of each layer (`clips[3].audio`, `.save(folder)`, `.listen()`).
        given: the given codes, decoded by the same codec.

    Each frame is predicted from the *given* history, not from the block's own output. A clip does not show what the
    block would play by itself, and the beat of the clip might come from the history.
    """

    clips: Mapping[int, Generation]
    given: Generation

    def __getitem__(self, layer: int) -> Generation:
        if layer not in self.clips:
            raise InputError(f"block {layer} was not read; the blocks that were: {[*self.clips]}.")
        return self.clips[layer]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save the clips of each layer in a separate folder (such as "block03"), and the given clips in "given".

        Raises:
            InputError: if one of these folders exists and is not empty, or cannot be created or written to.
        """
        folder = Path(folder)
        for layer, clips in self.clips.items():
            clips.save(folder / f"block{layer:02d}")
        self.given.save(folder / "given")
        return folder

    def to_frame(self, measures: Sequence[str] = ("tempo_ioi", "brightness", "loudness")) -> pd.DataFrame:
        """Return one row per layer (-1 for the given codes) and clip.

        The columns are `prompt`, measures of the sound, and `same`, the share of codes equal to the given ones.
        """
        tables = []
        for layer, clips in {-1: self.given, **self.clips}.items():
            measured = measure.table(_sound(clips), clips.sample_rate, measures=list(measures))
            same = (clips.codes == self.given.codes).float().mean((1, 2)).cpu().numpy()
            labels = {"layer": layer, "row": np.arange(len(clips)), "prompt": clips.prompts}
            tables.append(measured.assign(**labels, same=same)[[*labels, "same", *measures]])
        return pd.concat(tables, ignore_index=True)

    @drawable
    def plot(self) -> Any:
        """Draw spectrograms of the first clips, with one column per block (matplotlib figure)."""
        from analysis.logit_lens import figures

        return figures.audible_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the measures of the sound over blocks (plotly figure)."""
        from analysis.logit_lens import figures

        return figures.audible_screen(self)

    def __repr__(self) -> str:
        same = [float((clips.codes == self.given.codes).float().mean()) for clips in self.clips.values()]
        shares = ", ".join(f"{layer}: {share:.0%}" for layer, share in zip(self.clips, same, strict=True))
        return f"Audible(share of codes equal to the given ones, by block: {shares})"


@guarded
@named_once
def listen(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    layers: int | Sequence[int] | None = None,
    seeds: int | Sequence[int] | None = None,
    temperature: Real = 1.0,
    top_k: int | None = 250,
    batch_size: int = 8,
) -> Audible:
    """Return what each block would play, decoded to sound.

    Args:
        layers: blocks to listen to (default: all).
        seeds: one seed per row, or one for all rows. With seeds, codes are sampled, with the same noise at every block.
            With `None`, the likeliest code is taken.
        temperature, top_k: sampling settings.

    Raises:
        PromptError, InputError: if prompts or codes do not fit the model or each other, if the number of seeds does not
            match the rows, or if the sampling settings are invalid.
        SiteError: if the model lacks one of the layers.
    """
    codes, listed, chosen = checked(lens, prompts, codes, layers, last=layers is None)
    streams = checked_seeds(seeds, len(listed))
    checked_settings(1.0, temperature, top_k)

    def part(rows: slice, cache: ActivationCache) -> list[Tensor]:
        noise, drawn = None, []
        if streams is not None and temperature > 0:
            noise = _noise(lens, streams[rows], codes.shape[-1])
        for layer in chosen:
            scores = log_probabilities(lens, cache, layer, codes, rows)
            if noise is not None:
                scores = scores / temperature
                if top_k and top_k < scores.shape[-1]:
                    scores = scores.masked_fill(scores < scores.topk(top_k).values[..., -1:], -torch.inf)
                scores = scores + noise.to(scores)
            drawn.append(scores.argmax(-1))
        return drawn

    parts = read_parts(lens, listed, codes, chosen, batch_size, part)
    made = {layer: [drawn[at] for drawn in parts] for at, layer in enumerate(chosen)}

    def clips(of: Tensor, layer: int | None) -> Generation:
        settings = {"model": lens.name, "block": layer, "temperature": float(temperature), "top_k": top_k}
        return Generation(
            codes=of,
            audio=lens.decode_codes(of),
            sample_rate=lens.config.sample_rate,
            frame_rate=lens.config.frame_rate,
            prompts=listed,
            seeds=None if streams is None or layer is None else tuple(streams),
            cache=None,
            settings=settings,
        )

    return Audible({layer: clips(torch.cat(parts), layer) for layer, parts in made.items()}, clips(codes, None))


def _noise(lens: AudioLens, seeds: Sequence[int], frames: int) -> Float[Tensor, "row codebook frame vocab"]:
    noise = RowNoise(seeds, lens.config.n_codebooks, lens.config.vocab_size, frames)
    return torch.stack([noise.at(frame, lens.device) for frame in range(frames)], dim=2)


def _sound(clips: Generation) -> np.ndarray:
    assert clips.audio is not None
    return clips.audio.detach().float().cpu().numpy()
