"""Apply the edits and recordings of a run at the named points of the plain decoder."""

from collections import defaultdict

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
        if edits:
            value = point.changed(value, edits, self.start)
        if wanted and run.recorder is not None:
            heads = run.recorder.heads_of(point.site)
            run.recorder.write(point.site, value if heads is None else value[:, :, list(heads)], self.start, run.layout)
        return value

    def pattern(self, hook: str, layer: int, attention: Attention, z: Tensor) -> Tensor:
        """Apply the edits at an attention pattern, and record it. Where it changed, z is recomputed from it."""
        point, run = self._point(hook, layer), self.run
        edits, wanted = point.due(self.start, self.length, run.recorder)
        if not edits and not wanted:
            return z
        query, key, mask = attention.query, attention.to.key, attention.to.mask
        heads = run.recorder.heads_of(point.site) if run.recorder is not None and wanted else None
        if heads is not None and not edits:
            query, key = query[:, list(heads)], key[:, list(heads)]
        scaling = float(run.view.config.d_head**-0.5)
        before = rearrange(attention_pattern(query, key, mask, scaling, attention.to.causal), "b h q k -> b q h k")
        after = point.changed(before, edits, self.start)
        if wanted and run.recorder is not None:
            kept = after[:, :, list(heads)] if edits and heads is not None else after
            run.recorder.write(point.site, kept, self.start, run.layout)
        if not edits:
            return z
        changed = (after != before).any(-1, keepdim=True)
        values = attention.to.value
        return torch.where(changed, einsum(after.to(values.dtype), values, "b q h k, b h k d -> b q h d"), z)

    def result(self, hook: str, layer: int, z: Tensor, projection: nn.Module, out: Tensor) -> Tensor:
        """Apply the edits at the heads' results, and record them. Where they changed, the output is their sum."""
        point, run = self._point(hook, layer), self.run
        edits, wanted = point.due(self.start, self.length, run.recorder)
        if not edits and not wanted:
            return out
        heads = run.recorder.heads_of(point.site) if run.recorder is not None and wanted else None
        matrix, bias = affine(projection, z.shape[-2] * z.shape[-1], z)
        weights = rearrange(matrix, "m (h d) -> h d m", d=z.shape[-1])
        if heads is not None and not edits:
            z, weights = z[:, :, list(heads)], weights[list(heads)]
        before = einsum(z, weights, "b s h d, h d m -> b s h m")
        after = point.changed(before, edits, self.start)
        if wanted and run.recorder is not None:
            kept = after[:, :, list(heads)] if edits and heads is not None else after
            run.recorder.write(point.site, kept, self.start, run.layout)
        if not edits:
            return out
        summed = after.sum(2) if bias is None else after.sum(2) + bias
        return torch.where((after != before).flatten(2).any(-1)[..., None], summed, out)


_NONE: frozenset[str] = frozenset()
