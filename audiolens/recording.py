"""What a run keeps of what it sees: whole activations by position, or a reduction over time without storing them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from audiolens.cache import ActivationCache
from audiolens.errors import InputError
from audiolens.families import Family, LensConfig, Tap, order, places, tap_of
from audiolens.rows import Layout
from audiolens.sites import Site
from audiolens.timeline import Span, Timeline

Reduce = Literal["mean", "last", "max", "eos"]


@dataclass(frozen=True)
class Reading:
    """What a run records: sites and layers, of which branch, over which steps, whole or reduced over time.

    `prefix` takes the prefix in as well; `reduce="eos"` takes of it the text's last token, and nothing else.
    """

    sites: str | Sequence[str] = ()
    layers: int | Sequence[int] | None = None
    branch: Literal["cond", "null", "both"] = "cond"
    seconds: Span | None = None
    reduce: Reduce | None = None
    device: Any = None
    dtype: torch.dtype | None = None
    prefix: bool = False

    def __post_init__(self) -> None:
        if self.reduce is not None and self.reduce not in get_args(Reduce):
            raise InputError(f"reduce={self.reduce!r}: expected one of {', '.join(get_args(Reduce))}, or None.")
        if self.reduce == "eos" and self.seconds is not None:
            raise InputError(f"reduce='eos' is one place before the clip: a span of {self.seconds} s has no meaning.")


def refuse_prefix(config: LensConfig, asked: str, instead: str = "Leave it out.") -> None:
    """Raise where the decoder's own sequence holds no conditioning.

    Raises:
        InputError: naming the family, and what to do instead.
    """
    if config.conditioning != "prefix":
        raise InputError(
            f"{asked}: {config.family} reads its text through {config.conditioning}, so no place of the decoder's own "
            f"sequence holds the text or its end. {instead}"
        )


class Recorder:
    """Collects one run's activations into whole tensors over all rows, batch after batch.

    Full recordings are written into place by position, so that a step seen twice (under `generate`, MusicGen's first
    one) is kept once; reductions take each step once, at its first sight. With the prefix, step 0 stands at one index
    in all rows: what lies before a shorter prefix is 0.
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
        self.start, self.stop = timeline.select(reading.seconds, reading.prefix)
        if reading.reduce == "eos":
            # No row is padded, so that the text's last token is the one before step 0.
            self.start, self.stop = -1, 0
        elif reading.reduce is not None and reading.seconds is None:
            # The tail predicts no frame of codebook 0: it stays out of every summary over time.
            self.stop = timeline.frames
        self.tensors: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.seen: dict[str, int] = {}
        self.prefixes = torch.zeros(rows, dtype=torch.long)

    @classmethod
    def of(
        cls, reading: Reading, family: Family, config: LensConfig, rows: int, timeline: Timeline
    ) -> "Recorder | None":
        """A recorder for the sites a reading names, or `None` if it names none."""
        found = places(family, config, reading.sites, reading.layers)
        if reading.prefix:
            refuse_prefix(config, "prefix=True")
        if reading.reduce == "eos":
            refuse_prefix(config, "reduce='eos'", "Use reduce='last', or a span of the first step.")
        if not found:
            return None
        return cls(reading, found, rows, timeline, {site: tap_of(family, site) for site in order(family, found)})

    def begin(self, layout: Layout) -> None:
        """A new batch of rows starts at the beginning of the clip."""
        self.seen = {}
        self.prefixes[layout.places] = layout.prefix

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
            kept = self.tensors[name]
            window = window.to(kept.device, kept.dtype)
            kept[:, layout.places, first - self.start : end - self.start] = window
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
        elif self.reading.reduce in ("last", "eos"):
            kept[:, rows] = window[:, :, -1]
        else:
            kept[:, rows] = torch.maximum(kept[:, rows], window.amax(2))

    def _empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        device = like.device if self.reading.device is None else self.reading.device
        make = torch.zeros if self.reading.prefix else torch.empty
        return make(shape, device=device, dtype=dtype or self.reading.dtype or like.dtype)

    def result(self) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], dict[str, Tensor]]:
        """Tensors, their axes, and mean norms, by site name in the model's order."""
        mean, both = self.reading.reduce == "mean", self.reading.branch == "both"
        tensors, norms, axes = {}, {}, {}
        for site, tap in self.taps.items():
            name = site.name
            if name not in self.tensors:
                continue
            tensor = self._averaged(self.tensors[name]) if mean else self.tensors[name]
            tensor = tensor if self.reading.dtype is None else tensor.to(self.reading.dtype)
            tensors[name] = tensor if both else tensor[0]
            if mean:
                norm = self._averaged(self.norms[name])
                norms[name] = norm if both else norm[0]
            feature = {"residual": ("d_model",), "heads": ("head", "d_head"), "mlp": ("d_mlp",)}[tap.layout]
            time = () if self.reading.reduce else ("step",)
            axes[name] = (*(("branch",) if both else ()), "row", *time, *feature)
        return tensors, axes, norms

    def _averaged(self, sums: Tensor) -> Tensor:
        """Sums "branch row ..." over the positions each row has, as means."""
        if not self.reading.prefix:
            return sums / (self.stop - self.start)
        counts = (self.stop + self.prefixes).to(sums.device)
        return sums / counts.reshape(-1, *[1] * (sums.ndim - 2))

    def cache(self, prompts: tuple[str | None, ...], model: str, frame_rate: float) -> ActivationCache:
        """Everything recorded, with its labels."""
        tensors, axes, norms = self.result()
        return ActivationCache(
            tensors=tensors,
            axes=axes,
            branch=self.reading.branch,
            first_step=self.start,
            frame_rate=frame_rate,
            prompts=prompts,
            reduce=self.reading.reduce,
            norms=norms,
            model=model,
            prefixes=tuple(self.prefixes.tolist()) if self.reading.prefix else (),
        )
