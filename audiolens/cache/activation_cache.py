"""ActivationCache: what a run recorded, as labelled tensors that stack, slice, project, decompose and save.

Keys are full site names ("blocks.3.hook_resid_post"); `cache["resid_post", 3]` and `cache.stack("resid_post")`
use the short forms. Every tensor's axes are named: "row step d_model" for a residual site, with a leading
"branch" axis when both branches of the guidance were recorded, and without "step" when the run reduced over time.
Patterns are "row head query key", with as many keys as the clip has steps (or the longest prompt tokens).
"""

import os
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.arrays import AsArray
from audiolens.cache.decomposition import (
    Components,
    Readout,
    Stream,
    accumulate,
    below,
    decompose,
    labelled,
    logit_lens,
)
from audiolens.cache.lazy_tensors import changed, kept, opened, outlines, some
from audiolens.cache.table import lengths
from audiolens.checks import checked_flags, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, nearest, shortened
from audiolens.files.atomic import as_path
from audiolens.interventions import checked_rows
from audiolens.model.loading import checked_device, checked_dtype
from audiolens.model.sites import Site, counted, hooked, listed_layers, named, names_once
from audiolens.model.timeline import Span, checked_span
from audiolens.model.traced_model import HasModel
from audiolens.vectors import each_layers


@guarded
@dataclass(frozen=True, eq=False)
class ActivationCache(AsArray, Mapping[str, Tensor]):
    """Recorded activations: a mapping from full names to tensors, in the model's order.

    `tensors` and `axes` share their keys. `first_step` is the position of the step axis's first entry,
    `branch` the branch recorded ("cond", "null" or "both"), `reduce` the reduction over time, if any. `norms`
    holds, for `reduce="mean"`, the mean over the same steps of the activations' lengths. `heads` are the heads
    recorded at head sites, in their order (`None`: all). `stream` says what is added up in the model's residual
    stream. `readout` is its final norm and its output heads, the model's own tensors: of the model a cache holds only
    these, and a file none.

    `prefixes` holds, where the conditioning stands before the audio steps (MusicGen Melody), how many positions it
    takes in each row. Recorded with `prefix=True` the steps begin at a negative `first_step`, that of the longest: step
    s stands at index s - first_step, the text's last token at step -1, and zeros before a shorter prefix. The keys of
    a pattern always begin there, because every step looks back on its prefix.

    `weights` is the hash of the model's weights in a cache that was opened from a file.
    """

    tensors: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    branch: str = "cond"
    first_step: int = 0
    frame_rate: float = 0.0
    prompts: tuple[str | None, ...] = ()
    reduce: str | None = None
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    model: str = ""
    heads: tuple[int, ...] | None = None
    stream: Stream | None = None
    readout: Readout | None = None
    prefixes: tuple[int, ...] = ()
    weights: str = ""

    @property
    def instead(self) -> str:
        """What to give where one array is expected."""
        return "give one of its tensors, cache['resid_post', 3], or a site's layers, cache.stack('resid_post')."

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, key: object) -> bool:
        try:
            return self._key(key) in self.tensors
        except (SiteError, InputTypeError):
            return False

    # A mapping's own would compare tensors, and have no hash.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def keys(self) -> KeysView[str]:
        """The full names of the sites recorded, in the model's order."""
        # A dict's own show what they are.
        return dict.fromkeys(self.tensors).keys()

    def get(self, key: Any, default: Any = None) -> Any:
        """As `cache[key]`, or `default` where it was not recorded."""
        # Not by `get`, as a linter would have it: this is it.
        return self[key] if key in self else default  # noqa: SIM401

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """One site's tensor, by name or by (short name, layer); layer -1 is the model's last.

        Raises:
            SiteError: if it was not recorded, or stands in every block and comes without a layer.
            InputTypeError: if the key is neither.
        """
        name = self._key(key)
        if name not in self.tensors:
            layers = self.layers(name)
            if layers:
                raise SiteError(f"{key!r} was recorded at layers {layers}: give one of them, or stack them all.")
            raise SiteError(
                f"{name!r} was not recorded.{nearest(name, self.tensors)} Recorded: {shortened(self.tensors)}."
            )
        return self.tensors[name]

    def layers(self, site: str) -> list[int]:
        """The layers at which a site was recorded."""
        hook = hooked(site)
        places = map(Site.of, self.tensors)
        return sorted(place.layer for place in places if place.layer is not None and place.hook == hook)

    def numbered(self, layers: int | Iterable[int]) -> list[int]:
        """Layers as they were given, a negative one counted from the model's last block.

        Raises:
            InputTypeError: if these are no layers.
            SiteError: for a negative one, if the model has fewer blocks or the cache does not know how many.
        """
        chosen = listed_layers(layers)
        if any(layer < 0 for layer in chosen) and self.stream is None:
            raise SiteError(f"layers={layers!r}: this cache does not know its model's blocks. Count from 0.")
        blocks = 0 if self.stream is None else self.stream.n_layers
        return [counted(layer, blocks) if layer < 0 else layer for layer in chosen]

    def axes_of(self, site: str, layer: int | None = None) -> tuple[str, ...]:
        """The axes of a recorded site: ("row", "step", "d_model").

        Raises:
            SiteError: if it was not recorded.
        """
        name = self._key(site if layer is None else (site, layer))
        if name not in self.axes:
            raise SiteError(f"{name!r} was not recorded.{nearest(name, self.axes)} Recorded: {shortened(self.axes)}.")
        return self.axes[name]

    def stack(self, site: str) -> Float[Tensor, "layer ..."]:
        """A site of every recorded layer: "layer row step d_model" (or "layer branch row ...", or without "step")."""
        layers = self.layers(site)
        if not layers:
            raise SiteError(f"site {site!r} was not recorded. Recorded: {shortened(self.tensors)}.")
        return torch.stack([self[site, layer] for layer in layers])

    def stack_activation(self, site: str, layer: int | None = None) -> Float[Tensor, "layer ..."]:
        """A site of every block below `layer`, under TransformerLens's name; `stack` takes the blocks recorded.

        `None` (or -1, or the number of blocks) is the whole model.

        Raises:
            SiteError: if it was not recorded in one of these blocks.
        """
        end = below(self, layer, f"stack_activation({site!r}{'' if layer is None else f', {layer}'})")
        if not end:
            raise SiteError(f"stack_activation({site!r}, 0): no block is below block 0.")
        return torch.stack([self[site, block] for block in range(end)])

    def stack_norms(self, site: str) -> Float[Tensor, "layer ..."]:
        """Mean activation lengths of every recorded layer: "layer row" (needs `reduce="mean"`)."""
        names = [Site(hooked(site), layer).name for layer in self.layers(site)]
        if not names or any(name not in self.norms for name in names):
            raise SiteError(f"no norms of {site!r} were recorded: they come with reduce='mean'.")
        return torch.stack([self.norms[name] for name in names])

    def rows(self, rows: Sequence[int]) -> "ActivationCache":
        """The same cache for some rows, in the order given.

        Raises:
            InputTypeError, InputError: if these are no row numbers, or not of rows that the cache holds.
        """
        chosen = checked_rows(rows, self._row_count())
        index = torch.tensor(chosen, device="cpu")

        def pick(tensor: Tensor, name: str) -> Tensor:
            return tensor.index_select(self.axes[name].index("row"), index.to(tensor.device))

        return replace(
            self,
            tensors=changed(self.tensors, pick),
            norms=changed(self.norms, pick),
            prompts=tuple(self.prompts[row] for row in chosen) if self.prompts else (),
            prefixes=tuple(self.prefixes[row] for row in chosen) if self.prefixes else (),
        )

    def seconds(self, span: Span) -> "ActivationCache":
        """The same cache for the steps of a span in seconds.

        Raises:
            InputTypeError, InputError: if this is no span, or not one inside the recorded steps.
        """
        if self.reduce is not None:
            raise InputError(f"this cache was reduced over time ({self.reduce}): it has no steps to choose from.")
        start, stop = checked_span(span)
        first, end = round(start * self.frame_rate), round(stop * self.frame_rate)
        times = {name: axes.index(time) for name, axes in self.axes.items() if (time := _time(axes))}
        steps = {outlines(self.tensors)[name].shape[axis] for name, axis in times.items()}
        if first >= end or first < self.first_step or any(end > self.first_step + count for count in steps):
            raise InputError(f"seconds={span} is not inside the recorded steps.")

        def cut(tensor: Tensor, name: str) -> Tensor:
            return tensor.narrow(times[name], first - self.first_step, end - first) if name in times else tensor

        return replace(self, first_step=first, tensors=changed(self.tensors, cut))

    def at_layers(self, layers: int | Sequence[int] | None) -> "ActivationCache":
        """The same cache for the sites of some blocks (`None`: all); what stands in no block, such as logits, stays.

        Raises:
            InputTypeError: if these are no layers.
            SiteError: if nothing was recorded at one of them.
        """
        places = {name: Site.of(name).layer for name in self.tensors}
        held = sorted({layer for layer in places.values() if layer is not None})
        if layers is None:
            return self
        chosen = self.numbered(layers)
        if not chosen:
            raise SiteError(f"no layer given: the cache holds layers {held}.")
        absent = [layer for layer in chosen if layer not in held]
        if absent:
            raise SiteError(f"nothing was recorded at layer {absent[0]}: the cache holds layers {held}.")
        return self._some([name for name, layer in places.items() if layer is None or layer in chosen])

    def project(self, direction: Any, site: str = "resid_post") -> Float[Tensor, "layer ..."]:
        """Projection on unit directions over time: "layer row step".

        `direction` is "d_model", "layer d_model" (a tensor, an array or a list), or a mapping from layer to vector (a
        `Directions` will do). Units are those of the residual stream. Where a layer's vector is zero (a probe may find
        nothing to read there) the projection is 0.

        Raises:
            SiteError: if the site was not recorded, or a mapping lacks one of its layers.
            InputTypeError, InputError: for vectors that are no finite numbers, have another width, or are all zero, and
                for `Directions` of another model, where the cache knows its own.
        """
        self._refuse_foreign(direction)
        values = self.stack(site).float()
        layers = self.layers(site)
        vectors = torch.stack(each_layers(direction, layers, values.shape[-1], site))
        lengths = vectors.norm(dim=-1, keepdim=True)
        if not bool(lengths.any()):
            raise InputError("direction is zero: a projection needs one with a length.")
        units = vectors / lengths.where(lengths > 0, 1.0)
        return torch.einsum("l...d,ld->l...", values, units.to(values))

    @overload
    def decompose_resid(self, layer: int | None = None, return_labels: Literal[False] = False) -> Components: ...
    @overload
    def decompose_resid(
        self, layer: int | None = None, *, return_labels: Literal[True]
    ) -> tuple[Float[Tensor, "component ..."], list[str]]: ...
    def decompose_resid(self, layer: int | None = None, return_labels: bool = False) -> Any:
        """What was written into the residual stream below a block: "component row step d_model", with labels.

        The components add up to what block `layer` reads; `None` (or -1, or the number of blocks) is the whole model,
        whose sum is the last `resid_post`. They are the embeddings ("embed" and "pos_embed" where both were
        recorded, else "0_pre", their sum) and each block's "3_attn_out", "3_cross_attn_out" and "3_mlp_out". An
        intervention at a residual site is in none of them: the sum then leaves it out. `return_labels` gives the pair
        of TransformerLens, the values and a list of their labels, in the place of one `Components`.

        Raises:
            SiteError: if a part was not recorded; the message says which sites to record.
        """
        checked_flags(return_labels=return_labels)
        return labelled(decompose(self, layer), return_labels)

    @overload
    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, return_labels: Literal[False] = False
    ) -> Components: ...
    @overload
    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, *, return_labels: Literal[True]
    ) -> tuple[Float[Tensor, "component ..."], list[str]]: ...
    def accumulated_resid(self, layer: int | None = None, incl_mid: bool = False, return_labels: bool = False) -> Any:
        """The states of the residual stream up to a block: "component row step d_model", with labels.

        "0_pre" to what block `layer` reads; `None` goes on to "final_post", before the final norm. What a block
        reads is taken from its `resid_pre` or, where that was not recorded, from the `resid_post` of the block below.
        `incl_mid` adds the states inside a block: "3_mid" after its attention, "3_cross" after its cross-attention.
        `return_labels` is that of `decompose_resid`.

        Raises:
            SiteError: if a state was not recorded; the message says which sites to record.
        """
        checked_flags(return_labels=return_labels)
        return labelled(accumulate(self, layer, incl_mid), return_labels)

    def logit_lens(
        self, lens: "HasModel | None" = None, *, site: str = "resid_post", layers: int | Sequence[int] | None = None
    ) -> Float[Tensor, "layer ..."]:
        """The logits of the stream at each recorded layer, had the model ended there: through the final norm and heads.

        Returns "layer row codebook step vocab" (with "branch" before "row", or without "step", as recorded): of the
        last block, the model's own logits. That is n_codebooks x vocab_size / d_model times the size of the states:
        `layers` chooses some. Of a mean over time (`reduce="mean"`) it reads the mean state, which is not the mean of
        the readings.

        Args:
            lens: needed for a cache that was loaded from a file: a lens on the model it was recorded from.
        """
        return logit_lens(self, None if lens is None else lens.traced_model, site, layers)

    def to_frame(self) -> Any:
        """The length of every recorded vector, a line each (pandas).

        Columns: `name`, `site` (its short form), `layer` (missing outside the blocks), the axes before the last
        ("branch", "row", "step", "head", ...), `prompt`, `seconds` of a step, and `norm`, the length along the last
        axis. Every tensor is read.
        """
        return lengths(self)

    def to(self, device: Any = None, dtype: str | torch.dtype | None = None) -> "ActivationCache":
        """The same cache on another device or in another floating dtype, given as such or by name.

        Raises:
            InputError: if there is no such device here, or this is no floating dtype.
        """
        target = None if device is None else checked_device(device)
        kind = checked_dtype(dtype)

        def moved(tensor: Tensor, cast: torch.dtype | None) -> Tensor:
            # An outline has nothing to move.
            return tensor if tensor.is_meta else tensor.to(device=target, dtype=cast)

        return replace(
            self,
            tensors=changed(self.tensors, lambda tensor, _: moved(tensor, kind)),
            norms=changed(self.norms, lambda tensor, _: moved(tensor, None)),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file with the labels in its header; an existing file is replaced whole.

        Raises:
            InputError: if the place cannot be written, or something other than a file has the name.
        """
        return kept(as_path(path), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], sites: str | Sequence[str] | None = None) -> "ActivationCache":
        """Open a saved cache, or only some sites of it, by full or short name ("resid_post": every layer it holds).

        Each tensor is read when it is first asked for, and kept; `rows`, `seconds`, `at_layers` and `to` read none.
        The file must stay as it is until then. Each is compared with its hash when it is read.

        Raises:
            InputError: if the file is not a whole activation cache; also later, from a read, if it has gone or changed.
            DamagedError: (an InputError) if labels or, from a read, a tensor are not those that were written.
            SiteError: if it does not hold one of the sites.
        """
        whole = cls(**opened(path))
        return whole if sites is None else whole._some(_chosen(sites, whole.tensors, path))

    def __repr__(self) -> str:
        shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(outlines(self.tensors).items())[:2]]
        more = ", ..." if len(self.tensors) > 2 else ""
        return f"ActivationCache({len(self.tensors)} sites, branch={self.branch}: {', '.join(shapes)}{more})"

    def _key(self, key: object) -> str:
        try:
            if isinstance(key, tuple) and len(key) == 2:
                return Site(hooked(key[0]), self.numbered(whole_number(key[1]))[0]).name
            return named(key).name
        except TypeError:
            raise InputTypeError(f"{shown(key)}: expected a site name or a (site, layer) pair.") from None

    def _weights(self) -> str:
        """The hash of the model's weights, or nothing where it is not known."""
        return self.weights or ("" if self.readout is None else self.readout.weights())

    def _refuse_foreign(self, direction: Any) -> None:
        meta = getattr(direction, "meta", None)
        theirs = getattr(meta, "weights", "")
        if theirs and (mine := self._weights()) and mine != theirs:
            raise InputError(
                f"direction was read from {getattr(meta, 'model', '')!r}, and this cache was recorded from "
                f"{self.model!r}, which holds other weights: a direction means nothing in another model. Read it again "
                "with the model of the cache."
            )

    def _some(self, names: Sequence[str]) -> "ActivationCache":
        """The same cache for some full names."""
        return replace(
            self,
            tensors=some(self.tensors, names),
            axes={name: self.axes[name] for name in names},
            norms=some(self.norms, [name for name in names if name in self.norms]),
        )

    def _row_count(self) -> int:
        for name, outline in outlines(self.tensors).items():
            return outline.shape[self.axes[name].index("row")]
        return len(self.prompts)


def _time(axes: Sequence[str]) -> str | None:
    """The axis of the steps: a pattern's are its queries."""
    return next((axis for axis in ("step", "query") if axis in axes), None)


def _chosen(sites: object, names: Iterable[str], path: object) -> list[str]:
    """The full names that full or short ones stand for in a file."""
    found: set[str] = set()
    for site in names_once("sites", sites):
        asked = named(site)
        mine = [name for name in names if asked.name in (name, Site.of(name).hook)]
        if not mine:
            raise SiteError(f"{path} does not hold {site!r}.{nearest(asked.name, names)} It holds: {shortened(names)}.")
        found.update(mine)
    return [name for name in names if name in found]
