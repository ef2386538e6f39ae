"""One run of the model under nnsight: the clock, and what is edited and recorded at each decoder forward.

The clock is the absolute position: every forward starts by reading what the position embedding was given, the new
columns and the length already cached. It is therefore the same with and without the key-value cache, and for
`generate`, whose first forward transformers runs twice. Counting calls would be off by one there.

A forward reads only the sites where something is edited or recorded at these very steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from audiolens.bound import Bound
from audiolens.errors import InputError
from audiolens.families import Family, LensConfig, Tap, order, places, tap_of
from audiolens.interventions import Intervention
from audiolens.overflow import Watch
from audiolens.recording import Recorder
from audiolens.rows import Layout
from audiolens.sites import Site
from audiolens.timeline import Timeline


@dataclass
class Point:
    """One site of one run: where nnsight serves it, and what happens there."""

    site: Site
    tap: Tap
    envoy: Any
    edits: list[Bound] = field(default_factory=list)
    watch: Watch | None = None

    def read(self) -> Any:
        return self.envoy.input if self.tap.port == "input" else self.envoy.output

    def visit(self, start: int, length: int, recorder: Recorder | None, layout: Layout, config: LensConfig) -> None:
        """Edit and record the steps of one forward."""
        edits = [edit for edit in self.edits if edit.touches(start, length)]
        wanted = recorder is not None and recorder.wants(self.site, start, length)
        if not edits and not wanted:
            return
        served = self.read()
        value = served if self.tap.item is None else served[self.tap.item]
        heads = self.tap.layout == "heads"
        current = rearrange(value, "b s (h d) -> b s h d", h=config.n_heads) if heads else value
        for edit in edits:
            current = edit.apply(current, start)
        if edits and self.watch is not None:
            self.watch.wrote(self.site.name, current, start)
        if edits:
            self._write(served, value, rearrange(current, "b s h d -> b s (h d)") if heads else current)
        if wanted and recorder is not None:
            recorder.write(self.site, current, start, layout)

    def _write(self, served: Any, value: Tensor, changed: Tensor) -> None:
        if self.tap.in_place:
            value.copy_(changed)
            return
        self.tap.hand_back(self.envoy, served, changed)


class Run:
    """The plan of one batch: the points to visit, in the model's order, at every decoder forward."""

    def __init__(
        self,
        model: Any,
        family: Family,
        config: LensConfig,
        *,
        layout: Layout,
        timeline: Timeline,
        interventions: Iterable[Intervention],
        recorder: Recorder | None,
        device: torch.device,
    ) -> None:
        self.config, self.layout, self.recorder = config, layout, recorder
        decoder = model.get(family.decoder)
        self.clock = decoder.get(family.clock)
        points: dict[Site, Point] = {}

        def point(site: Site) -> Point:
            if site not in points:
                tap = tap_of(family, site)
                block = decoder if site.layer is None else decoder.layers[site.layer]
                points[site] = Point(site, tap, block.get(tap.module) if tap.module else block)
            return points[site]

        for intervention in interventions:
            for site in places(family, config, intervention.site, intervention.layers):
                edit = Bound(
                    intervention,
                    site.name,
                    tap_of(family, site),
                    config=config,
                    layout=layout,
                    timeline=timeline,
                    device=device,
                )
                point(site).edits.append(edit)
        for site in recorder.places if recorder is not None else ():
            point(site)
        self.points = [points[site] for site in order(family, points)]
        self.watch = Watch(layout, timeline.frame_rate) if any(place.edits for place in self.points) else None
        for place in self.points:
            place.watch = self.watch

    @property
    def idle(self) -> bool:
        return not self.points

    def forward(self) -> int:
        """One decoder forward; returns the position after it. Runs inside a trace."""
        args, _ = self.clock.inputs
        start, length = int(args[1]), args[0].shape[-1]
        for point in self.points:
            point.visit(start, length, self.recorder, self.layout, self.config)
        return start + length

    def single(self, tracer: Any, kept: list[Tensor]) -> None:
        """One forward, and the logits it returns. Runs inside a trace."""
        self.forward()
        kept.append(tracer.result.logits)

    def generation(self, tracer: Any, steps: int) -> None:
        """All forwards of a generation. Runs inside a trace."""
        try:
            for _ in tracer.iter[:]:
                if self.forward() >= steps:
                    return
        except OutOfOrderError:
            # transformers ended the clip early; what it made is kept.
            return


def checked_interventions(
    interventions: Intervention | Iterable[Intervention], family: Family, config: LensConfig, guided: bool
) -> tuple[Intervention, ...]:
    """Refuse, before a model runs, what no run of this model could do."""
    listed = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    for intervention in listed:
        if not isinstance(intervention, Intervention):
            raise InputError(f"{type(intervention).__name__} is not an intervention: use Add, Ablate, Clamp, ...")
        if intervention.branch == "null" and not guided:
            raise InputError("branch='null' needs guidance: without it (guidance_scale=1) there is only 'cond'.")
        places(family, config, intervention.site, intervention.layers)
    return listed
