"""Site access: where nnsight provides a site's value, how it is laid out, and how a changed value is written back.

Inside a run, every value begins with the batch axis and the time axis ("batch step ..."), regardless of the model's
layout and of the order that a user sees. Edits and recordings can therefore slice time in the same way everywhere. A
`Form` describes the layouts in the model, in a run and for the user.

The model never stores attention patterns or per-head results. They are recomputed, for the requested layers, from the
inputs of the attention module. If a pattern or result is changed, only values that depend on the change are recomputed.
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
    """The layout of a site's values.

    `axes` are the axes in the order that a user sees. `model` and `run` are the layouts in the model and in a run, in
    einops notation. `square` means that the keys are the same steps as the queries.
    """

    axes: tuple[str, ...]
    model: str
    run: str
    square: bool = False

    @cached_property
    def timed(self) -> bool:
        """Whether the values have a step axis. At sites on the text side, they have a token axis instead."""
        return any(axis in _TIME for axis in self.axes)

    @cached_property
    def keyed(self) -> bool:
        """Whether the values relate each step to keys, as an attention pattern does."""
        return "key" in self.axes

    @cached_property
    def on_text(self) -> bool:
        """Whether an axis has one position per text token: the token axis, or the keys of a cross-attention."""
        return "token" in self.axes or (self.keyed and not self.square)

    @cached_property
    def swapped(self) -> bool:
        """Whether time is the third axis in the user's order, whereas inside a run it is always the second."""
        return self.axes[1] not in (*_TIME, *_OPEN)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The axes in a run's order: rows, then steps (or tokens), then features."""
        first, second, third, *rest = self.axes
        return (first, third, second, *rest) if self.swapped else self.axes

    @cached_property
    def open(self) -> str | None:
        """The axis whose length depends on the batch: the tokens of the text, or the keys of a pattern."""
        return next((axis for axis in self.axes if axis in _OPEN), None)

    def turned(self, values: Tensor) -> Tensor:
        """Convert values from a run's axis order to the user's order, or back; leading axes are unchanged."""
        return values.transpose(-3, -2) if self.swapped else values

    def features(self, config: "LensConfig") -> tuple[int | None, ...]:
        """The sizes of the axes after row and step (or token). A key axis has size `None`, because its length grows."""
        sizes = sizes_of(config)
        return tuple(sizes.get(axis) for axis in self.order[2:])

    def described(self, config: "LensConfig") -> str:
        """The axes, with the sizes that the model fixes, such as "row step head=4 d_head=12".

        If the conditioning is a prefix, its positions always precede the keys of an attention pattern. They precede the
        steps only if the user requests the prefix.
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
    """What determines how a value is read: the model's sizes, the number of batch rows, and the requested heads.

    The batch rows are those of both branches together. `heads` is used only at head sites, and `None` means all heads.
    """

    config: "LensConfig"
    rows: int
    heads: tuple[int, ...] | None = None

    def of(self, values: Tensor, axis: int) -> Tensor:
        """Return the values of the requested heads."""
        if self.heads is None:
            return values
        return values.index_select(axis, torch.tensor(self.heads, device=values.device))


@dataclass(frozen=True)
class Tap:
    """The point in the forward pass at which a site's value is read and written.

    `module` is a path relative to the block (or to the model, for model-wide sites). `op` is one operation of the
    module's forward pass, or `None` for the whole module. `port` selects the first input, all inputs, or the output,
    and `item` selects one of several values. `in_place` marks a value that the block also uses for its skip connection.
    Replacing the module's input would change the module's output but not the skip connection, so an edit is written
    into the tensor itself.
    """

    module: str
    port: Literal["input", "inputs", "output"]
    form: Form = RESIDUAL
    item: int | str | None = None
    op: str | None = None
    in_place: bool = False
    recomputed: ClassVar[bool] = False
    """Whether the value is recomputed because the model never stores it."""

    needs_mask: ClassVar[bool] = False
    """Whether the value depends on the kernel's attention mask, which only sdpa and eager attention receive."""

    shared: ClassVar[bool] = False
    """Whether all rows share one tensor, so that writing into it would change every row."""

    def open(self, envoy: Any, view: View) -> tuple[Tensor, Put]:
        """Return, inside a run, the value at this tap (`envoy`), and a function that replaces the value.

        The old and the new value are in the run's layout. The function's second argument is a mask of the batch rows in
        which dependent values are recomputed; `None` selects the positions at which the new value differs. The model's
        values are kept bit for bit everywhere else.
        """
        served, form = getattr(envoy, self.port), self.form
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
                setattr(envoy, self.port, self._whole(served, changed))

        return view.of(value, 2) if "head" in form.axes else value, put

    def _part(self, served: Any) -> Any:
        """Return the part of the value from nnsight that belongs to this site."""
        if self.item is None:
            return served
        if self.port != "inputs":
            # Indexing a tensor would select its first row.
            if isinstance(served, Tensor):
                raise self._unlike("several values", served)
            return served[self.item]
        args, kwargs = served
        return args[self.item] if isinstance(self.item, int) else kwargs[self.item]

    def _unlike(self, expected: str, found: Any) -> UnsupportedModelError:
        part = self.module or "a block"
        return UnsupportedModelError(
            f"{part}: the lens expects {expected} as its {self.port}, but found {type(found).__name__}."
        )

    def _whole(self, served: Any, changed: Tensor) -> Any:
        """Return the value from nnsight with this site's part changed."""
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
    """The position embeddings. The model adds the same embeddings to every row, but edits can differ between rows."""

    shared = True

    def open(self, envoy: Any, view: View) -> tuple[Tensor, Put]:
        table, put = super().open(envoy, view)
        # If the table has three axes, another nnsight invoke has already changed its own rows.
        return table.expand(view.rows, -1, -1) if table.ndim == 2 else table, put


@dataclass(frozen=True)
class Pattern(Tap):
    """The attention pattern, recomputed from the inputs of the attention kernel. Writing a pattern recomputes z."""

    recomputed = True
    needs_mask = True

    def open(self, envoy: Any, view: View) -> tuple[Tensor, Put]:
        args, kwargs = envoy.inputs
        attention, query, key, values, mask = args[:5]
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            raise UnsupportedModelError(
                "patterns can be recomputed only for sdpa and eager attention: load the model with "
                "attn_implementation='sdpa' or 'eager'."
            )
        scaling, causal = kwargs["scaling"], bool(attention.is_causal)
        pattern = attention_pattern(view.of(query, 1), view.of(key, 1), mask, scaling, causal)
        before = rearrange(pattern, "b h q k -> b q h k")

        def put(other: Tensor, chosen: Tensor | None = None) -> None:
            z, *rest = envoy.output
            changed = (other != before).any(-1, keepdim=True) if chosen is None else chosen.reshape(-1, 1, 1, 1)
            recomputed = einsum(other.to(values.dtype), values, "b q h k, b h k d -> b q h d")
            envoy.output = (torch.where(changed, recomputed, z), *rest)

        return before, put


@dataclass(frozen=True)
class Result(Tap):
    """The output of each head, which is z times the head's slice of the output weights. The attention's output is the
    sum over heads plus the bias."""

    recomputed = True

    def open(self, envoy: Any, view: View) -> tuple[Tensor, Put]:
        projection, heads = envoy._module, view.config.n_heads
        z = view.of(rearrange(envoy.input, "b s (h d) -> b s h d", h=heads), 2)
        matrix, bias = affine(projection, heads * z.shape[-1], z, call=envoy)
        weights = view.of(rearrange(matrix, "m (h d) -> h d m", h=heads), 0)
        before = einsum(z, weights, "b s h d, h d m -> b s h m")

        def put(other: Tensor, chosen: Tensor | None = None) -> None:
            output = envoy.output
            different = (other != before).flatten(2).any(-1) if chosen is None else chosen[:, None]
            summed = other.sum(2) if bias is None else other.sum(2) + bias
            envoy.output = torch.where(different[..., None], summed, output)

        return before, put


def attention_pattern(
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row head key d_head"],
    mask: Tensor | None,
    scaling: float,
    causal: bool,
) -> Float[Tensor, "row head query key"]:
    """Compute the attention pattern as in transformers' eager attention.

    `mask` is true (or zero) where a key is visible. A query without a visible key gives all keys the same weight, as in
    eager attention. The unconditional (null) half does not see any text, so each weight of its cross-attention pattern
    is 1 divided by the padded number of tokens in the batch. Without a mask, causal attention over several steps sees
    only the present and the past, whereas causal attention over a single step sees all keys.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)
