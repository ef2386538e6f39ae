"""The activations that a sparse autoencoder is trained on: single vectors in random order, held-out clips apart.

Clips are read in *units* (a few clips of the lens, or a shard of a harvest). An epoch takes the units in random order,
several at a time, and mixes their vectors. Every batch follows from the seed and its number alone, so that a training
run that was killed goes on with the very batch at which it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.features.sae import flat, heads_at
from analysis.harvest.opened import Harvest
from audiolens.checks import shown
from audiolens.directions.samples import prompt_numbers
from audiolens.errors import InputError
from audiolens.files.integrity import tensor_hash
from audiolens.model import text
from audiolens.model.provenance import Provenance, of_lens, prompts_hash
from audiolens.model.sites import Site
from audiolens.model.weight_hash import content_hash
from audiolens.sound.codec import checked_codes
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.noise import NOISE

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

KEPT_BYTES = 2**30
"""Activations up to this size are read once and kept in memory. Larger ones are read again in every epoch."""
MIXED = 2**17
"""The least number of vectors that are mixed at a time."""
FEWEST_PROMPTS = 10
"""The fewest different prompts that are divided as wholes."""


@dataclass(frozen=True, eq=False)
class Source:
    """Clips, and a function that reads the activations of some of them.

    Attributes:
        lens: the model.
        site: the site, with its block.
        prompts: the prompt of each clip.
        codes: the codes of each clip.
        steps: the number of vectors of each clip.
        read: returns the activations of clips, "row step d_in".
        units: the training clips, in groups that are read at once.
        held_out: the clips that training never reads.
        meta: the provenance of the activations, and thus of the SAE.
    """

    lens: AudioLens
    site: Site
    prompts: tuple[str | None, ...]
    codes: Int[Tensor, "row codebook frame"]
    steps: int
    read: Callable[[Sequence[int]], Float[Tensor, "row step d_in"]]
    units: tuple[np.ndarray, ...]
    held_out: tuple[int, ...]
    meta: Provenance
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def n_train(self) -> int:
        """The number of training clips."""
        return sum(map(len, self.units))

    @property
    def facts(self) -> dict[str, Any]:
        """What the activations depend on, as plain values."""
        held = self.held_out
        return {
            "weights": self.meta.weights, "dtype": self.meta.dtype, "site": self.site.name,
            "prompts": prompts_hash(self.prompts), "codes": tensor_hash(self.codes.cpu().long())[:16],
            "clips": len(self.prompts), "held_out": prompts_hash([str(row) for row in held]),
            "units": len(self.units),
            # Batches follow from which clips are read at once, and not only from the number of groups.
            "order": prompts_hash([str(unit.tolist()) for unit in self.units]),
        }  # fmt: skip

    def unit(self, number: int) -> Float[Tensor, "vector d_in"]:
        """Return the vectors of one unit."""
        if number in self._kept:
            return self._kept[number]
        found = self.read(self.units[number].tolist()).float().flatten(0, 1)
        if found.nbytes * len(self.units) <= KEPT_BYTES:
            self._kept[number] = found
        return found

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Float[Tensor, "vector d_in"]]:
        """Yield training batches without end, beginning with batch `start`. Their sizes are about `size`."""
        number = 0
        for epoch in _forever():
            drawn = np.random.default_rng([seed, epoch])
            for group in self._groups(drawn.permutation(len(self.units)).tolist()):
                n = sum(len(self.units[unit]) for unit in group) * self.steps
                parts = np.array_split(drawn.permutation(n), max(1, round(n / size)))
                if number + len(parts) <= start:
                    number += len(parts)
                    continue
                vectors = torch.cat([self.unit(unit) for unit in group])
                for part in parts:
                    if number >= start:
                        yield vectors[torch.from_numpy(part)]
                    number += 1

    def _groups(self, order: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        for unit in order:
            group.append(unit)
            if sum(len(self.units[one]) for one in group) * self.steps >= MIXED:
                yield group
                group = []
        if group:
            yield group


def of_clips(
    lens: AudioLens,
    site: Site,
    prompts: Any,
    codes: Any,
    *,
    seeds: int,
    seconds: float,
    guidance_scale: float,
    held_out: float,
    seed: int,
    batch_size: int,
    progress: bool,
) -> Source:
    """Return the activations of clips, which are generated unless codes are given."""
    listed, _ = text.checked(prompts, lens.model, lens.tokenizer)
    if codes is None:
        numbers = tuple(range(len(listed) * seeds))
        listed = tuple(prompt for prompt in listed for _ in range(seeds))
        codes = lens.generate(
            listed, seconds, seeds=list(numbers), guidance_scale=guidance_scale, decode=False, batch_size=batch_size,
            progress=progress,
        ).codes  # fmt: skip
        told: Any = {"source": "generation", "seconds": seconds, "seeds": numbers, "guidance_scale": guidance_scale,
                     "noise": NOISE}  # fmt: skip
    else:
        codes = checked_codes(codes, lens.config)
        listed, _ = text.checked(prompts, lens.model, lens.tokenizer, len(codes))
        told = {"source": "codes"}
    codes = codes.cpu()
    train, held = split(listed, held_out, seed)
    mixed = np.random.default_rng([seed, len(train)]).permutation(train)
    units = tuple(mixed[first : first + batch_size] for first in range(0, len(mixed), batch_size))

    fit = reading_fit(lens.traced_model, listed, codes.shape[-1], rows="clips being read")

    def part(rows: Sequence[int]) -> Float[Tensor, "row step d_in"]:
        return activations(lens, site, [listed[row] for row in rows], codes[list(rows)])

    def read(rows: Sequence[int]) -> Float[Tensor, "row step d_in"]:
        return torch.cat([found for _, found in fit.each([rows], part)])

    steps = lens.timeline(codes.shape[-1]).steps
    meta = of_lens(
        lens, site=site.hook, position="every step", n_heads=heads_at(lens, site), n_prompts=(len(listed), 0),
        prompts=prompts_hash(listed), **told,
    )  # fmt: skip
    return Source(lens, site, listed, codes, steps, read, units, tuple(held), meta)


def of_harvest(lens: AudioLens, harvest: Harvest, site: str, layer: int | None, held_out: float, seed: int) -> Source:
    """Return the activations in a harvest's folder.

    Raises:
        InputError: if the harvest is of another model, of the null branch, without steps or without codes.
        SiteError: if the site was not recorded.
    """
    facts = harvest.facts
    vectors = harvest.vectors(site, layer)
    if facts["model"]["weights"] != content_hash(lens.model):
        raise InputError(
            f"{harvest.folder} was harvested from {shown(facts['model']['name'])}, and {shown(lens.name)} has other "
            "weights: open that model."
        )
    if facts["settings"].get("branch") != "cond" or harvest.reduce is not None or harvest.first_step:
        raise InputError(
            f"{harvest.folder} does not hold every step of the conditional branch: harvest with branch='cond', "
            "reduce=None and span=None."
        )
    codes, name = harvest.codes(), vectors.name
    train, held = split(harvest.prompts, held_out, seed)
    rows = harvest.shard_rows
    shards = np.asarray(train) // rows
    units = tuple(np.asarray(train)[shards == shard] for shard in np.unique(shards))

    def read(chosen: Sequence[int]) -> Float[Tensor, "row step d_in"]:
        return flat(harvest.cache(list(chosen))[name].float())

    found = Site.of(name)
    meta = of_lens(
        lens, site=found.hook, position="every step", n_heads=heads_at(lens, found), n_prompts=(len(codes), 0),
        prompts=prompts_hash(harvest.prompts), source=facts["source"],
    )  # fmt: skip
    return Source(lens, found, harvest.prompts, codes, vectors.steps, read, units, tuple(held), meta)


def activations(
    lens: AudioLens, site: Site, prompts: Sequence[str | None], codes: Int[Tensor, "row codebook frame"]
) -> Float[Tensor, "row step d_in"]:
    """Return the activations of a site under the prompts and codes of clips, in float32 on the model's device."""
    stop = None if site.layer is None else site.layer + 1
    _, cache = lens.run_with_cache(prompts, codes, sites=site.name, stop_at_layer=stop)
    return flat(cache[site.name].float())


def split(prompts: Sequence[str | None], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide clips into those to train on and those held out, so that clips of one prompt stay together.

    If the clips have too few different prompts, they are divided one by one (`grouped`).

    Raises:
        InputError: if either part would be empty.
    """
    groups = grouped(prompts)
    order = np.random.default_rng([seed, 1]).permutation(np.unique(groups))
    count = round(share * len(order)) if share else 0
    chosen = np.isin(groups, order[: max(count, 1 if share else 0)])
    if chosen.all():
        raise InputError(f"held_out={share} of {len(prompts)} clips leaves none to train on: give more prompts.")
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


def grouped(prompts: Sequence[str | None]) -> Int[np.ndarray, " clip"]:
    """Return the number of each clip's prompt, or of the clip if there are fewer than `FEWEST_PROMPTS` prompts.

    A clip without a prompt is a group of its own.
    """
    numbers = prompt_numbers(prompts)
    return numbers if len(np.unique(numbers)) >= FEWEST_PROMPTS else np.arange(len(prompts))


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers from 0 to `count` - 1, at equal distances.

    Clips are often listed pole by pole, or genre by genre. The first of them would not stand for all.
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _forever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
