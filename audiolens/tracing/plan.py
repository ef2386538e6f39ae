"""Run one batch through the model under nnsight, and edit and record activations in each decoder forward pass.

Each forward pass visits only the sites where something is edited or recorded at the steps it covers (`clock.py`). If a
run stops before a block, nnsight's `stop` ends it there, and later blocks are not computed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from audiolens.errors import InputError, InputTypeError, UnsupportedModelError
from audiolens.interventions import Intervention
from audiolens.model.families import Family
from audiolens.model.site_access import Tap, View
from audiolens.model.sites import Site
from audiolens.model.timeline import Timeline
from audiolens.model.traced_model import TracedModel
from audiolens.tracing.batching import Layout
from audiolens.tracing.bound_gate import BoundGate, gated_site, refuse_later
from audiolens.tracing.bound_intervention import BoundIntervention
from audiolens.tracing.clock import Clock
from audiolens.tracing.nnsight_source import envoy_of, module_of
from audiolens.tracing.overflow import LOGITS, Watch
from audiolens.tracing.recording import Recorder, refuse_prefix

REOPEN = (
    "Another library may have replaced one of the model's forward methods: open a new lens on the model, "
    "AudioLens(model, tokenizer)."
)


@dataclass
class Point:
    """One site of one run, with nnsight's envoy for it and the edits and recordings made there.

    A forward pass is given by the model's own steps. Edits and recordings count steps from the beginning of the clip:
    in a later window of a clip, step 0 of the model is step `origin` of the clip. Positions of a prefix are negative in
    both.
    """

    site: Site
    tap: Tap
    envoy: Any
    gates: list[BoundGate] = field(default_factory=list)
    edits: list[BoundIntervention] = field(default_factory=list)
    watch: Watch | None = None
    origin: int = 0

    def pieces(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """Return the parts of a pass that are consecutive in the clip, each as (index, first step, length)."""
        if not self.origin or not self.tap.form.timed:
            return [(0, start, length)]
        if start >= 0:
            return [(0, start + self.origin, length)]
        return [(0, start, -start), (-start, self.origin, length + start)]

    def due(self, start: int, length: int, recorder: Recorder | None) -> tuple[list[BoundIntervention], bool]:
        """Return the edits that change a forward pass over these steps, and whether the pass is recorded here."""
        pieces = self.pieces(start, length)
        edits = [edit for edit in self.edits if any(edit.touches(first, count) for _, first, count in pieces)]
        wanted = recorder is not None and any(recorder.wants(self.site, first, count) for _, first, count in pieces)
        return edits, wanted

    def visit(self, start: int, length: int, recorder: Recorder | None, layout: Layout, view: View) -> None:
        """Apply the edits and record the value, for the steps of one forward pass. This runs inside a trace."""
        edits, wanted = self.due(start, length, recorder)
        if not edits and not wanted and not self.gates:
            return
        heads = recorder.heads_of(self.site) if recorder is not None and wanted else None
        value, put = self.tap.open(self.envoy, view if edits or heads is None else replace(view, heads=heads))
        if self.tap.form.timed and value.shape[1] != length:
            raise UnsupportedModelError(
                f"{self.site.name} has {value.shape[1]} steps in a forward pass of {length} ({-min(start, 0)} of them "
                f"before step 0): transformers {version('transformers')} does not run this model as the lens expects. "
                "Install a release that audiolens supports (docs/versions.md)."
            )
        self.read(value, start)
        value = self.changed(value, edits, start)
        if edits:
            put(value, None)
        if wanted and recorder is not None:
            index = recorder.head_index(self.site, value.device) if edits else None
            self.record(recorder, value if index is None else value.index_select(2, index), start, layout)

    def read(self, value: Tensor, start: int) -> None:
        """Let the gates read a value "batch step ..." before it is changed."""
        for gate in self.gates:
            for index, first, count in self.pieces(start, value.shape[1]):
                gate.read(value[:, index : index + count], first)

    def changed(self, value: Tensor, edits: Sequence[BoundIntervention], start: int) -> Tensor:
        """Return a value "batch step ..." after the edits, which are watched for overflow."""
        if not edits:
            return value
        pieces = self.pieces(start, value.shape[1])
        if len(pieces) == 1:
            return self._changed(value, edits, pieces[0][1])
        parts = [
            self._changed(
                value[:, index : index + count], [edit for edit in edits if edit.touches(first, count)], first
            )
            for index, first, count in pieces
        ]
        return torch.cat(parts, dim=1)

    def _changed(self, value: Tensor, edits: Sequence[BoundIntervention], start: int) -> Tensor:
        for edit in edits:
            value = edit.apply(value, start if self.tap.form.timed else 0)
        if edits and self.watch is not None:
            seen = value if self.tap.form.timed else value.flatten(1)[:, None]
            self.watch.wrote(self.site, seen, start, min([edit.start for edit in edits]))
        return value

    def record(self, recorder: Recorder, value: Tensor, start: int, layout: Layout) -> None:
        """Record a value "batch step ..." of a forward pass that begins at a step."""
        for index, first, count in self.pieces(start, value.shape[1]):
            if recorder.wants(self.site, first, count):
                recorder.write(self.site, value[:, index : index + count], first, layout)


class Run:
    """The plan of one batch: the sites to visit in every decoder forward pass, in the model's order."""

    def __init__(
        self,
        traced: TracedModel,
        *,
        layout: Layout,
        timeline: Timeline,
        interventions: Iterable[Intervention],
        recorder: Recorder | None,
        stop: int | None = None,
        origin: int = 0,
    ) -> None:
        self.layout, self.recorder, self.origin = layout, recorder, origin
        self.seen, self.ended = 0, None
        """The step up to which every site was visited, and the error that ended the visits, if any."""
        family, config, model = traced.family, traced.config, traced.nnsight
        self.view = View(config, layout.branches * len(layout.rows))
        self.decoder = model.get(family.decoder)
        self.clock = Clock(self.decoder, layout.prefix)
        # The run stops at the input of this module: a block or, after the last block, the final norm.
        self.gate = None
        self.end = ""
        if stop is not None:
            whole = stop == config.n_layers
            path = family.body_norm if whole else f"{family.body_blocks}.{stop}"
            self.gate = model.get(f"{family.decoder}.{path}")
            self.end = f"blocks.{stop - 1}.hook_resid_post" if whole else f"blocks.{stop}.hook_resid_pre"
        points: dict[Site, Point] = {}

        def point(site: Site) -> Point:
            if site not in points:
                points[site] = Point(site, family.tap(site), envoy_of(model, family, site), origin=origin)
            return points[site]

        placed = {"config": config, "layout": layout, "timeline": timeline, "device": traced.device}
        gates: dict[int, BoundGate] = {}
        for intervention in interventions:
            gate = intervention.gate
            if gate is not None and id(gate) not in gates:
                site = gated_site(family, config, gate)
                gates[id(gate)] = BoundGate(gate, family.tap(site).form, origin=origin, **placed)
                if not beyond(family, site, stop):
                    point(site).gates.append(gates[id(gate)])
            for site in family.find(config, intervention.site, intervention.layers):
                # An intervention is checked even if the run stops before its site.
                edit = BoundIntervention(
                    intervention.at_layer(site.layer),
                    site.name,
                    family.tap(site).form,
                    gate=None if gate is None else gates[id(gate)],
                    **placed,
                )
                if not beyond(family, site, stop):
                    point(site).edits.append(edit)
        for site in recorder.sites if recorder is not None else ():
            point(site)
        self.gates = [*gates.values()]
        self.points = [points[site] for site in family.order(points)]
        read = [self.decoder._module, *([] if self.gate is None else [self.gate._module])]
        self.modules = [] if self.idle else [*read, *(module_of(model, family, site) for site in points)]
        """The modules that nnsight has to intercept."""
        edits = [edit.intervention for one in self.points for edit in one.edits]
        replaced = any(edit.overwrites for edit in edits)
        self.watch = Watch(layout, timeline.frame_rate, replaced, origin=origin) if edits else None
        for one in self.points:
            one.watch = self.watch

    @property
    def idle(self) -> bool:
        return not self.points and self.gate is None

    @property
    def forbids(self) -> bool:
        """Whether logits are edited. An edit of the logits can forbid a code with -inf."""
        return any(point.edits and point.site.hook == LOGITS for point in self.points)

    def forward(self) -> int:
        """Visit the sites of one decoder forward pass and return the step after it. This runs inside a trace."""
        start, length = self.clock.tick()
        for one in self.points:
            one.visit(start, length, self.recorder, self.layout, self.view)
        return start + length

    def single(self, tracer: Any, kept: list[Tensor]) -> None:
        """Run one forward pass; store its logits, or the residual stream where it stops. This runs inside a trace."""
        self.forward()
        if self.gate is not None:
            kept.append(self.gate.input)
            tracer.stop()
        kept.append(tracer.result.logits)

    def generation(self, tracer: Any, steps: int) -> None:
        """Visit all forward passes of a generation. This runs inside a trace, and `finished` checks that no forward
        pass was missed."""
        try:
            for _ in tracer.iter[:]:
                self.seen = self.forward()
                if self.seen >= steps:
                    return
        except OutOfOrderError as error:
            # nnsight raises this error if the model runs no further forward pass or does not reach a site. Neither is
            # harmless: `seen` is then less than `steps`, so `finished` raises an error.
            self.ended = error

    def finished(self, steps: int) -> None:
        """Check that the run visited every step.

        Raises:
            UnsupportedModelError: if the model computed steps that were not visited and therefore not edited.
        """
        if not self.idle and self.seen < steps:
            raise UnsupportedModelError(
                f"the model made {steps} steps, but the lens saw {max(self.seen, 0)} of them: edits and "
                f"recordings of the others are missing. {REOPEN}"
            ) from self.ended


def beyond(family: Family, site: Site, stop: int | None) -> bool:
    """Whether a run that stops before block `stop` does not reach a site. With `None`, the run reaches every site."""
    if stop is None:
        return False
    if site.layer is None:
        return family.order([site, Site("hook_resid_pre", 0)])[-1] == site
    return site.layer >= stop


def checked_interventions(
    interventions: Intervention | Iterable[Intervention], traced: TracedModel, guided: bool
) -> tuple[Intervention, ...]:
    """Return the interventions as a tuple. If one of them cannot be applied to this model, raise an error before the
    model runs."""
    many = isinstance(interventions, Iterable)
    listed: tuple[Any, ...] = tuple(interventions) if many else (interventions,)
    for intervention in listed:
        if not isinstance(intervention, Intervention):
            raise InputTypeError(
                f"{type(intervention).__name__} is not an intervention: use Add, Ablate, ... (join lists with +)."
            )
        if intervention.branch == "null" and not guided:
            raise InputError("branch='null' needs guidance: without it (guidance_scale=1) there is only 'cond'.")
        if intervention.prefix:
            refuse_prefix(traced.config, "prefix=True")
        traced.family.find(traced.config, intervention.site, intervention.layers)
    refuse_later(traced.family, traced.config, listed)
    refuse_foreign(listed, traced)
    return listed


def refuse_foreign(interventions: Iterable[Intervention], traced: TracedModel) -> None:
    """Reject vectors that were read from another model.

    Raises:
        InputError: if the models differ; the message names both models and the difference.
    """
    metas = [meta for one in interventions for meta in (one.meta, one.gate and one.gate.meta)]
    known = {id(meta): meta for meta in metas if meta is not None}
    for meta in known.values():
        meta.refuse_other(traced)
