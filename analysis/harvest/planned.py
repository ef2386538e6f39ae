"""Check a harvest before it starts, divide it into shards, and compute its size on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.harvest.described import HARVEST
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_amount, checked_count, checked_seed, encodes, in_order, one_or_listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, PromptError
from audiolens.files.integrity import tensor_hash
from audiolens.model import provenance, text
from audiolens.model.provenance import prompts_hash
from audiolens.model.sites import Site
from audiolens.model.text import Prompt
from audiolens.model.timeline import Span, checked_span, clip_timeline, codes_timeline
from audiolens.model.weight_hash import content_hash
from audiolens.sound.codec import checked_codes
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import Fitting, reading_fit
from audiolens.tracing.noise import NOISE
from audiolens.tracing.recording import Reading, Recorder
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

Reduced = Literal["mean", "first", "last", "max", "eos"]
Engine = Literal["exact", "fast"]
SHARD_BYTES = 2**28
"""The largest shard that contains more than one batch."""
SHARD_BATCHES = 4
"""The most batches in a shard. An interrupted harvest loses at most one shard."""
_HEADER_BYTES = 300
"""Approximate bytes that a file's header takes for one tensor."""
_GUIDED = 3.0
"""Any guidance scale above 1 adds the null branch, whose activations do not depend on the scale."""


@guarded
@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will do, and the disk space that it will take.

    Attributes:
        rows: number of clips.
        seconds: length of each clip; 0 if only the start token is read.
        sites: full names of the sites, in the model's order.
        steps: number of recorded steps per clip; 1 if the steps are reduced.
        reduce: the reduction over time, if any.
        shard_rows: number of clips per shard.
        n_bytes: size on disk in bytes, to within a few percent.
        finished: number of clips that the folder already contains.
    """

    rows: int
    seconds: float
    sites: tuple[str, ...]
    steps: int
    reduce: str | None
    shard_rows: int
    n_bytes: int
    finished: int = 0

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // self.shard_rows)

    def __repr__(self) -> str:
        over = f"{self.steps} steps" if self.reduce is None else f"reduced to {self.reduce!r}"
        length = f"clips of {self.seconds:g} s" if self.seconds else "prompts"
        done = f"; {self.finished:,} of them are already finished" if self.finished else ""
        return (
            f"{self.rows:,} {length}, {over}, {len(self.sites)} sites: about {size_text(self.n_bytes)} in "
            f"{self.shards:,} shards of {self.shard_rows} clips{done}"
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A harvest whose arguments are checked. `source` is "generation", "codes" or "start" (the start token alone)."""

    lens: AudioLens
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...] | None
    codes: Int[Tensor, "row codebook frame"] | None
    source: str
    reading: Reading
    reduce: Reduced | None
    sampling: Sampling
    seconds: float
    batch_size: int
    engine: Engine
    sites: tuple[Site, ...]
    steps: int
    row_bytes: int

    @classmethod
    @guarded
    def of(
        cls,
        lens: AudioLens,
        prompts: Prompt | Sequence[Prompt],
        *,
        sites: str | Sequence[str],
        layers: int | Sequence[int] | None,
        seeds: int | Sequence[int] | None,
        codes: Int[Tensor, "row codebook frame"] | None,
        seconds: float,
        guidance_scale: float,
        temperature: float,
        top_k: int | None,
        branch: str,
        span: Span | None,
        reduce: Reduced | None,
        dtype: str | torch.dtype | None,
        heads: Sequence[int] | None,
        batch_size: int,
        engine: Engine,
    ) -> Prepared:
        """Check the arguments of `harvest`, and return the harvest. `harvest.plan` has no annotations of its own."""
        sampling = Sampling(guidance_scale, temperature, top_k)
        seconds = checked_amount("seconds", seconds, above=0)
        if reduce is not None and reduce not in get_args(Reduced):
            raise InputError(f"reduce={shown(reduce)}: expected one of {', '.join(get_args(Reduced))}, or None.")
        if branch not in ("cond", "null"):
            raise InputError(f"branch={shown(branch)}: expected 'cond' or 'null'; harvest one branch at a time.")
        if engine not in get_args(Engine):
            raise InputError(f"engine={shown(engine)}: expected 'exact' or 'fast'.")
        source = "codes" if codes is not None else "generation"
        if codes is None and span is None and reduce in ("first", "eos"):
            source = "start"
        listed, numbers = _rows(prompts, seeds, codes)
        _, sizes = text.checked(listed, lens.model, lens.tokenizer)
        prefix = lens.config.prefix(max(sizes))
        if source == "codes":
            codes = checked_codes(codes, lens.config, len(listed))
        timeline = (
            clip_timeline(seconds, lens.config, prefix)
            if source == "generation"
            else codes_timeline(None if codes is None else codes[:1], lens.config, prefix)
        )
        within, over = span, cast(Any, reduce)
        if reduce == "first":
            # The first step of a span is the last step of a span that ends after it.
            start = 0.0 if span is None else checked_span(span)[0]
            within, over = None if source == "start" else (start, start + 1 / lens.config.frame_rate), "last"
        reading = Reading(sites, layers, branch, within, over, "cpu", dtype, heads)
        found = tuple(lens.traced_model.family.order(lens.find_sites(sites, layers)))
        _refuse_open(lens, found)
        recorder = Recorder.of(reading, lens.traced_model, 1, timeline)
        assert recorder is not None
        steps = 1 if reduce is not None else recorder.stop - recorder.start
        row_bytes = _row_bytes(recorder, lens, steps, reduce)
        if source != "start":
            row_bytes += 2 * lens.config.n_codebooks * timeline.frames
        return cls(
            lens, listed, numbers, codes, source, reading, reduce, sampling,
            0.0 if source == "start" else timeline.seconds, whole_batch_size(batch_size), engine, found, steps,
            row_bytes,
        )  # fmt: skip

    @property
    def shard_rows(self) -> int:
        """The number of clips per shard: whole batches, so that every batch is the same in a resumed harvest."""
        fit = SHARD_BYTES // max(1, self.row_bytes * self.batch_size)
        return self.batch_size * min(SHARD_BATCHES, max(1, fit))

    def plan(self, finished: int = 0) -> HarvestPlan:
        """Return what this harvest will do."""
        names = tuple(site.name for site in self.sites)
        shards = -(-len(self.prompts) // self.shard_rows)
        letters = sum(len(prompt or "") for prompt in self.prompts)
        n_bytes = len(self.prompts) * self.row_bytes + shards * (len(names) + 2) * _HEADER_BYTES + 2 * letters
        return HarvestPlan(
            len(self.prompts), self.seconds, names, self.steps, self.reduce, self.shard_rows, n_bytes, finished
        )

    def facts(self) -> dict[str, Any]:
        """Return everything that the activations depend on, as plain values."""
        lens, reading, sampling = self.lens, self.reading, self.sampling
        drawn = {
            "seconds": self.seconds,
            "guidance_scale": sampling.guidance_scale,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "engine": self.engine,
            "noise": NOISE,
        }
        facts = {
            "format": HARVEST.format,
            "versions": provenance.versions(),
            "model": {
                "name": lens.name,
                "weights": content_hash(lens.model),
                "device": lens.device.type,
                "dtype": str(lens.dtype).removeprefix("torch."),
                "attention": str(getattr(lens.model.config, "_attn_implementation", None)),
                "threads": torch.get_num_threads(),
            },
            "settings": {
                "sites": [site.name for site in self.sites],
                "branch": reading.branch,
                "span": reading.seconds,
                "reduce": self.reduce,
                "dtype": None if reading.dtype is None else str(reading.dtype).removeprefix("torch."),
                "heads": reading.heads,
                "batch_size": self.batch_size,
                **(drawn if self.source == "generation" else {}),
            },
            "source": self.source,
            "rows": len(self.prompts),
            "shard_rows": self.shard_rows,
            "prompts": prompts_hash(self.prompts),
            "seeds": None if self.seeds is None else hashlib.sha256(json.dumps(self.seeds).encode()).hexdigest()[:16],
            "codes": None if self.codes is None else tensor_hash(self.codes.long())[:16],
        }
        return json.loads(json.dumps(facts))

    def fitting(self) -> Fitting:
        """Return what divides the batches, which several shards can share."""
        frames = 1 if self.source == "start" else round(self.seconds * self.lens.config.frame_rate)
        both = self.reading.branch != "cond" or self.source == "generation"
        return reading_fit(
            self.lens.traced_model, self.prompts, frames, rows="clips being harvested", branches=2 if both else 1
        )

    def read(
        self, rows: range, fit: Fitting | None = None
    ) -> tuple[ActivationCache, Int[Tensor, "row codebook frame"] | None]:
        """Return the activations of some clips, and the codes that the model read.

        The rows begin with a whole batch. A batch is generated and read by itself, with the same arguments as in any
        other run, so its activations are those of `run_with_cache` to the bit, unless the batch does not fit in memory.
        """
        batches = [
            range(first, min(first + self.batch_size, rows.stop))
            for first in range(rows.start, rows.stop, self.batch_size)
        ]
        parts = [found for _, found in (fit or self.fitting()).each(batches, self._read)]
        codes = [mine for _, mine in parts if mine is not None]
        return replace(joined([cache for cache, _ in parts]), reduce=self.reduce), torch.cat(codes) if codes else None

    def _read(self, batch: range) -> tuple[ActivationCache, Int[Tensor, "row codebook frame"] | None]:
        mine = self._codes(batch)
        (cache,) = self.lens.iter_cache(
            self.prompts[batch.start : batch.stop],
            mine,
            reading=self.reading,
            guidance_scale=1.0 if self.reading.branch == "cond" else _GUIDED,
            batch_size=len(batch),
            progress=False,
        )
        return cache, None if mine is None else mine.cpu()

    def _codes(self, rows: range) -> Int[Tensor, "row codebook frame"] | None:
        if self.codes is not None:
            return self.codes[rows.start : rows.stop]
        if self.source == "start":
            return None
        assert self.seeds is not None
        return self.lens.generate(
            self.prompts[rows.start : rows.stop],
            self.seconds,
            seeds=self.seeds[rows.start : rows.stop],
            sampling=self.sampling,
            engine=self.engine,
            decode=False,
        ).codes


def joined(caches: Sequence[ActivationCache]) -> ActivationCache:
    """Return the rows of several caches of the same sites in one cache."""
    if len(caches) == 1:
        return caches[0]
    first = caches[0]
    return replace(
        first,
        tensors={name: torch.cat([cache.tensors[name] for cache in caches]) for name in first.tensors},
        norms={name: torch.cat([cache.norms[name] for cache in caches]) for name in first.norms},
        prompts=tuple(prompt for cache in caches for prompt in cache.prompts),
        prefixes=tuple(length for cache in caches for length in cache.prefixes),
    )


def size_text(n_bytes: float) -> str:
    """Return a number of bytes in a unit that suits it."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def _rows(prompts: Any, seeds: Any, codes: Any) -> tuple[tuple[str | None, ...], tuple[int, ...] | None]:
    """Return the prompt and the seed of every clip."""
    listed = text.checked_prompts(prompts, None if codes is None else len(codes))
    if broken := next((prompt for prompt in listed if prompt is not None and not encodes(prompt)), None):
        raise PromptError(f"prompt {shown(broken)} contains half of a surrogate pair, which no file can hold.")
    given = one_or_listed("seeds", seeds)
    if codes is not None:
        if given is None:
            return listed, None
        numbers = [checked_seed(seed) for seed in in_order("seeds", given, "seeds")]
        if len(numbers) != len(listed):
            raise InputError(f"{len(numbers)} seeds for the codes of {len(listed)} clips: give one seed per clip.")
        return listed, tuple(numbers)
    if isinstance(given, list):
        each = [checked_seed(seed) for seed in given]
        if not each or len(set(each)) < len(each):
            raise InputError(f"seeds={shown(given)}: expected different seeds, at least one.")
        pairs = [(prompt, seed) for prompt in listed for seed in each]
    else:
        count = 1 if given is None else checked_count("seeds", given)
        checked_count("clips", len(listed) * count)
        pairs = [(prompt, row * count + draw) for row, prompt in enumerate(listed) for draw in range(count)]
    checked_count("clips", len(pairs))
    return tuple(prompt for prompt, _ in pairs), tuple(seed for _, seed in pairs)


def _refuse_open(lens: AudioLens, sites: Sequence[Site]) -> None:
    for site in sites:
        if "step" not in site.axes:
            raise InputError(
                f"site {shown(site.short)} is {lens.sites()[site.name]!r}: a harvest contains sites with one value per "
                "step, such as 'resid_post' or 'attn.z'."
            )


def _row_bytes(recorder: Recorder, lens: AudioLens, steps: int, reduce: str | None) -> int:
    """Return the size of one row's activations and norms in bytes."""
    dtype = recorder.dtype or (lens.dtype if reduce is None else torch.float32)
    total = 0
    for form in recorder.forms.values():
        sizes = [int(size or 1) for size in form.features(lens.config)]
        if recorder.heads is not None and "head" in form.axes:
            sizes[0] = len(recorder.heads)
        total += steps * prod(sizes) * dtype.itemsize
        total += 4 * prod(sizes[:-1]) if reduce == "mean" else 0
    return total
