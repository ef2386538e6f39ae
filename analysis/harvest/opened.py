"""Harvest: open a folder of harvested activations lazily, as a cache or as a data set of vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.harvest.described import HARVEST, PLAN
from analysis.harvest.planned import size_text
from analysis.harvest.shards import AGAIN, CODES, Shards
from analysis.harvest.vectors import Vectors
from audiolens.cache.activation_cache import ActivationCache
from audiolens.cache.lazy_tensors import Stored, outlines
from audiolens.checks import checked_flags, shown
from audiolens.door import guarded
from audiolens.errors import DamagedError, InputError, SiteError, nearest, shortened
from audiolens.files.atomic import as_path, refuse_links
from audiolens.interventions import checked_rows
from audiolens.model.sites import Site, named


@guarded
@dataclass(frozen=True, eq=False)
class Harvest:
    """The activations of many clips in a folder. Opening it reads two tables and no activation.

    Attributes:
        folder: the folder.
        facts: the contents of `harvest.json`: model, versions, settings, and hashes of prompts, seeds and codes.
        clips: one line per clip, with its number `clip`, `prompt`, `seed` and `shard`. A clip without a seed has none.
        index: one line per tensor of each shard, with its `file`, `site`, `layer`, `dtype`, first clip and step,
            numbers of clips and steps, and `sha256`. Norms and codes are not sites, and have only a `name`.
    """

    folder: Path
    facts: Mapping[str, Any]
    clips: pd.DataFrame
    index: pd.DataFrame

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Harvest:
        """Open a finished harvest. Activations are checked against their hashes when they are read.

        Raises:
            InputError: if the folder contains no harvest, an unfinished one, or one of another version.
            DamagedError: (an InputError) if a file is missing or damaged. The error names the file. A `DamagedError` is
                also raised later, if activations that are read are damaged.
        """
        place = as_path(folder)
        if place.is_dir():
            refuse_links(place)
        try:
            facts = HARVEST.read(place)
        except DamagedError as error:
            raise DamagedError(f"{error} {AGAIN}") from None
        if facts is None:
            raise InputError(f"{place} contains no harvest: there is no {PLAN} in it.")
        if facts["format"] != HARVEST.format:
            raise InputError(
                f"{place} contains a harvest of format {shown(facts['format'])}; this version reads {HARVEST.format}."
            )
        shards = Shards.of(place, facts)
        if len(shards.done) < shards.count:
            raise InputError(
                f"{place} contains {shards.finished:,} of {shards.rows:,} clips: the harvest was interrupted, or a "
                "shard was removed. Repeat it to resume."
            )
        index, clips = shards.tables()
        return cls(place, facts, clips, index)

    def __len__(self) -> int:
        return self._shards.rows

    def __iter__(self) -> Iterator[ActivationCache]:
        """Yield the cache of each shard in order. Only the shards that the caller keeps stay in memory."""
        return (self._opened(number)[0] for number in range(self._shards.count))

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """The prompt of each clip."""
        return tuple(prompt if isinstance(prompt, str) else None for prompt in self.clips["prompt"])

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each clip; `None` if the clips were given as codes without seeds."""
        return tuple(None if pd.isna(seed) else int(seed) for seed in self.clips["seed"])

    @property
    def sites(self) -> tuple[str, ...]:
        """The full names of the sites, in the model's order."""
        return tuple(self._first.axes)

    @property
    def shard_rows(self) -> int:
        """The number of clips per shard; the last shard can have fewer."""
        return self._shards.size

    @property
    def reduce(self) -> str | None:
        """The reduction over time, if any."""
        return self._first.reduce

    @property
    def first_step(self) -> int:
        """The first recorded step."""
        return self._first.first_step

    @property
    def steps(self) -> int:
        """The number of recorded steps per clip; 1 if the harvest was reduced over time."""
        axes, tensors = next(iter(self._first.axes.values())), outlines(self._first.tensors)
        return next(iter(tensors.values())).shape[axes.index("step")] if "step" in axes else 1

    @property
    def n_bytes(self) -> int:
        """The size of all shards on disk in bytes."""
        return sum(self._shards.path(number).stat().st_size for number in range(self._shards.count))

    def codes(self, rows: Sequence[int] | None = None) -> Int[Tensor, "row codebook frame"]:
        """Return the codes of some clips, or of all of them.

        Raises:
            InputError: if only the start token was read, so that there are no codes.
        """
        if self.facts["source"] == "start":
            raise InputError(f"{self.folder} was read from the start token alone: it has no codes.")
        return self._gathered(CODES, checked_rows(rows, len(self))).long()

    def cache(self, rows: Sequence[int] | None = None) -> ActivationCache:
        """Return the activations of some clips, or of all of them, as a cache whose tensors are read on first use.

        A tensor that was read stays in memory, and has the size of all these clips. To go through a large harvest,
        iterate over it (one cache per shard), give a few rows, or use `vectors`.

        Raises:
            InputTypeError, InputError: if `rows` is not a list of clip numbers, or a clip does not exist.
        """
        chosen, first = checked_rows(rows, len(self)), self._first

        def stored(tensors: Mapping[str, Tensor], under: str = "") -> Stored:
            shapes = {
                name: outline.new_empty((len(chosen), *outline.shape[1:]))
                for name, outline in outlines(tensors).items()
            }
            return Stored(shapes, lambda name: self._gathered(under + name, chosen))

        prefixes = ()
        if first.prefixes:
            everything = tuple(length for cache in self for length in cache.prefixes)
            prefixes = tuple(everything[row] for row in chosen)
        prompts = self.prompts
        return replace(
            first,
            tensors=stored(first.tensors),
            norms=stored(first.norms, "norms/"),
            prompts=tuple(prompts[row] for row in chosen),
            prefixes=prefixes,
        )

    def vectors(self, site: str = "resid_post", layer: int | None = None, *, held: int = 4) -> Vectors:
        """Return the activations of one site as a torch data set of single vectors.

        Args:
            site: a full name, or a short form with `layer`.
            layer: the block, which can be left out if the site was recorded in only one.
            held: number of shards to keep in memory.

        Raises:
            SiteError: if the site was not recorded, or was recorded in several blocks and no layer is given.
        """
        asked = named(site)
        where = asked.layer if layer is None else self._first.numbered(layer)[0]
        found = [
            name
            for name in self.sites
            if (one := Site.of(name)).hook == asked.hook and (where is None or one.layer == where)
        ]
        if len(found) > 1:
            layers = self._first.layers(asked.hook)
            raise SiteError(f"{shown(site)} was recorded at layers {layers}: give layer=, one of them.")
        if not found:
            at = "" if where is None else f" at layer {where}"
            raise SiteError(
                f"{shown(site)} was not recorded{at}.{nearest(asked.name, self.sites)} Recorded: "
                f"{shortened(self.sites)}."
            )
        return Vectors(self, found[0], held)

    def check(self, *, progress: bool = False) -> None:
        """Read every tensor, one at a time, and check its hash.

        Raises:
            DamagedError: if a shard is damaged. The error names the first such file.
        """
        checked_flags(progress=progress)
        for number in tqdm(range(self._shards.count), desc="checking", unit="shard", disable=not progress):
            self._shards.check(number, values=True)

    def to_frame(self) -> pd.DataFrame:
        """Return one line per clip, with its number, prompt, seed and shard."""
        return self.clips.copy()

    def _features(self, name: str) -> tuple[int, ...]:
        """Return the sizes of a site's axes other than row and step, given its full name."""
        shape, axes = outlines(self._first.tensors)[name].shape, self._first.axes[name]
        return tuple(size for size, axis in zip(shape, axes, strict=True) if axis not in ("row", "step"))

    def _dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a site, given its full name."""
        return outlines(self._first.tensors)[name].dtype

    def _shard_vectors(self, number: int, name: str) -> Float[Tensor, "vector feature"]:
        """Read one site of one shard as vectors, clip by clip, and step by step within a clip.

        Raises:
            DamagedError: if the shard is damaged.
        """
        cache, stored = self._opened(number)
        found, axes = self._shards.tensor(number, stored, name), cache.axes[name]
        if "step" in axes:
            # Logits have the codebooks before the steps.
            return found.movedim(axes.index("step"), 1).flatten(2).flatten(0, 1)
        return found.flatten(1)

    @cached_property
    def _shards(self) -> Shards:
        return Shards.of(self.folder, self.facts)

    @cached_property
    def _first(self) -> ActivationCache:
        """The cache of the first shard, whose labels are those of all shards."""
        return self._shards.opened(0)[0]

    def _opened(self, number: int) -> tuple[ActivationCache, Stored]:
        """Return a shard's cache and tensors, which must have the sites, shapes and dtypes of the first shard."""
        cache, _, stored = self._shards.opened(number)
        first = self._first

        def kinds(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
            return {name: (one.shape[1:], one.dtype) for name, one in outlines(tensors).items()}

        alike = all(kinds(getattr(cache, part)) == kinds(getattr(first, part)) for part in ("tensors", "norms"))
        labels = ("axes", "branch", "first_step", "frame_rate", "reduce", "heads")
        if not alike or any(getattr(cache, label) != getattr(first, label) for label in labels):
            raise DamagedError(f"{self._shards.path(number)} is damaged: it differs from the first shard. {AGAIN}")
        return cache, stored

    def _gathered(self, name: str, rows: Sequence[int]) -> Tensor:
        """Read some rows of a tensor. Only one shard is in memory in addition to the result."""
        wanted = np.asarray(rows)
        numbers = wanted // self.shard_rows
        made: Tensor | None = None
        for number in dict.fromkeys(numbers.tolist()):
            stored = self._opened(number)[1]
            mine = np.flatnonzero(numbers == number)
            part = self._shards.tensor(number, stored, name)
            part = part[torch.from_numpy(wanted[mine] - number * self.shard_rows)]
            if made is None:
                made = part.new_empty((len(rows), *part.shape[1:]))
            made[torch.from_numpy(mine)] = part
        assert made is not None
        return made

    def __repr__(self) -> str:
        over = f"{self.steps} steps" if self.reduce is None else f"reduced to {self.reduce!r}"
        dtype = str(self._dtype(self.sites[0])).removeprefix("torch.")
        return (
            f"Harvest({len(self):,} clips of {self.facts['model']['name']!r}, {over}, {len(self.sites)} sites in "
            f"{dtype}, {size_text(self.n_bytes)} in {self._shards.count:,} shards)"
        )
