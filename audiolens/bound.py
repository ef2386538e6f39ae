"""An intervention bound to one run: its tensors cut to the batch, its branch and rows a mask, its span steps.

The batch holds every row of the conditional branch, then (under guidance) every row of the null branch; its
`Layout` says which of the caller's rows stands where.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiolens.errors import InputError
from audiolens.families import LensConfig, Tap
from audiolens.interventions import Apply, Intervention
from audiolens.rows import Layout, checked_rows
from audiolens.timeline import Timeline


def feature_shape(tap: Tap, config: LensConfig) -> tuple[int, ...]:
    """The shape of one step of a site."""
    return {
        "residual": (config.d_model,),
        "heads": (config.n_heads, config.d_head),
        "mlp": (config.d_mlp,),
    }[tap.layout]


class Bound:
    """One intervention at one site of one run. `apply` is called at every decoder forward."""

    def __init__(
        self,
        intervention: Intervention,
        site: str,
        tap: Tap,
        *,
        config: LensConfig,
        layout: Layout,
        timeline: Timeline,
        device: torch.device,
    ) -> None:
        self.intervention = intervention
        self.site = site
        self.start, self.stop = timeline.select(intervention.seconds, intervention.prefix)
        self.branches = layout.branches
        feature = feature_shape(tap, config)
        extra = len(feature)
        rows = checked_rows(intervention.rows, layout.total)
        affected = torch.zeros(layout.total, dtype=torch.bool)
        affected[rows] = True
        strength = torch.as_tensor(intervention.strength)
        per_row = self._spread(strength, rows, layout.total, "strength")
        active = layout.of(affected & (per_row != 0)) & layout.branch(intervention.branch)
        self.active = active
        self.everything, self.anything = bool(active.all()), bool(active.any())
        self.mask = active.reshape(-1, *[1] * (extra + 1)).to(device)
        if intervention.heads is not None:
            self.mask = self.mask & self._heads(intervention.heads, tap, config).to(device)
            self.everything = False
        amount = layout.of(per_row).reshape(-1, *[1] * (extra + 1))
        self.amount = (amount if strength.ndim else strength).to(device)
        self.schedule = self._schedule(timeline, extra, device)
        self.parts = {
            name: self._place(tensor, name, feature, rows, layout).to(device)
            for name, tensor in intervention.tensors.items()
        }

    def touches(self, start: int, length: int) -> bool:
        """Whether a forward over these steps is changed at all."""
        return start < self.stop and start + length > self.start and self.anything

    def apply(self, value: Tensor, start: int) -> Tensor:
        """The value "batch step ... feature" after the intervention; `start` is the first step's position."""
        length = value.shape[1]
        first, end = max(self.start, start), min(self.stop, start + length)
        whole = first == start and end == start + length
        window = value if whole else value[:, first - start : end - start]
        changed = self._changed(window, first, end)
        if whole:
            return changed
        result = value.clone()
        result[:, first - start : end - start] = changed
        return result

    def _changed(self, window: Tensor, first: int, end: int) -> Tensor:
        if isinstance(self.intervention, Apply):
            changed = self._called(window)
        else:
            amount = self.amount
            if self.schedule is not None:
                origin = min(self.start, 0)
                amount = amount * self.schedule[:, first - origin : end - origin]
            parts = self.parts
            if "values" in parts and parts["values"].ndim == window.ndim and parts["values"].shape[1] > 1:
                values = parts["values"]
                if end - self.start > values.shape[1]:
                    raise InputError(
                        f"{self.site}: the values hold {values.shape[1]} steps, the run reached step "
                        f"{end - self.start} of the span: give a value for every step, or a shorter span."
                    )
                parts = {**parts, "values": values[:, first - self.start : end - self.start]}
            changed = self.intervention.change(window, amount, parts)
        if self.intervention.preserve_norm:
            norms = window.float().norm(dim=-1, keepdim=True)
            changed = (changed * (norms / changed.float().norm(dim=-1, keepdim=True).clamp_min(1e-12))).to(window.dtype)
        return changed if self.everything else torch.where(self.mask, changed, window)

    def _called(self, window: Tensor) -> Tensor:
        changed = window
        for half in range(self.branches):
            size = len(self.active) // self.branches
            index = half * size + self.active[half * size : (half + 1) * size].nonzero().flatten().to(window.device)
            if not len(index):
                continue
            mine = window.index_select(0, index)
            theirs = self.intervention.function(mine)  # pyright: ignore[reportAttributeAccessIssue]
            if theirs is None:
                continue
            if not isinstance(theirs, Tensor) or theirs.shape != mine.shape:
                got = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
                raise InputError(f"{self.site}: the function returned {got}, expected shape {tuple(mine.shape)}.")
            changed = changed.index_copy(0, index, theirs.to(window.dtype))
        return changed

    def _spread(self, values: Tensor, rows: Sequence[int], total: int, name: str) -> Tensor:
        """One number per row of the caller from a single number or one per affected row."""
        spread = torch.zeros(total)
        if values.ndim and len(values) != len(rows):
            raise InputError(f"{self.site}: {len(values)} values of {name} for {len(rows)} rows.")
        spread[list(rows)] = values
        return spread

    def _place(
        self, tensor: Tensor, name: str, feature: tuple[int, ...], rows: Sequence[int], layout: Layout
    ) -> Tensor:
        """A part of the intervention, shaped to broadcast against "batch step ... feature"."""
        if name in ("value", "factor"):
            if not tensor.ndim:
                return tensor
            return layout.of(self._spread(tensor, rows, layout.total, name)).reshape(-1, *[1] * (len(feature) + 1))
        free = tensor.ndim - len(feature)
        trailing = tensor.shape[max(free, 0) :]
        expected = feature[len(feature) - len(trailing) :]
        if tuple(trailing) != tuple(expected) or free > (2 if name == "values" else 1) or not tensor.ndim:
            raise InputError(
                f"{self.site}: {name} has shape {tuple(tensor.shape)}, expected {tuple(feature)} at this site, with a "
                f"leading axis of rows at most" + (" and one of steps." if name == "values" else ".")
            )
        if free <= 0:
            return tensor
        if tensor.shape[0] != len(rows):
            raise InputError(f"{self.site}: {name} holds {tensor.shape[0]} rows, the run changes {len(rows)}.")
        spread = tensor.new_zeros(layout.total, *tensor.shape[1:])
        spread[list(rows)] = tensor
        placed = layout.of(spread)
        return placed if free == 2 else placed.unsqueeze(1)

    def _heads(self, heads: Sequence[int], tap: Tap, config: LensConfig) -> Tensor:
        if tap.layout != "heads":
            raise InputError(f"heads={list(heads)}: {self.site} has no heads; use attn.hook_q, k, v or z.")
        wrong = [head for head in heads if not 0 <= head < config.n_heads]
        if wrong or not len(heads):
            raise InputError(f"heads={list(heads)}: this model has heads 0 to {config.n_heads - 1}.")
        mask = torch.zeros(1, 1, config.n_heads, 1, dtype=torch.bool)
        mask[:, :, list(heads)] = True
        return mask

    def _schedule(self, timeline: Timeline, extra: int, device: torch.device) -> Tensor | None:
        schedule = self.intervention.schedule
        if schedule is None:
            return None
        if callable(schedule):
            schedule = [float(schedule(step / timeline.frame_rate)) for step in range(timeline.steps)]
        factors = torch.as_tensor(schedule, dtype=torch.float32)
        if not bool(torch.isfinite(factors).all()):
            raise InputError(f"{self.site}: the schedule gives NaN or infinite factors.")
        if factors.ndim == 1 and len(factors) == timeline.frames:
            # The tail follows the last frame, whose codes it finishes.
            factors = torch.cat([factors, factors[-1:].expand(timeline.steps - timeline.frames)])
        if factors.shape != (timeline.steps,):
            raise InputError(
                f"{self.site}: the schedule has {tuple(factors.shape)} factors, expected one for each of the "
                f"{timeline.frames} frames (or {timeline.steps} steps, the tail included)."
            )
        # The prefix has no time, and keeps its strength.
        before = torch.ones(-min(self.start, 0))
        return torch.cat([before, factors]).reshape(1, -1, *[1] * extra).to(device)
