"""Restrict a cache to some rows, steps, layers or sites, or move it, without reading stored tensors.

This module implements the corresponding methods of `ActivationCache`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from audiolens.cache.lazy_tensors import changed, outlines, some
from audiolens.checks import shown
from audiolens.errors import InputError, SiteError, nearest, shortened
from audiolens.interventions import checked_rows
from audiolens.model.devices import checked_device, checked_dtype
from audiolens.model.sites import Site, named, names_once
from audiolens.model.timeline import Span, checked_span

if TYPE_CHECKING:
    from audiolens.cache.activation_cache import ActivationCache


def of_rows(cache: "ActivationCache", rows: Sequence[int]) -> "ActivationCache":
    """See `ActivationCache.rows`."""
    chosen = checked_rows(rows, _row_count(cache))
    index = torch.tensor(chosen, device="cpu")

    def pick(tensor: Tensor, name: str) -> Tensor:
        return tensor.index_select(cache.axes[name].index("row"), index.to(tensor.device))

    return replace(
        cache,
        tensors=changed(cache.tensors, pick),
        norms=changed(cache.norms, pick),
        prompts=tuple(cache.prompts[row] for row in chosen) if cache.prompts else (),
        prefixes=tuple(cache.prefixes[row] for row in chosen) if cache.prefixes else (),
    )


def of_seconds(cache: "ActivationCache", span: Span) -> "ActivationCache":
    """See `ActivationCache.seconds`."""
    if cache.reduce is not None:
        raise InputError(f"this cache was reduced over time ({cache.reduce}): it has no steps to choose from.")
    start, stop = checked_span(span)
    first, end = round(start * cache.frame_rate), round(stop * cache.frame_rate)
    times = {name: axes.index(time) for name, axes in cache.axes.items() if (time := _time(axes))}
    steps = {outlines(cache.tensors)[name].shape[axis] for name, axis in times.items()}
    if first >= end or first < cache.first_step or any(end > cache.first_step + count for count in steps):
        raise InputError(f"seconds={span} is not inside the recorded steps.")

    def cut(tensor: Tensor, name: str) -> Tensor:
        return tensor.narrow(times[name], first - cache.first_step, end - first) if name in times else tensor

    return replace(cache, first_step=first, tensors=changed(cache.tensors, cut))


def of_layers(cache: "ActivationCache", layers: int | Sequence[int] | None) -> "ActivationCache":
    """See `ActivationCache.at_layers`."""
    places = {name: Site.of(name).layer for name in cache.tensors}
    held = sorted({layer for layer in places.values() if layer is not None})
    if layers is None:
        return cache
    chosen = cache.numbered(layers)
    if not chosen:
        raise SiteError(f"no layer given: the cache contains layers {held}.")
    absent = [layer for layer in chosen if layer not in held]
    if absent:
        raise SiteError(f"nothing was recorded at layer {absent[0]}: the cache contains layers {held}.")
    return _of_names(cache, [name for name, layer in places.items() if layer is None or layer in chosen])


def of_sites(cache: "ActivationCache", sites: object, path: object) -> "ActivationCache":
    """Restrict the cache in a file to the sites with these full or short names."""
    names = list(cache.tensors)
    found: set[str] = set()
    for site in names_once("sites", sites):
        asked = named(site)
        mine = [name for name in names if asked.name in (name, Site.of(name).hook)]
        if not mine:
            raise SiteError(
                f"{path} does not contain {shown(site)}.{nearest(asked.name, names)} It contains: {shortened(names)}."
            )
        found.update(mine)
    return _of_names(cache, [name for name in names if name in found])


def moved(cache: "ActivationCache", device: Any, dtype: str | torch.dtype | None) -> "ActivationCache":
    """See `ActivationCache.to`."""
    target = None if device is None else checked_device(device)
    kind = checked_dtype(dtype)

    def move(tensor: Tensor, cast: torch.dtype | None) -> Tensor:
        # A tensor on the meta device has no values to move.
        return tensor if tensor.is_meta else tensor.to(device=target, dtype=cast)

    return replace(
        cache,
        tensors=changed(cache.tensors, lambda tensor, _: move(tensor, kind)),
        norms=changed(cache.norms, lambda tensor, _: move(tensor, None)),
    )


def _of_names(cache: "ActivationCache", names: Sequence[str]) -> "ActivationCache":
    return replace(
        cache,
        tensors=some(cache.tensors, names),
        axes={name: cache.axes[name] for name in names},
        norms=some(cache.norms, [name for name in names if name in cache.norms]),
    )


def _row_count(cache: "ActivationCache") -> int:
    for name, outline in outlines(cache.tensors).items():
        return outline.shape[cache.axes[name].index("row")]
    return len(cache.prompts)


def _time(axes: Iterable[str]) -> str | None:
    """The name of the time axis: "query" in a pattern, "step" elsewhere."""
    return next((axis for axis in ("step", "query") if axis in axes), None)
