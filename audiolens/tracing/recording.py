"""Record activations during a run: at every position, or reduced over time without storing the steps."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor

from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError, UnsupportedModelError
from audiolens.interventions import checked_branch, checked_flags
from audiolens.model.config import LensConfig
from audiolens.model.devices import checked_device, checked_dtype
from audiolens.model.site_access import Form
from audiolens.model.sites import Site, checked_heads, head_numbers, layers_once, names_once
from audiolens.model.timeline import Span, Timeline, checked_span
from audiolens.model.traced_model import TracedModel
from audiolens.tracing.batching import Layout, of_branch

Reduce = Literal["mean", "last", "max", "eos"]
_EVERY = (-sys.maxsize, sys.maxsize)
"""All steps."""
STAGED = 2**26
"""If recordings are on another device than the model, the number of bytes that wait there to be copied together."""


@guarded
@dataclass(frozen=True)
class Reading:
    """The recording arguments of a run, combined in one object.

    An example is `lens.run_with_cache(prompts, codes, reading=Reading("attn.z", layers=[3]))`.

    The fields give the sites, layers and heads to record, the guidance branch, the time range (`seconds`) and a
    reduction over time. `device` and `dtype` are those of the recordings.

    With `prefix=True`, the prefix is recorded too. `reduce="eos"` records only the last token of the text in the
    prefix.
    """

    sites: str | Sequence[str] = ()
    layers: int | Sequence[int] | None = None
    branch: Literal["cond", "null", "both"] = "cond"
    seconds: Span | None = None
    reduce: Reduce | None = None
    device: Any = None
    dtype: str | torch.dtype | None = None
    heads: Sequence[int] | None = None
    prefix: bool = False

    def __post_init__(self) -> None:
        checked_flags(prefix=self.prefix)
        checked_branch(self.branch)
        if self.seconds is not None:
            checked_span(self.seconds)
        once: dict[str, Any] = {"sites": names_once("sites", self.sites)}
        once["layers"] = None if self.layers is None else layers_once(self.layers)
        once["heads"] = None if self.heads is None else head_numbers(self.heads)
        for name, read in once.items():
            object.__setattr__(self, name, read)
        if self.reduce is not None and self.reduce not in get_args(Reduce):
            raise InputError(f"reduce={shown(self.reduce)}: expected one of {', '.join(get_args(Reduce))}, or None.")
        if self.device is not None:
            object.__setattr__(self, "device", checked_device(self.device))
        object.__setattr__(self, "dtype", checked_dtype(self.dtype))
        if self.reduce == "eos" and self.seconds is not None:
            raise InputError(
                f"reduce='eos' is one position before the clip, but a span of {self.seconds} s was given: leave the "
                "span out."
            )


def refuse_prefix(config: LensConfig, asked: str, instead: str = "Leave it out.") -> None:
    """Raise an error if the decoder's own sequence contains no conditioning and therefore has no prefix.

    Raises:
        InputError: if the model has no prefix; the message names the family and states what to do instead.
    """
    if not config.has_prefix:
        raise InputError(
            f"{asked}: {config.family} reads its text through {config.conditioning}, so no position of the decoder's "
            f"own sequence contains the text or its end. {instead}"
        )


class Recorder:
    """Collects one run's activations, batch by batch, into one tensor per site over all rows.

    Full recordings are written by position, so a step that is computed twice (MusicGen's first step, under `generate`)
    is stored once. Reductions count each step once, when it is first computed. At a site without steps, the value is
    stored once per batch.

    The token axis is as long as the longest text of any batch, and the key axis of self-attention has one entry per
    step of the clip. Missing entries are padded with zeros. Causal attention to later keys is zero as well.

    With a prefix, step 0 and its key have the same index in all rows, because shorter prefixes are left-padded with
    zeros.

    A run does not wait for its recordings: reductions stay on the model's device until the end of a batch, and whole
    recordings are copied to another device for many steps at once.

    Results are returned only after every step of every row has been recorded in order.
    """

    def __init__(
        self,
        reading: Reading,
        sites: Sequence[Site],
        rows: int,
        timeline: Timeline,
        forms: Mapping[Site, Form],
        heads: tuple[int, ...] | None = None,
    ) -> None:
        self.reading = reading
        self.dtype = checked_dtype(reading.dtype)
        self.sites = frozenset(sites)
        self.forms, self.heads = forms, heads
        self._head_index: Tensor | None = None
        self.rows, self.keys, self.longest = rows, timeline.prefix + timeline.steps, timeline.prefix
        self.start, self.stop = timeline.select(reading.seconds, reading.prefix)
        if reading.reduce == "eos":
            # The rows of a batch are not padded, so the text's last token is directly before step 0.
            self.start, self.stop = -1, 0
        elif reading.reduce is not None and reading.seconds is None:
            # The tail predicts no frame of codebook 0, so reductions over time exclude the tail.
            self.stop = timeline.frames
        self.tensors: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.seen: dict[str, int] = {}
        """The step up to which this batch is recorded, by site name."""
        self.within = _EVERY
        self._running: dict[str, tuple[Tensor, Tensor]] = {}
        """The reductions of this batch and of its norms, by site name."""
        self._staged: list[tuple[str, int, Tensor]] = []
        self._bytes = 0
        self._indices: dict[torch.device, Tensor] = {}
        self.layout: Layout | None = None
        """The layout of the batch that has begun, and must be recorded up to its last step."""
        self.begun = torch.zeros(rows, dtype=torch.bool, device="cpu")
        self.prefixes = torch.zeros(rows, dtype=torch.long, device="cpu")

    @classmethod
    def of(cls, reading: Reading, traced: TracedModel, rows: int, timeline: Timeline) -> "Recorder | None":
        """Return a recorder for the sites of a reading, or `None` if the reading has no sites."""
        family, config = traced.family, traced.config
        found = family.find(config, reading.sites, reading.layers)
        if reading.prefix:
            refuse_prefix(config, "prefix=True")
        if reading.reduce == "eos":
            refuse_prefix(config, "reduce='eos'", "Use reduce='last', or a span of the first step.")
        if not found:
            return None
        forms = {site: family.tap(site).form for site in family.order(found)}
        if reading.heads is None:
            return cls(reading, found, rows, timeline, forms)
        if not any("head" in form.axes for form in forms.values()):
            raise InputError(
                f"heads={reading.heads}: no recorded site has heads; record one that does, such as attn.hook_z."
            )
        return cls(reading, found, rows, timeline, forms, checked_heads(reading.heads, config.n_heads))

    def begin(self, layout: Layout) -> None:
        """Start a new batch of rows, at the beginning of the clip."""
        if self.layout is not None:
            self._complete()
        self.seen, self.within, self.layout, self._indices = {}, _EVERY, layout, {}
        self.begun[layout.indices] = True
        self.prefixes[layout.indices] = layout.prefix

    def drop(self, layout: Layout) -> None:
        """Forget what was recorded of a batch that could not be finished. Its rows can then begin again."""
        if self.layout != layout:
            # It failed before it had begun, so the batch before it is still kept.
            return
        self.layout, self.seen, self._running, self._staged, self._bytes = None, {}, {}, [], 0
        self.begun[layout.indices] = False

    def limit(self, first: int | None, end: int | None) -> None:
        """Record only steps from `first` to `end` of the forward passes that follow; `None` means no limit.

        The windows of a clip overlap, so a step can be computed in several of them.
        """
        self.within = _EVERY[0] if first is None else first, _EVERY[1] if end is None else end

    def _complete(self) -> None:
        """Check that the current batch was recorded up to its last step.

        Raises:
            UnsupportedModelError: if a step was never recorded; the message names the site and the first such step.
        """
        for site, form in self.forms.items():
            expected = self.stop if form.timed else 0
            if self.seen.get(site.name, -sys.maxsize) < expected:
                self._missing(site, max(self.seen.get(site.name, self.start), self.start))
        self._copy_staged()
        for name, (sums, norms) in self._running.items():
            for whole, part in ((self.tensors, sums), (self.norms, norms)):
                if name not in whole:
                    whole[name] = self._empty((part.shape[0], self.rows, *part.shape[2:]), part, part.dtype)
                kept = whole[name]
                kept[:, self._rows(kept.device)] = part.to(kept.device)
        self._running = {}

    def _missing(self, site: Site, step: int) -> NoReturn:
        raise UnsupportedModelError(
            f"{site.name}: step {step} was never recorded. This release of transformers or nnsight does not run the "
            "model as the lens expects (docs/versions.md)."
        )

    def wants(self, site: Site, start: int, length: int) -> bool:
        if site not in self.sites:
            return False
        if not self.forms[site].timed:
            return site.name not in self.seen
        return start < min(self.stop, self.within[1]) and start + length > max(self.start, self.within[0])

    def heads_of(self, site: Site) -> tuple[int, ...] | None:
        """Return the heads to record at a site; `None` means all heads, or that the site has no heads."""
        return self.heads if "head" in self.forms[site].axes else None

    def head_index(self, site: Site, device: torch.device) -> Tensor | None:
        """Return `heads_of` as an index on a device."""
        heads = self.heads_of(site)
        if heads is None:
            return None
        if self._head_index is None or self._head_index.device != device:
            self._head_index = torch.tensor(heads, device=device)
        return self._head_index

    def write(self, site: Site, value: Tensor, start: int, layout: Layout) -> None:
        """Record a value "batch step ..." from step `start` on, or "batch token ..." at a site without steps."""
        name, form = site.name, self.forms[site]
        if not form.timed:
            self._keep(name, form, self._mine(value, layout), layout, 0)
            self.seen[name] = 0
            return
        first = max(self.start, self.within[0], start)
        end = min(self.stop, self.within[1], start + value.shape[1])
        seen = self.seen.get(name, max(self.start, -layout.prefix))
        if first > seen:
            self._missing(site, seen)
        self.seen[name] = max(seen, end)
        if self.reading.reduce is not None:
            first = max(first, seen)
            if first >= end:
                return
        window = self._mine(value[:, first - start : end - start], layout)
        if self.reading.reduce is None:
            self._keep(name, form, window, layout, first - self.start)
        else:
            self._reduce(name, form, window, layout)

    def _mine(self, value: Tensor, layout: Layout) -> Tensor:
        """Select the recorded part "branch row ..." of a value "batch ...", without padding rows."""
        window = value.detach().unflatten(0, (layout.branches, -1))
        window = of_branch(window, layout.halves, self.reading.branch)
        if self.reading.branch != "both":
            window = window[None]
        return window[:, : layout.kept]

    def _keep(self, name: str, form: Form, window: Tensor, layout: Layout, first: int) -> None:
        length = self.stop - self.start if form.timed else window.shape[2]
        window = window if form.open is None else self._fitted(name, form, window, layout)
        if name not in self.tensors:
            shape = (window.shape[0], self.rows, length, *window.shape[3:])
            self.tensors[name] = self._empty(shape, window)
        kept = self.tensors[name]
        if self._stages(kept, window):
            self._staged.append((name, first, window.to(kept.dtype, copy=True)))
            self._bytes += window.numel() * kept.element_size()
            if self._bytes >= STAGED:
                self._copy_staged()
            return
        kept[:, self._rows(kept.device), first : first + window.shape[2]] = window.to(kept.dtype)

    def _stages(self, kept: Tensor, window: Tensor) -> bool:
        return kept.device != window.device

    def _copy_staged(self) -> None:
        """Copy the waiting recordings to the device of the recordings, once per site."""
        waiting = defaultdict[str, list[tuple[int, Tensor]]](list)
        for name, first, window in self._staged:
            waiting[name].append((first, window))
        for name, parts in waiting.items():
            kept = self.tensors[name]
            together = torch.cat([window for _, window in parts], dim=2).to(kept.device)
            for (first, _), window in zip(parts, together.split([part.shape[2] for _, part in parts], 2), strict=True):
                kept[:, self._rows(kept.device), first : first + window.shape[2]] = window
        # Only now, because copying can fail for lack of memory, and is then repeated.
        self._staged, self._bytes = [], 0

    def _rows(self, device: torch.device) -> slice | Tensor:
        """Return the indices of this batch's rows in the recordings, on a device."""
        assert self.layout is not None
        index = self.layout.indices
        if isinstance(index, slice) or index.device == device:
            return index
        if device not in self._indices:
            self._indices[device] = index.to(device)
        return self._indices[device]

    def _fitted(self, name: str, form: Form, window: Tensor, layout: Layout) -> Tensor:
        """Zero-pad the window to the number of tokens or keys recorded so far, or pad the recording if it has fewer."""
        axis = form.order.index(str(form.open)) - len(form.order)
        if form.square and layout.prefix < self.longest:
            window = _padded(window, axis, window.shape[axis] + self.longest - layout.prefix, before=True)
        size = self.keys if form.square else window.shape[axis]
        if name in self.tensors:
            self.tensors[name] = _padded(self.tensors[name], axis, size)
            size = self.tensors[name].shape[axis]
        return _padded(window, axis, size)

    def _reduce(self, name: str, form: Form, window: Tensor, layout: Layout) -> None:
        window = (window if form.open is None else self._fitted(name, form, window, layout)).float()
        if name not in self._running:
            shape = (*window.shape[:2], *window.shape[3:])
            fill = -torch.inf if self.reading.reduce == "max" else 0.0
            self._running[name] = window.new_full(shape, fill), window.new_zeros(shape[:-1])
        kept, norms = self._running[name]
        if self.reading.reduce == "mean":
            kept += window.sum(2)
            norms += window.norm(dim=-1).sum(2)
        elif self.reading.reduce in ("last", "eos"):
            kept.copy_(window[:, :, -1])
        else:
            torch.maximum(kept, window.amax(2), out=kept)

    def _empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        device = like.device if self.reading.device is None else self.reading.device
        make = torch.zeros if self.reading.prefix else torch.empty
        return make(shape, device=device, dtype=dtype or self.dtype or like.dtype)

    def result(self) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], dict[str, Tensor]]:
        """Return the tensors, their axes and their mean norms, by site name in the model's order.

        Raises:
            UnsupportedModelError: if a step or a row was never recorded.
        """
        if self.layout is not None:
            self._complete()
        if not bool(self.begun.all()):
            row = int(self.begun.int().argmin())
            raise UnsupportedModelError(f"row {row} was in no batch of this run, so its recording is missing.")
        mean, both = self.reading.reduce == "mean", self.reading.branch == "both"
        tensors, norms, axes = {}, {}, {}
        for site, form in self.forms.items():
            name = site.name
            reduced = self.reading.reduce is not None and form.timed
            order = ["branch", *form.order]
            user = ["branch", *form.axes]
            if reduced:
                user.remove(order.pop(2))
            tensor = self._averaged(self.tensors[name]) if reduced and mean else self.tensors[name]
            tensor = tensor if self.dtype is None else tensor.to(self.dtype)
            tensor = tensor.permute([order.index(axis) for axis in user])
            tensors[name] = tensor if both else tensor[0]
            if reduced and mean:
                norm = self._averaged(self.norms[name])
                norms[name] = norm if both else norm[0]
            axes[name] = tuple(user if both else user[1:])
        return tensors, axes, norms

    def _averaged(self, sums: Tensor) -> Tensor:
        """Turn sums "branch row ..." into means over the number of positions in each row."""
        if not self.reading.prefix:
            return sums / (self.stop - self.start)
        counts = (self.stop + self.prefixes).to(sums.device)
        return sums / counts.reshape(-1, *[1] * (sums.ndim - 2))

    def cache(self, prompts: tuple[str | None, ...], model: str, frame_rate: float) -> ActivationCache:
        """Return everything recorded as a labelled cache."""
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
            heads=self.heads,
            prefixes=tuple(self.prefixes.tolist()) if self.longest else (),
        )


def _padded(tensor: Tensor, axis: int, size: int, *, before: bool = False) -> Tensor:
    """Pad a tensor with zeros at the end (or the start) of one axis, up to a size."""
    missing = size - tensor.shape[axis]
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    zeros = tensor.new_zeros(shape)
    return torch.cat([zeros, tensor] if before else [tensor, zeros], dim=axis)
