"""Bind an intervention to one run.

The intervention's tensors are sliced to the batch, its branch and rows become a mask, and its time range becomes a
range of steps.

A batch contains every row of one guidance branch, then (under guidance) every row of the other branch. Its `Layout`
gives the order of the branches and the caller's row numbers. Values have the run's axis order (`model/site_access.py`).
The user's axis order is used only for values that the user gives and for calls of the user's function.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Intervention, Operand, checked_rows
from audiolens.model.config import LensConfig
from audiolens.model.site_access import Form
from audiolens.model.sites import checked_heads
from audiolens.model.timeline import Timeline
from audiolens.tracing.batching import Layout
from audiolens.tracing.bound_gate import BoundGate


class BoundIntervention:
    """One intervention at one site of one run. `apply` is called in every forward pass that it has to change."""

    def __init__(
        self,
        intervention: Intervention,
        site: str,
        form: Form,
        *,
        config: LensConfig,
        layout: Layout,
        timeline: Timeline,
        device: torch.device,
        gate: BoundGate | None = None,
    ) -> None:
        self.intervention, self.gate = intervention, gate
        self.site = site
        self.form = form
        self.start, self.stop = self._span(timeline)
        # Shorter prefixes are left-padded to the longest, so their first keys are skipped.
        self.unkeyed = timeline.prefix - layout.prefix
        extra = len(form.features(config))
        rows = checked_rows(intervention.rows, layout.total)
        affected = torch.zeros(layout.total, dtype=torch.bool, device="cpu")
        affected[rows] = True
        strength = torch.as_tensor(intervention.strength, device="cpu")
        per_row = self._spread(strength, rows, layout.total, "strength")
        active = layout.of(affected & (per_row != 0)) & layout.branch(intervention.branch)
        self.everything, self.anything = bool(active.all()), bool(active.any())
        of_branches = active.unflatten(0, (layout.branches, -1)).sum(1).tolist()
        self.called_rows = [part.to(device) for part in active.nonzero().flatten().split(of_branches) if len(part)]
        """The affected batch rows of each branch, for which a function of the user is called separately."""
        change = type(intervention).change
        self.runs_users_code = intervention.called is not None or not change.__module__.startswith("audiolens.")
        self.mask = active.reshape(-1, *[1] * (extra + 1)).to(device)
        if intervention.heads is not None:
            self.mask = self.mask & self._heads(intervention.heads, config).to(device)
            self.everything = False
        amount = layout.of(per_row).reshape(-1, *[1] * (extra + 1))
        self.amount = (amount if strength.ndim else strength).to(device)
        self.schedule = self._schedule(timeline, extra, device)
        given = intervention.operands
        self.sequences = {
            name for name, part in given.items() if part.kind == "values" and part.tensor.ndim == extra + 2
        }
        """The names of the intervention's tensors that have a separate value at every step (or token)."""
        self.keyed = {name for name, part in given.items() if part.kind != "per row"}
        self.parts = {name: self._shaped(part, name, config, rows, layout).to(device) for name, part in given.items()}
        if form.timed:
            # Too few values raise an error before the run rather than during it.
            self._enough(self.stop - self.start, "step")
        if form.square:
            # The number of keys grows to the length of the clip, so the values must be enough for all of them.
            self._fitted(layout.prefix + timeline.steps)

    def _enough(self, length: int, unit: str) -> None:
        for name in self.sequences:
            held = self.parts[name].shape[1]
            if held < length:
                raise InputError(
                    f"{self.site}: {held} {unit}s in {name}, but the span has {length}: give one value for every "
                    f"{unit}, or a shorter span."
                )

    @property
    def is_steady(self) -> bool:
        """Whether the intervention does the same at every step of its span, with values of the same shape."""
        timed = self.form.timed and bool(self.sequences)
        varies = self.schedule is not None or self.gate is not None
        return not (self.runs_users_code or timed or self.form.square or varies)

    def touches(self, start: int, length: int) -> bool:
        """Whether the intervention changes a forward pass over these steps. At sites without steps, it changes all."""
        return self.anything and (not self.form.timed or (start < self.stop and start + length > self.start))

    def apply(self, value: Tensor, start: int) -> Tensor:
        """Return the value "batch step ... feature" after the intervention; `start` is the value's first step."""
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
        if self.intervention.called is not None:
            changed = self._called(window, self.intervention.called)
        else:
            amount = self.amount
            if self.schedule is not None:
                origin = min(self.start, 0)
                amount = amount * self.schedule[:, first - origin : end - origin]
            parts = self._fitted(window.shape[-1])
            if self.sequences and not self.form.timed:
                self._enough(end - self.start, "token")
            for name in self.sequences:
                parts = {**parts, name: parts[name][:, first - self.start : end - self.start]}
            changed = self.intervention.change(window, amount, parts)
        if self.intervention.preserve_norm:
            norms = window.float().norm(dim=-1, keepdim=True)
            changed = (changed * (norms / changed.float().norm(dim=-1, keepdim=True).clamp_min(1e-12))).to(window.dtype)
        if self.gate is not None:
            opened = self.gate.between(first, end)
            return torch.where(self.mask & opened.reshape(*opened.shape, *[1] * (window.ndim - 2)), changed, window)
        return changed if self.everything else torch.where(self.mask, changed, window)

    def _called(self, window: Tensor, function: Callable[[Tensor], Tensor | None]) -> Tensor:
        changed = window
        for rows in self.called_rows:
            index = rows.to(window.device)
            mine = self.form.turned(window.index_select(0, index))
            theirs = function(mine)
            if theirs is None:
                # The function may have written into its argument, which is a copy.
                theirs = mine
            if not isinstance(theirs, Tensor) or theirs.shape != mine.shape:
                got = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
                raise InputError(f"{self.site}: the function returned {got}, expected shape {tuple(mine.shape)}.")
            changed = changed.index_copy(0, index, self.form.turned(theirs).to(window.dtype))
        return changed

    def _fitted(self, width: int) -> dict[str, Tensor]:
        """Return the parts, cut to the keys of an attention pattern that are neither padding nor later steps."""
        if self.form.order[-1] != "key":
            return self.parts
        fitted = {}
        for name, part in self.parts.items():
            keyed = name in self.keyed
            first = self.unkeyed if self.form.square else 0
            if keyed and part.shape[-1] < first + width:
                raise InputError(
                    f"{self.site}: {part.shape[-1]} keys in {name}, but the pattern has {first + width}: give one "
                    "value per key."
                )
            fitted[name] = part[..., first : first + width] if keyed else part
        return fitted

    def _span(self, timeline: Timeline) -> tuple[int, int]:
        """Return the range of steps to change. At a site without steps, the range covers every token."""
        if self.form.timed:
            return timeline.select(self.intervention.seconds, self.intervention.prefix)
        if self.intervention.seconds is not None or self.intervention.schedule is not None:
            raise InputError(
                f"{self.site} has no steps, since the text applies to the whole clip: leave out seconds and schedule."
            )
        return 0, sys.maxsize

    def _spread(self, values: Tensor, rows: Sequence[int], total: int, name: str) -> Tensor:
        """Expand a single number, or one number per affected row, to one number per row of the caller."""
        spread = torch.zeros(total, dtype=torch.float32, device="cpu")
        if values.ndim and len(values) != len(rows):
            raise InputError(f"{self.site}: {len(values)} values of {name} for {len(rows)} rows: give one per row.")
        spread[list(rows)] = values
        return spread

    def _shaped(self, part: Operand, name: str, config: LensConfig, rows: Sequence[int], layout: Layout) -> Tensor:
        """Reshape a part of the intervention so that it broadcasts against "batch step ... feature"."""
        feature, tensor, values = self.form.features(config), part.tensor, part.kind == "values"
        if part.kind == "per row":
            if not tensor.ndim:
                return tensor
            return layout.of(self._spread(tensor, rows, layout.total, name)).reshape(-1, *[1] * (len(feature) + 1))
        free = tensor.ndim - len(feature)
        given = self.form.turned(tensor) if free == 2 else tensor
        trailing = given.shape[max(free, 0) :]
        wanted = feature[len(feature) - len(trailing) :]
        # Size 1 along the head (or codebook) axis means that all heads (or codebooks) share one value.
        alike = [*[1] * (len(trailing) - 1), None]
        fits = tensor.ndim > 0 and all(
            size in (own, None) or own == one for own, size, one in zip(trailing, wanted, alike, strict=True)
        )
        if not fits or free > (2 if values else 1):
            most = self.form.described(config) if values else f"(row, {', '.join(self.form.order[2:])})"
            raise InputError(
                f"{self.site}: {name} has shape {tuple(tensor.shape)}, expected the last axes of "
                f"{self._features(config)} at this site, or at most {most}."
            )
        if not free and len(feature) > 1 and tensor.shape[0] == len(rows) > 1:
            raise self._ambiguous(name, tensor)
        tensor = given
        if free <= 0:
            return tensor
        if free == 1 and len(feature) > 1 and tensor.shape[0] == 1:
            tensor = tensor.expand(len(rows), *tensor.shape[1:])
        if tensor.shape[0] != len(rows):
            raise InputError(
                f"{self.site}: {tensor.shape[0]} rows in {name}, but the run changes {len(rows)}: give one per row."
            )
        spread = tensor.new_zeros(layout.total, *tensor.shape[1:])
        spread[list(rows)] = tensor
        placed = layout.of(spread)
        return placed if free == 2 else placed.unsqueeze(1)

    def _ambiguous(self, name: str, tensor: Tensor) -> InputError:
        """Return the error for a first axis whose size fits both the heads (or codebooks) and the rows."""
        outer, inner = self.form.order[2:]
        return InputError(
            f"{self.site}: {name} of shape {tuple(tensor.shape)} may be ({outer}, {inner}) or (row, {inner}): give "
            f"(row, {outer}, {inner}), with size 1 along an axis where all values are the same."
        )

    def _features(self, config: LensConfig) -> str:
        sizes = zip(self.form.order[2:], self.form.features(config), strict=True)
        return "(" + ", ".join(axis if size is None else f"{axis}={size}" for axis, size in sizes) + ")"

    def _heads(self, heads: Sequence[int], config: LensConfig) -> Tensor:
        if "head" not in self.form.axes:
            raise InputError(
                f"heads={list(heads)}: {self.site} has no heads; use attn.hook_q, k, v, z, pattern, result."
            )
        mask = torch.zeros(1, 1, config.n_heads, 1, dtype=torch.bool, device="cpu")
        mask[:, :, list(checked_heads(heads, config.n_heads))] = True
        return mask

    def _schedule(self, timeline: Timeline, extra: int, device: torch.device) -> Tensor | None:
        schedule = self.intervention.schedule
        if schedule is None:
            return None
        if callable(schedule):
            try:
                schedule = [float(schedule(step / timeline.frame_rate)) for step in range(timeline.steps)]
            except (TypeError, ValueError) as error:
                raise InputTypeError(
                    f"{self.site}: the schedule does not return a number for a time in seconds ({error})."
                ) from None
        factors = torch.as_tensor(schedule, dtype=torch.float32, device="cpu")
        if not bool(torch.isfinite(factors).all()):
            raise InputError(f"{self.site}: the schedule has factors that are NaN or infinite in float32.")
        if factors.ndim == 1 and len(factors) == timeline.frames:
            # The tail completes the codes of the last frame, so it uses that frame's factor.
            factors = torch.cat([factors, factors[-1:].expand(timeline.steps - timeline.frames)])
        if factors.shape != (timeline.steps,):
            raise InputError(
                f"{self.site}: the schedule has shape {tuple(factors.shape)}, expected one factor for each of the "
                f"{timeline.frames} frames (or {timeline.steps} steps, including the tail)."
            )
        # A prefix has no time in seconds, so the schedule does not scale the strength there.
        before = torch.ones(-min(self.start, 0), dtype=torch.float32, device="cpu")
        return torch.cat([before, factors]).reshape(1, -1, *[1] * extra).to(device)
