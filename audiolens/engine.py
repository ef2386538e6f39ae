"""One run of the model under nnsight: the clock, and what is edited and recorded at each decoder forward.

The clock is the absolute position: every forward starts by reading what the position embedding was given, the new
columns and the length already cached. It is therefore the same with and without the key-value cache, and for
`generate`, whose first forward transformers runs twice. Counting calls would be off by one there.

A forward reads only the sites where something is edited or recorded at these very steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from audiolens.bound import Bound
from audiolens.errors import InputError
from audiolens.families import Family, LensConfig, Tap
from audiolens.interventions import Intervention
from audiolens.rows import Layout
from audiolens.sites import Site, resolve
from audiolens.timeline import Span, Timeline

Reduce = Literal["mean", "last", "max"]


@dataclass(frozen=True)
class Reading:
    """What a run records: sites and layers, of which branch, over which steps, whole or reduced over time."""

    sites: str | Sequence[str] = ()
    layers: int | Sequence[int] | None = None
    branch: Literal["cond", "null", "both"] = "cond"
    seconds: Span | None = None
    reduce: Reduce | None = None
    device: Any = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.reduce is not None and self.reduce not in get_args(Reduce):
            raise InputError(f"reduce={self.reduce!r}: expected one of {', '.join(get_args(Reduce))}, or None.")


class Recorder:
    """Collects one run's activations into whole tensors over all rows, batch after batch.

    Full recordings are written into place by position, so that a step seen twice (see the module's docstring)
    is kept once; reductions take each step once, at its first sight.
    """

    def __init__(
        self,
        reading: Reading,
        places: Sequence[Site],
        rows: int,
        timeline: Timeline,
        taps: Mapping[Site, Tap],
    ) -> None:
        self.reading = reading
        self.places = frozenset(places)
        self.taps = taps
        self.rows = rows
        if reading.seconds is None and reading.reduce is not None:
            # The tail predicts no frame of codebook 0: it stays out of every summary over time.
            self.start, self.stop = 0, timeline.frames
        else:
            self.start, self.stop = timeline.select(reading.seconds)
        self.tensors: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.seen: dict[str, int] = {}

    def begin(self) -> None:
        """A new batch of rows starts at the beginning of the clip."""
        self.seen = {}

    def wants(self, site: Site, start: int, length: int) -> bool:
        return site in self.places and start < self.stop and start + length > self.start

    def write(self, site: Site, value: Tensor, start: int, layout: Layout) -> None:
        """Keep "batch step ..." of the steps from `start`."""
        name = site.name
        first, end = max(self.start, start), min(self.stop, start + value.shape[1])
        if self.reading.reduce is not None:
            first = max(first, self.seen.get(name, self.start))
            if first >= end:
                return
        window = value.detach()[:, first - start : end - start].unflatten(0, (layout.branches, -1))
        if self.reading.branch != "both":
            half = 0 if self.reading.branch == "cond" else 1
            window = window[half : half + 1]
        window = window[:, : layout.kept]
        if self.reading.reduce is None:
            if name not in self.tensors:
                shape = (window.shape[0], self.rows, self.stop - self.start, *window.shape[3:])
                self.tensors[name] = self._empty(shape, window)
            self.tensors[name][:, layout.places, first - self.start : end - self.start] = window
        else:
            self._reduce(name, window, layout.places)
            self.seen[name] = end

    def _reduce(self, name: str, window: Tensor, rows: slice | Tensor) -> None:
        if name not in self.tensors:
            shape = (window.shape[0], self.rows, *window.shape[3:])
            fill = -torch.inf if self.reading.reduce == "max" else 0.0
            self.tensors[name] = self._empty(shape, window, torch.float32).fill_(fill)
            self.norms[name] = self._empty(shape[:-1], window, torch.float32).zero_()
        kept, norms = self.tensors[name], self.norms[name]
        window = window.to(kept.device, torch.float32)
        if self.reading.reduce == "mean":
            kept[:, rows] += window.sum(2)
            norms[:, rows] += window.norm(dim=-1).sum(2)
        elif self.reading.reduce == "last":
            kept[:, rows] = window[:, :, -1]
        else:
            kept[:, rows] = torch.maximum(kept[:, rows], window.amax(2))

    def _empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        device = like.device if self.reading.device is None else self.reading.device
        return torch.empty(shape, device=device, dtype=dtype or self.reading.dtype or like.dtype)

    def result(self) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], dict[str, Tensor]]:
        """Tensors, their axes, and mean norms, by site name in the model's order."""
        steps = self.stop - self.start
        mean, both = self.reading.reduce == "mean", self.reading.branch == "both"
        tensors, norms, axes = {}, {}, {}
        for site, tap in self.taps.items():
            name = site.name
            if name not in self.tensors:
                continue
            tensor = self.tensors[name] / steps if mean else self.tensors[name]
            tensor = tensor if self.reading.dtype is None else tensor.to(self.reading.dtype)
            tensors[name] = tensor if both else tensor[0]
            if mean:
                norms[name] = self.norms[name] / steps if both else self.norms[name][0] / steps
            feature = {"residual": ("d_model",), "heads": ("head", "d_head"), "mlp": ("d_mlp",)}[tap.layout]
            time = () if self.reading.reduce else ("step",)
            axes[name] = (*(("branch",) if both else ()), "row", *time, *feature)
        return tensors, axes, norms


@dataclass
class Point:
    """One site of one run: where nnsight serves it, and what happens there."""

    site: Site
    tap: Tap
    envoy: Any
    edits: list[Bound] = field(default_factory=list)

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
        if edits:
            self._write(served, value, rearrange(current, "b s h d -> b s (h d)") if heads else current)
        if wanted and recorder is not None:
            recorder.write(self.site, current, start, layout)

    def _write(self, served: Any, value: Tensor, changed: Tensor) -> None:
        if self.tap.in_place:
            value.copy_(changed)
            return
        item = self.tap.item
        whole = changed if item is None else (*served[:item], changed, *served[item + 1 :])
        if self.tap.port == "input":
            self.envoy.input = whole
        else:
            self.envoy.output = whole


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


def tap_of(family: Family, site: Site) -> Tap:
    return (family.model_taps if site.layer is None else family.block_taps)[site.hook]


def places(
    family: Family, config: LensConfig, sites: str | Sequence[str], layers: int | Iterable[int] | None
) -> list[Site]:
    """The places that names and layers select in a family's models."""
    return resolve(sites, layers, hooks=family.block_taps, model_hooks=family.model_taps, n_layers=config.n_layers)


def order(family: Family, sites: Iterable[Site]) -> list[Site]:
    """Sites in the order the model reaches them."""
    hooks = list(family.block_taps)
    tail = list(family.model_taps)

    def rank(site: Site) -> tuple[int, int]:
        if site.layer is None:
            return (1_000_000, tail.index(site.hook))
        return (site.layer, hooks.index(site.hook))

    return sorted(sites, key=rank)


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
