"""Apply the edits and recordings of a run at the named points of the plain decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from audiolens.errors import UnsupportedModelError
from audiolens.model.plain_decoder import Attention
from audiolens.model.projections import affine
from audiolens.model.site_access import attention_pattern
from audiolens.tracing.plan import Point, Run


class FastSites:
    """The sites of one run, visited in each of its forward passes. `start` is the first step of the current pass."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.points: dict[tuple[str, int | None], Point] = {(one.site.hook, one.site.layer): one for one in run.points}
        found = defaultdict[int | None, set[str]](set)
        for hook, layer in self.points:
            found[layer].add(hook)
        self._hooks = {layer: frozenset(hooks) for layer, hooks in found.items()}
        self.start, self.length = 0, 1
        self.reached: set[tuple[str, int | None]] = set()

    def finished(self) -> None:
        """Check that every site was reached.

        Raises:
            UnsupportedModelError: if one was not, so that its edits and recordings are missing.
        """
        if missed := [point.site.name for key, point in self.points.items() if key not in self.reached]:
            raise UnsupportedModelError(f"engine='fast' does not reach {missed[0]}: leave engine out.")

    def hooks(self, layer: int | None) -> frozenset[str]:
        return self._hooks.get(layer, _NONE)

    @property
    def reads_all(self) -> frozenset[int]:
        """The blocks in which some site of the cross-attention is visited, which needs the rows of both branches."""
        return frozenset(
            layer for hook, layer in self.points if layer is not None and hook.removeprefix("hook_")[:6] == "cross_"
        )

    def _point(self, hook: str, layer: int | None) -> Point:
        self.reached.add((hook, layer))
        return self.points[hook, layer]

    def visit(self, hook: str, layer: int | None, value: Tensor) -> Tensor:
        """Apply the edits at a site and record its value "batch step ...". Return the value after the edits."""
        point, run = self._point(hook, layer), self.run
        edits, wanted = point.due(self.start, self.length, run.recorder)
        point.read(value, self.start)
        if edits:
            value = point.changed(value, edits, self.start)
        if wanted and run.recorder is not None:
            heads = run.recorder.head_index(point.site, value.device)
            mine = value if heads is None else value.index_select(2, heads)
            point.record(run.recorder, mine, self.start, run.layout)
        return value

    def pattern(self, hook: str, layer: int, attention: Attention, z: Tensor) -> Tensor:
        """Apply the edits at an attention pattern, and record it. Where it changed, z is recomputed from it."""
        to, scaling = attention.to, float(self.run.view.config.d_head**-0.5)

        def pattern(heads: Heads) -> Tensor:
            query, key = (one if heads is None else one[:, heads] for one in (attention.query, to.key))
            return rearrange(attention_pattern(query, key, to.mask, scaling, to.causal), "b h q k -> b q h k")

        edited = self._recomputed(hook, layer, z, pattern)
        if edited is None:
            return z
        before, after = edited
        summed = einsum(after.to(to.value.dtype), to.value, "b q h k, b h k d -> b q h d")
        return torch.where((after != before).any(-1, keepdim=True), summed, z)

    def result(self, hook: str, layer: int, z: Tensor, projection: nn.Module, out: Tensor) -> Tensor:
        """Apply the edits at the heads' results, and record them. Where they changed, the output is their sum."""
        # An adapter's matrix takes a product to compute, so it is computed only in passes that need it, and once.
        parts = cache(partial(affine, projection, z.shape[-2] * z.shape[-1], z))

        def result(heads: Heads) -> Tensor:
            weights = rearrange(parts()[0], "m (h d) -> h d m", d=z.shape[-1])
            mine, through = (z, weights) if heads is None else (z[:, :, heads], weights[heads])
            return einsum(mine, through, "b s h d, h d m -> b s h m")

        edited = self._recomputed(hook, layer, z, result)
        if edited is None:
            return out
        (before, after), (_, bias) = edited, parts()
        summed = after.sum(2) if bias is None else after.sum(2) + bias
        return torch.where((after != before).flatten(2).any(-1)[..., None], summed, out)

    def _recomputed(
        self, hook: str, layer: int, like: Tensor, compute: Callable[[Heads], Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Apply the edits at a value "batch step head ..." that the model never stores, and record it.

        `compute` returns the value of some heads (`None`: of all), on the device of `like`. The result is the value
        before and after the edits, or `None` if no edit changes this forward pass.
        """
        point, recorder = self._point(hook, layer), self.run.recorder
        edits, wanted = point.due(self.start, self.length, recorder)
        if not edits and not wanted:
            return None
        heads = recorder.head_index(point.site, like.device) if recorder is not None and wanted else None
        before = compute(None if edits else heads)
        after = point.changed(before, edits, self.start)
        if wanted and recorder is not None:
            mine = after.index_select(2, heads) if edits and heads is not None else after
            point.record(recorder, mine, self.start, self.run.layout)
        return (before, after) if edits else None


Heads = Tensor | None
_NONE: frozenset[str] = frozenset()
