"""Taps: where nnsight serves a site's value, how it is laid out there, and how a changed value is handed back.

Inside a run every value leads with the batch and then with time ("batch step ..."), whatever layout the model uses
and whatever order a user sees: edits and recordings cut time in one place. A `Form` knows all three.

Attention patterns and per-head results are never there to be read: they are recomputed, for the layers asked for,
from what the attention was given; a changed one recomputes what follows from it, and no more than what was changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from audiolens.errors import UnsupportedModelError
from audiolens.model.projections import affine

if TYPE_CHECKING:
    from audiolens.model.config import LensConfig

_TIME = ("step", "query")
_OPEN = ("token", "key")


@dataclass(frozen=True)
class Form:
    """How a site's values are laid out.

    `axes` is the order a user sees; `model` and `run` are the model's layout and the run's, in einops. `square`
    marks keys that are the queries' own steps.
    """

    axes: tuple[str, ...]
    model: str
    run: str
    square: bool = False

    @cached_property
    def timed(self) -> bool:
        """Whether the values have steps; those on the text's side have tokens instead."""
        return any(axis in _TIME for axis in self.axes)

    @cached_property
    def swapped(self) -> bool:
        """Whether time stands third for the user; it is always second inside a run."""
        return self.axes[1] not in (*_TIME, *_OPEN)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The axes as a run has them: rows, then steps (or tokens), then the features."""
        first, second, third, *rest = self.axes
        return (first, third, second, *rest) if self.swapped else self.axes

    @cached_property
    def open(self) -> str | None:
        """The axis whose length a batch decides: the text's tokens, or the keys of a pattern."""
        return next((axis for axis in self.axes if axis in _OPEN), None)

    def turned(self, values: Tensor) -> Tensor:
        """A run's values in the user's order, or a user's in the run's; leading axes stay."""
        return values.transpose(-3, -2) if self.swapped else values

    def features(self, config: "LensConfig") -> tuple[int | None, ...]:
        """The sizes of one step (or token) of one row; `None` for keys, which grow."""
        sizes = sizes_of(config)
        return tuple(sizes.get(axis) for axis in self.order[2:])

    def described(self, config: "LensConfig") -> str:
        """The axes with the sizes that the model fixes: "row step head=4 d_head=12".

        Where the conditioning is a prefix, its positions stand before the steps where they are asked for, and before
        the keys of a pattern always.
        """
        sizes = sizes_of(config)
        known = {axis: f"{axis}={size}" for axis, size in sizes.items()}
        if config.has_prefix:
            known |= {axis: f"[prefix+]{axis}" for axis in _TIME} | ({"key": "prefix+key"} if self.square else {})
        return " ".join(known.get(axis, axis) for axis in self.axes)


def sizes_of(config: "LensConfig") -> dict[str, int]:
    return {
        "d_model": config.d_model,
        "d_mlp": config.d_mlp,
        "head": config.n_heads,
        "d_head": config.d_head,
        "codebook": config.n_codebooks,
        "vocab": config.vocab_size,
    }


RESIDUAL = Form(("row", "step", "d_model"), "b s m", "b s m")
MLP = Form(("row", "step", "d_mlp"), "b s m", "b s m")
HEADS = Form(("row", "step", "head", "d_head"), "b s (h d)", "b s h d")
RESULT = Form(("row", "step", "head", "d_model"), "b s h m", "b s h m")
PATTERN = Form(("row", "head", "query", "key"), "b h q k", "b q h k", square=True)
TEXT = Form(("row", "token", "d_model"), "b t m", "b t m")
TEXT_HEADS = Form(("row", "token", "head", "d_head"), "b h t d", "b t h d")
TEXT_PATTERN = Form(("row", "head", "query", "key"), "b h q k", "b q h k")
LOGITS = Form(("row", "codebook", "step", "vocab"), "(b c) s v", "b s c v")


Put = Callable[[Tensor, Tensor | None], None]


@dataclass(frozen=True)
class View:
    """What a read needs to know: the model's sizes, the batch's rows (of both branches), and of a head site the heads
    asked for (`None`: all)."""

    config: "LensConfig"
    rows: int
    heads: tuple[int, ...] | None = None

    def of(self, values: Tensor, axis: int) -> Tensor:
        """The heads asked for."""
        if self.heads is None:
            return values
        return values.index_select(axis, torch.tensor(self.heads, device=values.device))


@dataclass(frozen=True)
class Tap:
    """Where a site's value is served.

    `module` is relative to the block (or to the model, for model-wide sites), `op` one operation of its forward,
    if not the whole; `port` is its first input, all its inputs, or its output; `item` picks one of several.
    `in_place` marks a value that the block also keeps for its skip connection: replacing the module's input would
    change the branch and not the residual stream, so an edit is written into the tensor itself.
    """

    module: str
    port: Literal["input", "inputs", "output"]
    form: Form = RESIDUAL
    item: int | str | None = None
    op: str | None = None
    in_place: bool = False
    recomputed: ClassVar[bool] = False
    """Whether the model never holds the value, so that it is made from what the model does hold."""

    shared: ClassVar[bool] = False
    """Whether one tensor stands for all rows, so that a write into it would change them all."""

    def open(self, place: Any, view: View) -> tuple[Tensor, Put]:
        """Inside a run: the value that `place`, the envoy of this tap, serves, and what puts another in its place.

        Value and other are in the run's layout. What has to be recomputed is so for the batch rows of a mask, or
        (`None`) where the other differs: elsewhere the model's own bits stay.
        """
        served, form = getattr(place, self.port), self.form
        value = self._part(served)
        if not isinstance(value, Tensor):
            raise self._unlike("a tensor", value)
        if form.model != form.run:
            sizes = {"h": view.config.n_heads} if "(h d)" in form.model else {}
            sizes |= {"c": view.config.n_codebooks} if "(b c)" in form.model else {}
            value = rearrange(value, f"{form.model} -> {form.run}", **sizes)

        def put(other: Tensor, _chosen: Tensor | None = None) -> None:
            changed = other if form.model == form.run else rearrange(other, f"{form.run} -> {form.model}")
            if self.in_place:
                served.copy_(changed)
            else:
                setattr(place, self.port, self._whole(served, changed))

        return view.of(value, 2) if "head" in form.axes else value, put

    def _part(self, served: Any) -> Any:
        """The site's own part of what was served."""
        if self.item is None:
            return served
        if self.port != "inputs":
            # A tensor would give its first row.
            if isinstance(served, Tensor):
                raise self._unlike("several values", served)
            return served[self.item]
        args, kwargs = served
        return args[self.item] if isinstance(self.item, int) else kwargs[self.item]

    def _unlike(self, expected: str, found: Any) -> UnsupportedModelError:
        part = self.module or "a block"
        return UnsupportedModelError(
            f"{part}: the lens expects {expected} as its {self.port}, and found {type(found).__name__}."
        )

    def _whole(self, served: Any, changed: Tensor) -> Any:
        """What was served, with this site's part changed."""
        if self.item is None:
            return changed
        if self.port == "inputs":
            args, kwargs = served
            if isinstance(self.item, str):
                return args, {**kwargs, self.item: changed}
            return (*args[: self.item], changed, *args[self.item + 1 :]), kwargs
        if isinstance(self.item, str):
            return replace(served, **{self.item: changed})
        return (*served[: self.item], changed, *served[self.item + 1 :])


@dataclass(frozen=True)
class Positions(Tap):
    """The position embeddings, which the model adds to every row: a change may differ from row to row."""

    shared = True

    def open(self, place: Any, view: View) -> tuple[Tensor, Put]:
        table, put = super().open(place, view)
        # Three axes: another invoke has changed its rows already.
        return table.expand(view.rows, -1, -1) if table.ndim == 2 else table, put


@dataclass(frozen=True)
class Pattern(Tap):
    """Attention's weights, recomputed from what its kernel is given; another pattern recomputes z with its values."""

    recomputed = True

    def open(self, place: Any, view: View) -> tuple[Tensor, Put]:
        args, kwargs = place.inputs
        attention, query, key, values, mask = args[:5]
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            raise UnsupportedModelError(
                "patterns are recomputed beside sdpa and eager attention: load the model with "
                "attn_implementation='sdpa' or 'eager'."
            )
        scaling, causal = kwargs["scaling"], bool(attention.is_causal)
        pattern = attention_pattern(view.of(query, 1), view.of(key, 1), mask, scaling, causal)
        before = rearrange(pattern, "b h q k -> b q h k")

        def put(other: Tensor, chosen: Tensor | None = None) -> None:
            z, *rest = place.output
            changed = (other != before).any(-1, keepdim=True) if chosen is None else chosen.reshape(-1, 1, 1, 1)
            recomputed = einsum(other.to(values.dtype), values, "b q h k, b h k d -> b q h d")
            place.output = (torch.where(changed, recomputed, z), *rest)

        return before, put


@dataclass(frozen=True)
class Result(Tap):
    """What each head writes: z through its part of the output weights. Their sum, with the bias, is the output."""

    recomputed = True

    def open(self, place: Any, view: View) -> tuple[Tensor, Put]:
        projection, heads = place._module, view.config.n_heads
        z = view.of(rearrange(place.input, "b s (h d) -> b s h d", h=heads), 2)
        matrix, bias = affine(projection, heads * z.shape[-1], z, call=place)
        weights = view.of(rearrange(matrix, "m (h d) -> h d m", h=heads), 0)
        before = einsum(z, weights, "b s h d, h d m -> b s h m")

        def put(other: Tensor, chosen: Tensor | None = None) -> None:
            output = place.output
            different = (other != before).flatten(2).any(-1) if chosen is None else chosen[:, None]
            summed = other.sum(2) if bias is None else other.sum(2) + bias
            place.output = torch.where(different[..., None], summed, output)

        return before, put


def attention_pattern(
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row head key d_head"],
    mask: Tensor | None,
    scaling: float,
    causal: bool,
) -> Float[Tensor, "row head query key"]:
    """Attention's weights, as transformers' eager attention computes them.

    `mask` is true (or zero) where a key is seen. Where none is, all weigh the same, as they do in eager attention: the
    null half attends to no text, and its cross-attention pattern is one over the tokens that its batch was padded to.
    Without a mask a causal attention over several steps sees the past, and one over a single step everything.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)
