"""Record the activations of many clips to a folder, shard by shard, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.distributed.opening import check_ray
from analysis.distributed.settings import Ray
from analysis.harvest import described, shards
from analysis.harvest.opened import Harvest
from analysis.harvest.planned import Engine, HarvestPlan, Prepared, Reduced
from analysis.harvest.reading import read_all, read_elsewhere
from analysis.store.threads import threads
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_flags
from audiolens.door import guarded
from audiolens.files.atomic import as_path
from audiolens.groups import loosened, takes
from audiolens.model.text import Prompt
from audiolens.model.timeline import Span
from audiolens.model.tokens import named_once
from audiolens.tracing.recording import Reading
from audiolens.tracing.sampling import SECONDS, Sampling

if TYPE_CHECKING:
    from audiolens.lens import AudioLens


@guarded
@named_once
@takes("reading", Reading, seconds="span")
@takes("sampling", Sampling)
def harvest(
    lens: AudioLens,
    prompts: Prompt | Sequence[Prompt],
    sites: str | Sequence[str] = "resid_post",
    layers: int | Sequence[int] | None = None,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] | None = None,
    codes: Int[Tensor, "row codebook frame"] | None = None,
    seconds: float = SECONDS,
    guidance_scale: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    branch: str = "cond",
    span: Span | None = None,
    reduce: Reduced | None = None,
    dtype: str | torch.dtype | None = None,
    heads: Sequence[int] | None = None,
    batch_size: int = 32,
    engine: Engine = "exact",
    ray: Ray | None = None,
    verify: bool = False,
    progress: bool = True,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    sampling: Sampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> Harvest:
    """Record activations of many clips in a folder, and return the opened folder.

    Each batch of clips is generated (unless `codes` are given), and the model then reads its codes once, as in
    `run_with_cache`. Only one shard is in memory at a time, whatever the number of clips. If the harvest is interrupted
    at any moment, repeating the call resumes it, and gives the same files as an uninterrupted one. Every shard is also
    a file of an `ActivationCache`.

    Args:
        prompts: one text per clip, or `None` for no prompt.
        sites, layers, heads: the sites to record, as in `run_with_cache`. A site must have one value per step.
        out: a new folder, or one with a part of the same harvest.
        seeds: the number of clips per prompt (default: 1; no two clips share a seed), or a list of seeds that every
            prompt uses. With `codes`, one seed per clip, which is only kept in the table of the clips.
        codes: undelayed codes of one clip per prompt, to read instead of generated clips.
        seconds, guidance_scale, temperature, top_k, engine: how the clips are generated, as in `lens.generate`.
        branch: the guidance branch to read, "cond" or "null".
        span: record only these steps, (from, to) in seconds. By default every step is recorded, with the tail.
        reduce: "mean", "first", "last" or "max" over the steps of the span (without the tail), or "eos" (MusicGen
            Melody). Without a span, "first" and "eos" precede all music, so nothing is generated.
        dtype: dtype in which to store the activations, such as "float16" (default: their own; float32 if reduced).
        batch_size: number of clips that the model generates and reads at once. It is a part of the harvest, because
            other batches can differ in the last bits.
        ray: a Ray cluster whose workers generate and read whole shards (`analysis.distributed.Ray`), as in
            `analysis.sweep.play`. This process alone writes, and the files are those of a harvest without it. Up to two
            shards per worker, of 256 MB each unless a batch is larger, wait in the memory of the cluster.
        verify: check every tensor that the folder already contains against its hash, and harvest damaged shards again.
            By default only the header and the size of each shard are checked, and a tensor is checked when it is read.
        progress: show a progress bar.
        reading: a `Reading` that replaces `sites`, `layers`, `heads`, `branch`, `span`, `reduce` and `dtype`.
        sampling: a `Sampling` that replaces guidance_scale, temperature, top_k and, if it sets a length, seconds.

    Raises:
        InputError: (or a subclass) if values are out of range, if the folder contains another harvest or anything else,
            if the disk has too little room, or if the Ray cluster does not answer or its workers cannot open the same
            model. The error is raised before the model runs.
        BusyError: if another process is harvesting into the folder.
        StoppedError: if the folder was removed in the meantime, or if the workers on a Ray cluster died again and
            again. Finished shards are kept.
    """
    checked_flags(verify=verify, progress=progress)
    check_ray(None, ray)
    place = as_path(out)
    described.check(place)
    asked = Prepared.of(
        lens, prompts, sites=sites, layers=layers, seeds=seeds, codes=codes, seconds=seconds,
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, branch=branch, span=span, reduce=reduce,
        dtype=dtype, heads=heads, batch_size=batch_size, engine=engine,
    )  # fmt: skip
    n_bytes = asked.plan().n_bytes
    # A harvest that fills no disk is refused before its folder is created.
    if not place.exists():
        shards.refuse_full(place, n_bytes)
    with shards.opened(place, asked.facts(), n_bytes, values=verify) as kept, threads(kept.threads):
        todo = {number: kept.span(number) for number in sorted(frozenset(range(kept.count)) - {*kept.done})}
        with tqdm(desc="harvesting", unit="clip", total=kept.rows, initial=kept.finished, disable=not progress) as bar:

            def keep(number: int, cache: ActivationCache, codes: Tensor | None) -> None:
                rows = kept.span(number)
                kept.keep(number, cache, codes, None if asked.seeds is None else asked.seeds[rows.start : rows.stop])
                bar.update(len(rows))

            if ray is None or not todo:
                read_all(asked, todo, keep)
            else:
                read_elsewhere(asked, todo, keep, ray, kept.remains, tell=progress)
        kept.close(changed=bool(todo))
    return Harvest.load(place)


@guarded
@named_once
def plan(
    lens: AudioLens,
    prompts: Prompt | Sequence[Prompt],
    sites: str | Sequence[str] = "resid_post",
    layers: int | Sequence[int] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **asked: Any,
) -> HarvestPlan:
    """Return what `harvest` would do with these arguments and how much disk space it would take. Nothing is written.

    Raises:
        InputError: in the same cases as in `harvest`, for example if the folder contains another harvest.
    """
    place = None if out is None else as_path(out)
    values = _loose(lens, prompts, sites, layers, out=out, **asked)
    checked_flags(verify=values.pop("verify"), progress=values.pop("progress"))
    check_ray(None, values.pop("ray"))
    prepared = Prepared.of(**values)
    if place is None:
        return prepared.plan()
    described.check(place)
    shards.refuse_begun(place, facts := prepared.facts())
    return prepared.plan(shards.Shards.of(place, facts).finished)


def _loose(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of `harvest`, with its defaults and without `out` and the groups."""
    bound = signature(harvest).bind(*args, **loosened(harvest, *args, **kwargs))
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name not in ("out", "reading", "sampling")}
