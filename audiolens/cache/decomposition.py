"""Decompose the residual stream into the outputs of the model's parts, and compute the stream's states and logits.

The stream is a sum. It starts as the sum of the code and position embeddings, and every block adds the outputs of its
attention, cross-attention and MLP. This module implements the corresponding methods of `ActivationCache`.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from audiolens.arrays import AsArray
from audiolens.checks import checked_flags, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, nearest, shortened
from audiolens.model.provenance import weights_hash
from audiolens.model.sites import Site, named
from audiolens.model.traced_model import TracedModel
from audiolens.model.weights import unembeddings

if TYPE_CHECKING:
    from audiolens.cache.activation_cache import ActivationCache

# The parts that a block adds to the stream, in the model's order, each with the state of the stream after the addition.
_PARTS = {"attn_out": "resid_mid", "cross_attn_out": "resid_cross", "mlp_out": None}


@dataclass(frozen=True)
class Stream:
    """The structure of a model's residual stream, to which each of `n_layers` blocks adds its `parts` in order."""

    n_layers: int
    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.n_layers < 1 or not self.parts or not set(self.parts) <= set(_PARTS):
            raise InputError(f"stream of {self.n_layers} blocks with parts {self.parts}: expected some of {[*_PARTS]}.")

    @classmethod
    def of(cls, traced: TracedModel) -> "Stream":
        parts = tuple(part for part in _PARTS if traced.family.has(f"hook_{part}"))
        return cls(traced.config.n_layers, parts)

    def links(self) -> list[tuple[str, str, str]]:
        """The additions in a block, in order, each as (state of the stream, part added to it, resulting state)."""
        states = ["resid_pre", *(_PARTS[part] or "resid_post" for part in self.parts)]
        return list(zip(states, self.parts, states[1:], strict=False))


@dataclass(frozen=True, eq=False)
class Readout:
    """The map from the residual stream to logits: the final norm, then one head "d_model vocab" per codebook.

    A readout refers only to these tensors of the model, without copying them, so a cache with a readout does not keep
    any module in memory. `model` is a weak reference, which expires once nothing else refers to the model.
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    heads: tuple[Tensor, ...]
    model: "weakref.ref[Any] | None" = None

    @classmethod
    def of(cls, traced: TracedModel) -> "Readout":
        norm = traced.final_norm
        heads = tuple(unembeddings(traced))
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps, heads, weakref.ref(traced.model))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, which does not include the model."""
        return {**vars(self), "model": None}

    def weights(self) -> str:
        """The hash of the model's weights, or an empty string if the model no longer exists."""
        model = None if self.model is None else self.model()
        return "" if model is None else weights_hash(model)

    def logits(self, states: Float[Tensor, "*rows step d_model"]) -> Float[Tensor, "*rows codebook step vocab"]:
        """Compute logits on the model's device and in its dtype, and return them on the device of the states."""
        states_there = states.to(self.weight.device, self.weight.dtype)
        normed = F.layer_norm(states_there, [len(self.weight)], self.weight, self.bias, self.eps)
        return torch.stack([normed @ head for head in self.heads], dim=-3).to(states.device)


@guarded
@dataclass(frozen=True, eq=False)
class Components(AsArray):
    """Components or states of the residual stream: `values` of shape "component row step d_model", and their `labels`.

    The labels follow TransformerLens: "embed", "3_attn_out", "3_pre", "final_post". If both branches were recorded, a
    "branch" axis follows the first axis. If the cache was reduced over time, there is no "step" axis.
    """

    values: Float[Tensor, "component ..."]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def _numbers(self) -> Float[Tensor, "component ..."]:
        return self.values

    @property
    def instead(self) -> str:
        """Advice on what to pass instead of this object where a single tensor is expected."""
        return "give its values, or one component, parts['3_attn_out']."

    def __getitem__(self, label: str) -> Float[Tensor, "..."]:
        """Return the component with this label."""
        if label not in self.labels:
            raise SiteError(
                f"no component {shown(label)}.{nearest(label, self.labels)} Components: {shortened(self.labels)}."
            )
        return self.values[self.labels.index(label)]

    def __repr__(self) -> str:
        return f"Components({shortened(self.labels, 6)}; {tuple(self.values.shape)})"


def equipped(cache: "ActivationCache", traced: TracedModel) -> "ActivationCache":
    """Return the cache with the `stream` and `readout` that decomposition and the logit lens need."""
    return replace(cache, stream=Stream.of(traced), readout=Readout.of(traced))


def decompose(cache: "ActivationCache", layer: int | None) -> Components:
    """Return the components of the residual stream before block `layer`; see `ActivationCache.decompose_resid`."""
    what = f"decompose_resid({'' if layer is None else layer})"
    stream, end = _checked(cache, layer, what)
    apart = ("hook_embed", "hook_pos_embed")
    start = apart if all(name in cache.tensors for name in apart) else ("blocks.0.hook_resid_pre",)
    blocks = [f"blocks.{block}.hook_{part}" for block in range(end) for part in stream.parts]
    return _collected(cache, {_label(name): name for name in (*start, *blocks)}, what)


def accumulate(cache: "ActivationCache", layer: int | None, incl_mid: bool) -> Components:
    """Return the states of the residual stream up to block `layer`; see `ActivationCache.accumulated_resid`."""
    checked_flags(incl_mid=incl_mid)
    what = f"accumulated_resid({'' if layer is None else layer})"
    stream, end = _checked(cache, layer, what)
    inner = [_PARTS[part] for part in stream.parts[:-1]] if incl_mid else []
    states = {}
    for block in range(end):
        states[f"{block}_pre"] = _before(cache, block)
        states.update({_label(f"blocks.{block}.hook_{state}"): f"blocks.{block}.hook_{state}" for state in inner})
    if end == stream.n_layers:
        states["final_post"] = f"blocks.{end - 1}.hook_resid_post"
    else:
        states[f"{end}_pre"] = _before(cache, end)
    return _collected(cache, states, what)


def labelled(parts: Components, return_labels: bool) -> Any:
    """Return the components or, with `return_labels`, the pair (values, list of labels), as TransformerLens does."""
    return (parts.values, list(parts.labels)) if return_labels else parts


def below(cache: "ActivationCache", layer: int | None, what: str) -> int:
    """The number of blocks below a layer. A `layer` of `None`, -1 or the number of blocks means the whole model."""
    return _blocks(cache, layer, what)[1]


def logit_lens(
    cache: "ActivationCache", traced: TracedModel | None, site: str, layers: int | Sequence[int] | None
) -> Float[Tensor, "layer ..."]:
    """Return the logits of the residual stream at the given layers; see `ActivationCache.logit_lens`."""
    readout = cache.readout if traced is None else Readout.of(traced)
    if readout is None:
        raise InputError(
            "this cache does not contain the model's final norm and output heads, because they are not stored in "
            "files: give a lens on the model that the cache was recorded from, cache.logit_lens(lens)."
        )
    if traced is not None and cache.model and cache.model != traced.name:
        raise InputError(
            f"this cache was recorded from {shown(cache.model)}, but the lens is on {shown(traced.name)}: give a lens "
            "on the model it was recorded from, opened under the same name."
        )
    if cache.reduce == "max":
        raise InputError("reduce='max' does not store states of the stream: record steps, or reduce='mean' or 'last'.")
    if not named(site).short.startswith("resid_"):
        raise SiteError(
            f"site={shown(site)} is not a state of the residual stream: use resid_pre, resid_mid or resid_post."
        )
    chosen = cache.layers(site) if layers is None else cache.numbered(layers)
    if not cache.layers(site):
        raise SiteError(f"site {shown(site)} was not recorded. Recorded: {shortened(cache.tensors)}.")
    if not chosen:
        raise SiteError(f"no layer given: {site} was recorded at layers {cache.layers(site)}.")
    read = []
    for layer in chosen:
        states = cache[site, layer]
        if states.shape[-1] != len(readout.weight):
            raise InputError(
                f"the cache has width {states.shape[-1]}, but the lens's model has width {len(readout.weight)}."
            )
        read.append(readout.logits(states) if cache.reduce is None else readout.logits(states[..., None, :])[..., 0, :])
    return torch.stack(read)


def _checked(cache: "ActivationCache", layer: int | None, what: str) -> tuple[Stream, int]:
    """Return the result of `_blocks`, after checking that the values in the cache can be summed."""
    found = _blocks(cache, layer, what)
    if cache.reduce == "max":
        raise InputError(f"{what}: a sum of maxima is not the maximum of the sum. Record steps, or reduce='mean'.")
    return found


def _blocks(cache: "ActivationCache", layer: int | None, what: str) -> tuple[Stream, int]:
    """Return the model's residual stream, and the number of the block before which to stop."""
    stream = cache.stream
    if stream is None:
        raise InputError(f"{what}: this cache does not state how many blocks its model has. Record it with a lens.")
    try:
        asked = stream.n_layers if layer is None else whole_number(layer)
    except TypeError:
        raise InputTypeError(f"{what}: expected a layer, or None for the whole model.") from None
    end = stream.n_layers if asked == -1 else asked
    if not 0 <= end <= stream.n_layers:
        raise InputError(
            f"{what}: this model has layers 0 to {stream.n_layers - 1}; give {stream.n_layers} to use all of them."
        )
    return stream, end


def _before(cache: "ActivationCache", block: int) -> str:
    """The site of a block's input: the block's own `resid_pre`, or the `resid_post` of the previous block."""
    name = f"blocks.{block}.hook_resid_pre"
    return name if not block or name in cache.tensors else f"blocks.{block - 1}.hook_resid_post"


def _label(name: str) -> str:
    site = Site.of(name)
    short = site.short.replace("resid_", "").replace(".", "_")
    return short if site.layer is None else f"{site.layer}_{short}"


def _collected(cache: "ActivationCache", names: dict[str, str], what: str) -> Components:
    missing = [name for name in names.values() if name not in cache.tensors]
    if missing:
        raise SiteError(
            f"{what}: these sites were not recorded: {shortened(missing, 4)}. Record sites={_recipe(names.values())}."
        )
    # The position embeddings have a single row, which all rows share.
    parts = torch.broadcast_tensors(*(cache.tensors[name] for name in names.values()))
    return Components(torch.stack(parts), tuple(names))


def _recipe(names: Iterable[str]) -> list[str]:
    """The sites to record, by short name. The start of the stream keeps its full name: it exists only at block 0."""
    start = "blocks.0.hook_resid_pre"
    return list(dict.fromkeys(name if name == start else Site.of(name).short for name in names))
