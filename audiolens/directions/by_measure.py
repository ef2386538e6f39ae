"""Directions by measure: from clips that the model made itself, sorted by what is measured in them.

No poles are needed. The model generates clips of the given prompts, the activations are read meanwhile, and each clip
is measured. The direction points from the clips with the smallest values to those with the largest (`fit="quantile"`),
or along the weights of a ridge regression on the measured values (`fit="ridge"`). Whatever varies together with the
measure in these clips enters the direction, and so does the prompt, if prompts decide the measure: give neutral ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from audiolens import measure as measures
from audiolens.checks import checked_amount, checked_count, checked_flags, checked_seed, in_order, listed, shown
from audiolens.directions.pole_reader import Position, checked_position, checked_site, vectors_of
from audiolens.directions.samples import Samples
from audiolens.errors import InputError, PromptError
from audiolens.interventions import Branch, checked_branch
from audiolens.lens import AudioLens
from audiolens.measure.table import checked_measures
from audiolens.model import provenance, text
from audiolens.model.timeline import clip_timeline
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.noise import NOISE
from audiolens.tracing.sampling import checked_settings

FITS = ("quantile", "ridge")


@dataclass(frozen=True, eq=False)
class Sorting:
    """How clips become samples: their measure, and which of them are kept."""

    measure: str
    fit: Literal["quantile", "ridge"]
    quantile: float

    @classmethod
    def checked(cls, measure: Any, fit: Any, quantile: Any) -> "Sorting":
        if not isinstance(measure, str):
            raise InputError(f"measure={shown(measure)}: method='by_measure' needs a measure, such as 'tempo'.")
        (name,) = checked_measures([measure])
        measures.refuse_lacking([name])
        if not isinstance(fit, str) or fit not in FITS:
            raise InputError(f"fit={shown(fit)}: expected 'quantile' or 'ridge'.")
        share = checked_amount("quantile", quantile, above=0)
        if share > 0.5:
            raise InputError(f"quantile={shown(quantile)}: expected at most 0.5, the share of clips at either end.")
        return cls(name, fit, share)

    def kept(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the clips to keep, those with the larger values first, and whether each is one of these.

        Raises:
            InputError: if too few clips have a value, or if all values are equal.
        """
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.argsort(values[known], kind="stable")]
        n = len(known) // 2 if self.fit == "ridge" else int(round(self.quantile * len(known)))
        n = min(n, len(known) // 2)
        if n < 2:
            raise InputError(
                f"method='by_measure' needs at least 2 clips at either end, and {len(known)} of {len(values)} clips "
                f"have a {self.measure}: give more prompts, clips_per_prompt= or a larger quantile=."
            )
        if values[order[n - 1]] >= values[order[-n]]:
            raise InputError(f"the {n} lowest and highest clips have the same {self.measure}: they cannot be sorted.")
        rest = order[n:-n] if self.fit == "ridge" else order[:0]
        kept = np.concatenate([order[-n:], rest, order[:n]])
        return kept, np.arange(len(kept)) < n


def read(
    lens: AudioLens,
    prompts: Sequence[str | None],
    sorting: Sorting,
    *,
    clips_per_prompt: int = 1,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    position: Position = "mean",
    branch: Branch = "cond",
    guidance_scale: float = 3.0,
    seconds: float = 4.0,
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
    label: str = "",
    prefix: bool = False,
    progress: bool = True,
) -> Samples:
    """Generate and measure clips, and return the samples of those that are kept: the larger values are positive.

    Clip i has the i-th seed (0, 1, 2, ... by default), so every clip of a prompt is another one.
    """
    checked_flags(prefix=prefix, progress=progress)
    asked = in_order("prompts", prompts, "prompts")
    if not asked:
        raise PromptError("no prompts: method='by_measure' generates clips of them.")
    text.checked(asked, lens.model, lens.tokenizer)
    rows = [prompt for prompt in asked for _ in range(checked_count("clips_per_prompt", clips_per_prompt))]
    short, numbers, n_heads = checked_site(lens, site, layers)
    position = checked_position(position, lens)
    if position in ("first", "eos"):
        raise InputError(f"position={position!r} is read before a clip begins: give 'mean', 'last' or (from, to).")
    checked_branch(branch)
    checked_settings(guidance_scale, 1.0, None)
    clip_timeline(seconds, lens.config)
    size = whole_batch_size(batch_size)
    given = list(range(len(rows))) if seeds is None else [checked_seed(seed) for seed in listed("seeds", seeds)]
    if len(given) != len(rows):
        raise InputError(f"{len(given)} seeds for {len(rows)} clips: give one per clip.")
    span = position if isinstance(position, tuple) else None
    reduce = "last" if position == "last" else "mean"

    def read_part(part: slice) -> tuple[Tensor, Tensor, np.ndarray]:
        out = lens.generate(
            rows[part], seconds, seeds=given[part], guidance_scale=guidance_scale, sites=short, layers=list(numbers),
            branch=branch, span=span, reduce=reduce, prefix=prefix, cache_device="cpu",
        )  # fmt: skip
        assert out.cache is not None
        read, sizes = vectors_of(out.cache, short, branch, reduced=reduce == "mean", heads=n_heads > 0)
        return read, sizes, measures.table(out, measures=[sorting.measure])[sorting.measure].to_numpy()

    frames, branches = round(seconds * lens.config.frame_rate), 2 if guidance_scale > 1 else 1
    fit = reading_fit(lens.traced_model, asked, frames, size, rows="clips being measured", branches=branches)
    parts = list[tuple[Tensor, Tensor, np.ndarray]]()
    with tqdm(total=len(rows), desc="measuring", unit="clip", disable=not progress) as bar:
        for part, one in fit.run(len(rows), read_part):
            parts.append(one)
            bar.update(part.stop - part.start)
    values, norms, measured = zip(*parts, strict=True)
    found = np.concatenate(measured)
    kept, positive = sorting.kept(found)
    index = torch.from_numpy(kept)
    meta = provenance.of_lens(
        lens, site=short, position=position, prefix=prefix, branch=branch, guidance_scale=float(guidance_scale),
        source="generation", seconds=float(seconds), seeds=tuple(given), noise=NOISE, label=label,
        prompts=provenance.prompts_hash(asked), n_heads=n_heads,
        options={
            "measure": sorting.measure, "fit": sorting.fit, "clips": str(len(rows)),
            "undefined": str(int((~np.isfinite(found)).sum())),
            **({"quantile": f"{sorting.quantile:g}"} if sorting.fit == "quantile" else {}),
        },
    )  # fmt: skip
    return Samples(
        values=torch.cat(values, dim=1)[:, index],
        labels=torch.from_numpy(positive),
        layers=numbers,
        prompts=tuple(rows[row] for row in kept),
        meta=meta,
        residual_norms=torch.cat(norms, dim=1).mean(1),
        measured=torch.from_numpy(found[kept]).float(),
    )
