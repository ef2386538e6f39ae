"""Bind a gate to one run: read its level at every step, and decide for each row whether its interventions act."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.errors import InputError
from audiolens.gates import Gate
from audiolens.interventions import Intervention
from audiolens.model.config import LensConfig
from audiolens.model.families import Family
from audiolens.model.site_access import Form
from audiolens.model.sites import Site
from audiolens.model.timeline import Timeline
from audiolens.tracing.batching import Layout, of_branch


class BoundGate:
    """The levels and decisions of one gate in one run, for every row and step.

    Levels and decisions are kept for all steps of the clip. Every step continues from the stored step before it. A
    forward pass may therefore repeat earlier steps, as the first pass of a generation and a run without cache do.
    `origin` is the first step of the run, at which the level and the gate begin anew.
    """

    def __init__(
        self,
        gate: Gate,
        form: Form,
        *,
        config: LensConfig,
        layout: Layout,
        timeline: Timeline,
        device: torch.device,
        origin: int = 0,
    ) -> None:
        if gate.weights.shape != form.features(config):
            raise InputError(
                f"{gate.site}: the weights of the gate have shape {tuple(gate.weights.shape)}, expected "
                f"{form.features(config)} at this site."
            )
        self.gate, self.layout, self.origin = gate, layout, origin
        self.release = gate.threshold if gate.release is None else gate.release
        self.weights = gate.weights.to(device)
        self.share = -math.expm1(-1 / (gate.smoothing * timeline.frame_rate)) if gate.smoothing else 1.0
        """The share of the newest step in the average."""
        shape = len(layout.rows), timeline.steps
        self.levels = torch.zeros(shape, dtype=torch.float32, device=device)
        self.opened = torch.zeros(shape, dtype=torch.bool, device=device)

    def read(self, value: Float[Tensor, "batch step d_model"], start: int) -> None:
        """Read the steps of a forward pass that begins at step `start`, and decide for each of them."""
        window = value.detach()[:, max(0, self.origin - start) :]
        start = max(start, self.origin)
        rows = of_branch(window.unflatten(0, (self.layout.branches, -1)), self.layout.halves, "cond")
        found = rows.float() @ self.weights + self.gate.offset
        for step in range(start, min(start + found.shape[1], self.levels.shape[1])):
            level = found[:, step - start]
            before: Tensor | bool = False
            if step > self.origin:
                level = torch.lerp(self.levels[:, step - 1], level, self.share)
                before = self.opened[:, step - 1]
            self.levels[:, step] = level
            self.opened[:, step] = (level < self.gate.threshold) | (before & (level < self.release))

    def between(self, first: int, end: int) -> Bool[Tensor, "batch step"]:
        """Return the decisions for a range of steps, for the rows of both branches. Before step 0, gates are closed."""
        opened = self.opened[:, max(first, 0) : end]
        if first < 0:
            opened = torch.cat([opened.new_zeros(len(opened), -first), opened], dim=1)
        return opened.repeat(self.layout.branches, 1)


def gated_site(family: Family, config: LensConfig, gate: Gate) -> Site:
    """Return the site that a gate reads.

    Raises:
        InputError: if the site has no steps, or has not one vector per step.
    """
    found = family.find(config, gate.site, gate.layer)
    form = family.tap(found[0]).form
    if len(found) > 1 or not form.timed or len(form.order) != 3:
        raise InputError(f"{gate.site} cannot be read by a gate: expected a site with one vector per step.")
    return found[0]


def refuse_later(family: Family, config: LensConfig, interventions: Sequence[Intervention]) -> None:
    """Check that no intervention comes before the site that its gate reads.

    Raises:
        InputError: if one does, or if it is at a site without steps.
    """
    for one in interventions:
        if one.gate is None:
            continue
        read = gated_site(family, config, one.gate)
        for site in family.find(config, one.site, one.layers):
            if not family.tap(site).form.timed:
                raise InputError(f"{site.name} has no steps, so a gate cannot decide there: leave the gate out.")
            if family.order([site, read])[0] != read:
                raise InputError(
                    f"the gate reads {read.name}, which comes after {site.name}: a gate decides before the change, so "
                    f"let it read an earlier block, or change only blocks from {read.layer} on."
                )


def n_gates(interventions: Sequence[Intervention]) -> int:
    """Return the number of different gates of interventions."""
    return len({id(one.gate) for one in interventions if one.gate is not None})
