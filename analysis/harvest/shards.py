"""Write a harvest's shards and its two tables to a folder, and read them back.

A shard is a file of an `ActivationCache`, with the seeds and codes of its clips. It names the harvest and its number,
and contains the hash of every tensor. Once all shards are there, `index.parquet` lists every tensor of every shard
(site, layer, dtype, steps, rows, hash), and `clips.parquet` lists every clip (prompt, seed, shard).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from analysis.harvest.described import (
    CLIPS,
    HARVEST,
    INDEX,
    MOST_THREADS,
    PLAN,
    SHARDS,
    check,
    difference,
    plan_hash,
    written,
)
from analysis.harvest.planned import size_text
from analysis.store import parquet
from analysis.store.resumable import UNHELD, Held, OtherResultsError, drop
from audiolens.cache import lazy_tensors
from audiolens.cache.activation_cache import ActivationCache
from audiolens.cache.lazy_tensors import Stored
from audiolens.errors import DamagedError, DamageWarning, InputError, StoppedError
from audiolens.files.atomic import put
from audiolens.files.integrity import tensor_hashes
from audiolens.files.json_shapes import refuse_other
from audiolens.model.sites import Site
from audiolens.model.tokens import callers_level

CODES = "harvest/codes"
AGAIN = "Repeat the harvest that wrote the folder to restore it."
_LABELS = {"harvest": {"plan": str, "shard": int, "threads": int, "seeds": ([int], None)}, "prompts": [(str, None)]}
"""The schema of what a shard's header contains beyond the labels of a cache."""
_INDEX = pa.schema(
    [
        ("file", pa.string()), ("shard", pa.int64()), ("name", pa.string()), ("site", pa.string()),
        ("layer", pa.int64()), ("dtype", pa.string()), ("first_clip", pa.int64()), ("clips", pa.int64()),
        ("first_step", pa.int64()), ("steps", pa.int64()), ("sha256", pa.string()),
    ]
)  # fmt: skip
_CLIPS = pa.schema([("clip", pa.int64()), ("prompt", pa.string()), ("seed", pa.int64()), ("shard", pa.int64())])
_KINDS: Mapping[str, Mapping[str, parquet.Kind]] = {
    INDEX: {"file": "text", "shard": "number", "name": "text", "dtype": "text", "sha256": "text"},
    CLIPS: {"clip": "number", "prompt": "text", "seed": "number", "shard": "number"},
}


@dataclass(frozen=True)
class Shards:
    """The shards of one harvest in a folder.

    Attributes:
        rows: number of clips of the harvest.
        size: number of clips per shard; the last shard can have fewer.
        plan: the hash of the harvest's description.
        threads: number of torch threads that the harvest was started with.
        held: the lock on the folder, if the folder is open for writing.
    """

    folder: Path
    rows: int
    size: int
    plan: str
    threads: int = 1
    held: Held = UNHELD

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any]) -> Shards:
        return cls(folder, facts["rows"], facts["shard_rows"], plan_hash(facts), facts["model"]["threads"])

    @property
    def count(self) -> int:
        return -(-self.rows // self.size)

    @property
    def done(self) -> list[int]:
        """The numbers of the shards that are in the folder."""
        return sorted(written(self.folder) & frozenset(range(self.count)))

    @property
    def finished(self) -> int:
        """The number of clips in the shards that are in the folder."""
        return sum(len(self.span(number)) for number in self.done)

    def remains(self) -> str:
        """Return a sentence that states what is kept if the harvest stops now."""
        return f"{self.finished:,} of {self.rows:,} clips are kept in {self.folder}; repeat the harvest to resume."

    def span(self, number: int) -> range:
        """Return the clips of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.rows))

    def path(self, number: int) -> Path:
        return self.folder / _file(number)

    def keep(
        self,
        number: int,
        cache: ActivationCache,
        codes: Int[Tensor, "row codebook frame"] | None,
        seeds: tuple[int, ...] | None,
    ) -> None:
        """Write a shard. It appears under its name only once it is complete.

        Raises:
            StoppedError: if the folder was removed, or files in it have disappeared.
            InputError: if the shard cannot be written, for example because the disk is full.
        """
        self.held.check()
        facts = {
            "plan": self.plan,
            "shard": number,
            "threads": self.threads,
            "seeds": None if seeds is None else list(seeds),
        }
        further = {} if codes is None else {CODES: _small(codes)}
        lazy_tensors.kept(self.path(number), cache, further, {"harvest": facts})
        self.held.keep(self.path(number))

    def opened(self, number: int) -> tuple[ActivationCache, dict[str, Any], Stored]:
        """Return a shard's cache, labels and tensors. No tensor is read yet.

        Raises:
            DamagedError: if the file is missing or damaged, or belongs to another harvest. A `DamagedError` is also
                raised later, if a tensor that is read is damaged.
        """
        path = self.path(number)
        try:
            labels, stored = lazy_tensors.read(path, lazy_tensors.FORMAT, lazy_tensors.FORMAT)
            cache = ActivationCache(**lazy_tensors.fields(path, labels, stored))
            refuse_other(path, labels, _LABELS)
        except InputError as error:
            raise _damaged(path, error) from None
        own, rows = labels["harvest"], len(self.span(number))
        if (own["plan"], own["shard"]) != (self.plan, number):
            raise _damaged(path, "it belongs to another harvest or place")
        counts = {len(stored.outlines[name]) for name in stored} | {len(labels["prompts"])}
        if own["seeds"] is not None:
            counts.add(len(own["seeds"]))
        if counts != {rows} or not all(axes[:1] == ("row",) for axes in cache.axes.values()):
            raise _damaged(path, f"it does not contain {rows} clips")
        return cache, labels, stored

    def check(self, number: int, *, values: bool) -> None:
        """Check a shard's header, or with `values` every tensor, one at a time.

        Raises:
            DamagedError: if the shard is damaged.
        """
        stored = self.opened(number)[2]
        for name in stored if values else ():
            self.tensor(number, stored, name)

    def tensor(self, number: int, stored: Stored, name: str) -> Tensor:
        """Read a tensor of an opened shard. The shard does not keep it in memory.

        Raises:
            DamagedError: if the tensor is damaged.
        """
        try:
            return stored.some([name])[name]
        except InputError as error:
            raise _damaged(self.path(number), error) from None

    def drop_damaged(self, *, values: bool) -> None:
        """Remove damaged shards, with a warning for each, so that they are harvested again."""
        for number in self.done:
            try:
                self.check(number, values=values)
            except DamagedError as error:
                drop(f"shard {number}", DamagedError(str(error).removesuffix(AGAIN).rstrip()), self.path(number))

    def close(self, *, changed: bool) -> None:
        """Write the two tables, unless nothing has changed and both are intact.

        Raises:
            StoppedError: if a shard is missing, or if the folder or files in it have disappeared.
        """
        self.held.check()
        if missing := sorted(frozenset(range(self.count)) - {*self.done}):
            raise StoppedError(f"{self.path(missing[0])} is gone: something removed it. Repeat the harvest.")
        try:
            if not changed:
                self.tables()
                return
        except DamagedError:
            pass
        index, clips = [], []
        for number in range(self.count):
            cache, labels, stored = self.opened(number)
            index += _entries(number, self.span(number), cache, labels, stored)
            own = labels["harvest"]["seeds"] or [None] * len(labels["prompts"])
            clips += zip(self.span(number), labels["prompts"], own, [number] * len(own), strict=True)
        for name, rows, schema in ((INDEX, index, _INDEX), (CLIPS, clips, _CLIPS)):
            table = pd.DataFrame(rows, columns=pd.Index(schema.names), dtype=object)
            put(self.folder / name, parquet.sealed(table, schema, {"plan": self.plan}))

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the table of all tensors, and the table of all clips.

        Raises:
            DamagedError: if a table is missing or damaged, or belongs to another harvest.
        """
        found = []
        for name, rows in ((INDEX, None), (CLIPS, self.rows)):
            path = self.folder / name
            try:
                table, facts = parquet.read_sealed(path, _KINDS[name], rows)
            except DamagedError as error:
                raise DamagedError(f"{error} {AGAIN}") from None
            if facts.get("plan") != self.plan:
                raise _damaged(path, "it belongs to another harvest")
            found.append(table)
        index, clips = found
        numbers, seeds = np.arange(self.rows), clips["seed"].dropna()
        if not ((clips["clip"] == numbers) & (clips["shard"] == numbers // self.size)).all():
            raise _damaged(self.folder / CLIPS, "its clips are not in order")
        if not ((seeds >= 0) & (seeds < 2**32) & (seeds % 1 == 0)).all():
            raise _damaged(self.folder / CLIPS, "its seeds are not whole numbers of 32 bits")
        return index, clips


@contextmanager
def opened(folder: Path, facts: Mapping[str, Any], n_bytes: int, *, values: bool) -> Iterator[Shards]:
    """Open a new folder, or one with a part of the same harvest, to write shards into.

    No other process can open the folder until the block ends. Damaged shards are removed, with a `DamageWarning`.

    Args:
        facts: the description of the harvest.
        n_bytes: approximate size of the whole harvest.
        values: check every tensor of the finished shards, and not only their headers.

    Raises:
        InputError: if the folder contains another harvest or anything other than a harvest, or if the disk has too
            little room.
        BusyError: if another process is writing to the folder.
        StoppedError: when writing, if the folder was removed, files in it have disappeared, or the disk is full.
    """
    check(folder)
    refuse_begun(folder, facts)

    def settled() -> Mapping[str, Any]:
        begun = refuse_begun(folder, facts) or facts
        there = Shards.of(folder, begun)
        there.drop_damaged(values=values)
        refuse_full(folder, n_bytes * (1 - there.finished / there.rows))
        return begun

    with HARVEST.opened(folder, settled, Shards.of(folder, facts).remains) as (lock, begun):
        lock.keep(folder / SHARDS)
        yield replace(Shards.of(folder, begun), held=lock)


def refuse_begun(folder: Path, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the description to resume in a folder, checked against `facts`; `None` if nothing was harvested there yet.

    Raises:
        OtherResultsError: if the folder contains another harvest. The error names the first difference.
    """
    try:
        begun, damage = HARVEST.read(folder), f"{folder / PLAN} is gone"
    except DamagedError as error:
        begun, damage = None, str(error).rstrip(".")
    if not written(folder):
        return None
    if begun is not None:
        HARVEST.refuse(folder, difference(begun, facts), "use the settings it was begun with.")
        return begun
    found = _plans(folder)
    if set(found) != {plan_hash(facts)}:
        raise OtherResultsError(f"{damage}, and its shards are not of this harvest: choose another folder.")
    warnings.warn(DamageWarning(f"{damage}: it is written again."), stacklevel=callers_level())
    return {**facts, "model": {**facts["model"], "threads": next(iter(found.values()))}}


def refuse_full(folder: Path, n_bytes: float) -> None:
    """Raise if the disk has less room than a number of bytes.

    Raises:
        InputError: if there is too little room. The error states how much is needed and how much is free.
    """
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(above).free
    if n_bytes > free:
        raise InputError(
            f"{folder}: the harvest needs about {size_text(n_bytes)}, but only {size_text(free)} are free: record "
            "fewer layers or clips, reduce the steps (reduce=), store half precision (dtype=), or choose another disk."
        )


def _plans(folder: Path) -> dict[str, int]:
    """Map each description's hash that the folder's intact shards name to the number of torch threads they name."""
    found = {}
    for number in sorted(written(folder)):
        path = folder / _file(number)
        try:
            labels, _ = lazy_tensors.read(path, lazy_tensors.FORMAT, lazy_tensors.FORMAT)
            refuse_other(path, labels, _LABELS)
        except InputError:
            continue
        own = labels["harvest"]
        if 1 <= own["threads"] <= MOST_THREADS:
            found[own["plan"]] = own["threads"]
    return found


def _entries(
    number: int, span: range, cache: ActivationCache, labels: Mapping[str, Any], stored: Stored
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the index for one shard. Norms and codes belong to the clips and have no site of their own."""
    hashes = tensor_hashes(labels)
    for name in stored:
        site = Site.of(name) if name in cache.axes else None
        axes = cache.axes.get(name, ())
        outline = stored.outlines[name]
        steps, dtype = outline.shape[axes.index("step")] if "step" in axes else None, str(outline.dtype)
        yield (
            _file(number), number, name, None if site is None else site.short, None if site is None else site.layer,
            dtype.removeprefix("torch."), span.start, len(span), cache.first_step, steps, hashes[name],
        )  # fmt: skip


def _small(codes: Int[Tensor, "row codebook frame"]) -> Int[Tensor, "row codebook frame"]:
    """Return the codes in the smallest integer type that can represent them."""
    return codes.to(torch.int16 if int(codes.max()) < 2**15 else torch.int32)


def _file(number: int) -> str:
    return f"{SHARDS}/{number:06d}.safetensors"


def _damaged(path: Path, reason: object) -> DamagedError:
    words = " ".join(str(reason).removeprefix(f"{path} ").removeprefix("is damaged").strip(": ").split())[:200]
    return DamagedError(f"{path} is damaged ({words.rstrip('.')}). {AGAIN}")
