"""ActivationCache: a run's activations as labelled tensors, which can be stacked, sliced, projected and saved.

Keys are full site names ("blocks.3.hook_resid_post"), but methods also accept short forms, as in
`cache["resid_post", 3]` and `cache.stack("resid_post")`. The axes of every tensor are named. A residual site has the
axes "row step d_model". A "branch" axis comes first if both guidance branches were recorded, and the "step" axis is
missing if the run reduced over time. An attention pattern has the axes "row head query key", with one key per step of
the clip (or, in cross-attention, per token of the longest prompt).
"""

import os
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.arrays import AsArray
from audiolens.cache import selection
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
from audiolens.cache.lazy_tensors import kept, opened, outlines
from audiolens.cache.table import lengths
from audiolens.checks import checked_flags, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, nearest, shortened
from audiolens.files.atomic import as_path
from audiolens.model.sites import Site, counted, hooked, listed_layers, named
from audiolens.model.timeline import Span
from audiolens.model.traced_model import HasModel
from audiolens.vectors import each_layers


@guarded
@dataclass(frozen=True, eq=False)
class ActivationCache(AsArray, Mapping[str, Tensor]):
    """The activations recorded by a run: a mapping from full site names to tensors, in the model's order.

    `tensors` and `axes` have the same keys. `first_step` is the step number of the first entry along the step axis,
    `branch` is the recorded branch ("cond", "null" or "both"), and `reduce` is the reduction over time, if any. With
    `reduce="mean"`, `norms` are the mean norms of the activations over the same steps. `heads` lists the heads recorded
    at head sites, in the order of the "head" axis (`None` means all heads). `stream` describes the components that sum
    to the residual stream. `readout` contains the model's final norm and output heads. These are the only tensors of
    the model that a cache refers to, and they are not saved in files.

    In a model whose conditioning is a prefix to the audio steps (MusicGen Melody), `prefixes` is the number of prefix
    positions in each row. If the run recorded with `prefix=True`, the steps begin at a negative `first_step`, which is
    the start of the longest prefix. Step s then has index s - first_step, the last token of the text is at step -1, and
    shorter prefixes are left-padded with zeros. The keys of an attention pattern always begin at the start of the
    longest prefix, because every step attends to the prefix of its row.

    `weights` is the hash of the model's weights, and is set only in a cache that was loaded from a file or unpickled.
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
        """Advice on what to pass instead of the cache where a single array is expected."""
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

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, which names the model's weights, because the model itself is not pickled."""
        return {**vars(self), "weights": self.model_weights()}

    # The inherited mapping equality would compare tensors, and would make a cache unhashable.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def keys(self) -> KeysView[str]:
        """The full names of the recorded sites, in the model's order."""
        # Unlike those of a Mapping, the keys of a dict are readable when printed.
        return dict.fromkeys(self.tensors).keys()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return `cache[key]`, or `default` if the site was not recorded."""
        return self[key] if key in self else default  # noqa: SIM401 (this is the `get` that the rule asks for)

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """Return a site's tensor, given its full name or a (short name, layer) pair; layer -1 is the last layer.

        Raises:
            SiteError: if the site was not recorded, or if the site exists in every block and no layer is given.
            InputTypeError: if the key is neither a name nor a (short name, layer) pair.
        """
        name = self._key(key)
        if name not in self.tensors:
            layers = self.layers(name)
            if layers:
                raise SiteError(f"{shown(key)} was recorded at layers {layers}: give one of them, or stack them all.")
            raise SiteError(
                f"{shown(name)} was not recorded.{nearest(name, self.tensors)} Recorded: {shortened(self.tensors)}."
            )
        return self.tensors[name]

    def layers(self, site: str) -> list[int]:
        """The layers at which a site was recorded."""
        hook = hooked(site)
        sites = map(Site.of, self.tensors)
        return sorted(one.layer for one in sites if one.layer is not None and one.hook == hook)

    def numbered(self, layers: int | Iterable[int]) -> list[int]:
        """Return the given layer numbers, with negative ones converted by counting from the model's last block.

        Raises:
            InputTypeError: if `layers` is not a layer number or a list of layer numbers.
            SiteError: if a layer is negative, and the model has too few blocks or the cache does not state how many
                blocks the model has.
        """
        chosen = listed_layers(layers)
        if any(layer < 0 for layer in chosen) and self.stream is None:
            raise SiteError(
                f"layers={shown(layers)}: this cache does not state how many blocks its model has. Count from 0."
            )
        blocks = 0 if self.stream is None else self.stream.n_layers
        return [counted(layer, blocks) if layer < 0 else layer for layer in chosen]

    def axes_of(self, site: str, layer: int | None = None) -> tuple[str, ...]:
        """The axes of a recorded site, such as ("row", "step", "d_model").

        Raises:
            SiteError: if the site was not recorded.
        """
        name = self._key(site if layer is None else (site, layer))
        if name not in self.axes:
            raise SiteError(
                f"{shown(name)} was not recorded.{nearest(name, self.axes)} Recorded: {shortened(self.axes)}."
            )
        return self.axes[name]

    def stack(self, site: str) -> Float[Tensor, "layer ..."]:
        """Stack a site over its recorded layers: "layer row step d_model" (or with "branch", or without "step")."""
        layers = self.layers(site)
        if not layers:
            raise SiteError(f"site {shown(site)} was not recorded. Recorded: {shortened(self.tensors)}.")
        return torch.stack([self[site, layer] for layer in layers])

    def stack_activation(self, site: str, layer: int | None = None) -> Float[Tensor, "layer ..."]:
        """Stack a site over every block below `layer`, as in TransformerLens; `stack` covers only the recorded blocks.

        A `layer` of `None`, -1 or the number of blocks means the whole model.

        Raises:
            SiteError: if the site was not recorded in one of these blocks.
        """
        end = below(self, layer, f"stack_activation({shown(site)}{'' if layer is None else f', {layer}'})")
        if not end:
            raise SiteError(f"stack_activation({shown(site)}, 0): no block is below block 0.")
        return torch.stack([self[site, block] for block in range(end)])

    def stack_norms(self, site: str) -> Float[Tensor, "layer ..."]:
        """The mean activation norm at every recorded layer: "layer row" (requires `reduce="mean"`)."""
        names = [Site(hooked(site), layer).name for layer in self.layers(site)]
        if not names or any(name not in self.norms for name in names):
            raise SiteError(f"no norms of {shown(site)} were recorded: record with reduce='mean'.")
        return torch.stack([self.norms[name] for name in names])

    def rows(self, rows: Sequence[int]) -> "ActivationCache":
        """The cache restricted to some rows, in the order given.

        Raises:
            InputTypeError, InputError: if `rows` is not a list of row numbers, or if the cache lacks one of these rows.
        """
        return selection.of_rows(self, rows)

    def seconds(self, span: Span) -> "ActivationCache":
        """The cache restricted to the steps in a time interval (from, to) in seconds.

        Raises:
            InputTypeError, InputError: if `span` is not a valid time interval, or is not inside the recorded steps.
        """
        return selection.of_seconds(self, span)

    def at_layers(self, layers: int | Sequence[int] | None) -> "ActivationCache":
        """The cache restricted to some layers (`None` means all). Sites outside the blocks, such as logits, are kept.

        Raises:
            InputTypeError: if `layers` is not a layer number or a list of layer numbers.
            SiteError: if nothing was recorded at one of these layers.
        """
        return selection.of_layers(self, layers)

    def project(self, direction: Any, site: str = "resid_post") -> Float[Tensor, "layer ..."]:
        """Project a site's activations onto a unit direction at each layer and step: "layer row step".

        `direction` is a tensor, an array or a list ("d_model" or "layer d_model"), or a mapping from layer to vector
        (such as a `Directions`). A positive projection means that the activation points along the direction. The units
        are those of the residual stream. At a layer where the vector is zero (for example, because a probe found no
        signal), the projection is 0.

        Raises:
            SiteError: if the site was not recorded, or if a mapping lacks one of the recorded layers.
            InputTypeError, InputError: if the vectors are not finite numbers, have the wrong width or are all zero. An
                `InputError` is also raised if the directions and the cache are known to come from different models.
        """
        self._refuse_foreign(direction)
        values = self.stack(site).float()
        layers = self.layers(site)
        vectors = torch.stack(each_layers(direction, layers, values.shape[-1], site))
        lengths = vectors.norm(dim=-1, keepdim=True)
        if not bool(lengths.any()):
            raise InputError("direction is zero: expected a vector of nonzero length.")
        units = vectors / lengths.where(lengths > 0, 1.0)
        return torch.einsum("l...d,ld->l...", values, units.to(values))

    @overload
    def decompose_resid(self, layer: int | None = None, return_labels: Literal[False] = False) -> Components: ...
    @overload
    def decompose_resid(
        self, layer: int | None = None, *, return_labels: Literal[True]
    ) -> tuple[Float[Tensor, "component ..."], list[str]]: ...
    def decompose_resid(self, layer: int | None = None, return_labels: bool = False) -> Any:
        """Decompose the residual stream before a block into components that sum to it: "component row step d_model".

        The components sum to the input of block `layer`. If `layer` is `None`, -1 or the number of blocks, they cover
        the whole model and sum to the last `resid_post`. They are the embeddings ("embed" and "pos_embed" if both were
        recorded, otherwise their sum "0_pre") and the outputs of each block, for example "3_attn_out",
        "3_cross_attn_out" and "3_mlp_out". A change made by an intervention at a residual site is not a component, so
        the sum does not include the change. With `return_labels`, the result is the pair (values, list of labels), as
        in TransformerLens, instead of a `Components`.

        Raises:
            SiteError: if a component was not recorded; the message states which sites to record.
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
        """Return the labelled states of the residual stream up to a block: "component row step d_model".

        The states begin with "0_pre" and end with the input of block `layer`. If `layer` is `None`, they end with
        "final_post", which is the stream before the final norm. The input of a block is its `resid_pre` or, if that was
        not recorded, the `resid_post` of the previous block. `incl_mid` adds the states inside each block: "3_mid" is
        the state after the attention of block 3, and "3_cross" the state after its cross-attention. `return_labels`
        works as in `decompose_resid`.

        Raises:
            SiteError: if a state was not recorded; the message states which sites to record.
        """
        checked_flags(return_labels=return_labels)
        return labelled(accumulate(self, layer, incl_mid), return_labels)

    def logit_lens(
        self, lens: "HasModel | None" = None, *, site: str = "resid_post", layers: int | Sequence[int] | None = None
    ) -> Float[Tensor, "layer ..."]:
        """Return the logits of the residual stream at each recorded layer, as if the model ended after that layer.

        The final norm and the output heads are applied to the stream. The logits are "layer row codebook step vocab"
        (with "branch" before "row", or without "step", as recorded). At the last block they are the model's own logits.
        They take n_codebooks x vocab_size / d_model times as much memory as the states, so select only the `layers` you
        need. If the cache contains means over time (`reduce="mean"`), the result is the logits of the mean state, which
        differ from the mean of the logits.

        Args:
            lens: a lens on the model that the cache was recorded from. It is required if the cache was loaded from a
                file.
            site: the state of the residual stream to read.
            layers: the layers to read (`None` means all recorded layers).
        """
        return logit_lens(self, None if lens is None else lens.traced_model, site, layers)

    def to_frame(self) -> Any:
        """Return a pandas table with one line per recorded vector, including the norm of the vector.

        The columns are `name` (of the site), `site` (the short form of the name), `layer` (missing outside the blocks),
        all axes except the last ("branch", "row", "step", "head", ...), `prompt`, `seconds` (the time of the step), and
        `norm` (along the last axis). Building the table reads every tensor.
        """
        return lengths(self)

    def to(self, device: Any = None, dtype: str | torch.dtype | None = None) -> "ActivationCache":
        """Return the cache on another device or with another floating-point dtype, given as torch objects or by name.

        Raises:
            InputError: if this machine does not have the device, or if `dtype` is not a floating-point dtype.
        """
        return selection.moved(self, device, dtype)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the cache to one safetensors file, with the labels in its header, replacing any old file atomically.

        Raises:
            InputError: if the file cannot be written, or if `path` exists and is not a regular file.
        """
        return kept(as_path(path), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], sites: str | Sequence[str] | None = None) -> "ActivationCache":
        """Open a saved cache, or only some of its sites, given by full or short name ("resid_post" means every layer).

        Each tensor is read when it is first used, checked against its hash, and then kept in memory. `rows`, `seconds`,
        `at_layers` and `to` do not read any tensors. The file must remain unchanged until the last tensor is read.

        Raises:
            InputError: if the file is not a complete activation cache. An `InputError` is also raised later, when a
                tensor is read, if the file no longer exists or has changed.
            DamagedError: (an InputError) if the labels differ from those that were written. A `DamagedError` is also
                raised later, if a tensor differs from the one that was written.
            SiteError: if the file does not contain one of the sites.
        """
        whole = cls(**opened(path))
        return whole if sites is None else selection.of_sites(whole, sites, path)

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

    def model_weights(self) -> str:
        """The hash of the model's weights, or an empty string if the hash is not known."""
        return self.weights or ("" if self.readout is None else self.readout.weights())

    def _refuse_foreign(self, direction: Any) -> None:
        meta = getattr(direction, "meta", None)
        theirs = getattr(meta, "weights", "")
        if theirs and (mine := self.model_weights()) and mine != theirs:
            raise InputError(
                f"direction was read from {shown(getattr(meta, 'model', ''))}, and this cache was recorded from "
                f"{shown(self.model)}, which has different weights: a direction means nothing in another model. Read "
                "the direction again with the cache's model."
            )
