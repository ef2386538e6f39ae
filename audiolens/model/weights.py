"""The weights of a model under TransformerLens's names: views of the model's tensors, one per block or per codebook.

`AudioLens` has these names as attributes, so `lens.W_Q[3]` works as in TransformerLens. TransformerLens has no names
for cross-attention weights. Here they have the names of the self-attention weights with `_cross` appended
(`lens.W_Q_cross[3]`), so that both appear together in name completion.

If a layer has an adapter, its weight here is the effective matrix, which is a computed copy instead of a view.

The weights are unprocessed. TransformerLens folds the layer norms into the weights when it loads a model, whereas here
`ln1.hook_normalized` is the full output of the norm, and `W_Q[l]` acts on that output. MusicGen's projections have no
biases, so there is no `b_Q`, `b_K`, `b_V` or `b_O`. Every tensor is detached from the gradient graph.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from audiolens.checks import shown, whole_number
from audiolens.errors import InputError, InputTypeError
from audiolens.model.families.family import BlockPaths
from audiolens.model.projections import affine, table
from audiolens.model.traced_model import HasModel, TracedModel


class Weights(tuple[Tensor, ...]):
    """One tensor per block (or codebook), indexed as `W[3]` or `W[3, head]`.

    `W[...]` or `torch.stack(W)` copies all these tensors into one tensor, whose shape is `W.shape`.
    """

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        if index is ...:
            return torch.stack(tuple(self))
        number, *inside = index if isinstance(index, tuple) else (index,)
        if isinstance(number, slice):
            if inside:
                raise InputTypeError(
                    f"{shown(index)}: a slice must be the only index; use torch.stack(W) to index further."
                )
            return Weights(super().__getitem__(number))
        try:
            number = whole_number(number)
        except TypeError:
            raise InputTypeError(
                f"weight {shown(number)}: expected a whole number from 0 to {len(self) - 1}."
            ) from None
        if not -len(self) <= number < len(self):
            raise InputError(f"there is no weight {number}: this model has {len(self)}, 0 to {len(self) - 1}.")
        chosen = super().__getitem__(number)
        return chosen[tuple(inside)] if inside else chosen

    @property
    def shape(self) -> torch.Size:
        """The shape of `torch.stack(W)`."""
        return torch.Size((len(self), *(self[0].shape if self else ())))

    def _no_arithmetic(self, other: object) -> Any:  # noqa: ARG002 - the signature of the operators
        raise InputTypeError(
            "weights are one tensor per block: compute with one tensor, such as W[3], or with torch.stack(W)."
        )

    # The operators of a tuple would repeat the blocks, or append the blocks of a different model.
    __mul__ = __rmul__ = __add__ = __radd__ = _no_arithmetic
    __array_ufunc__ = None

    def __repr__(self) -> str:
        return f"Weights({len(self)} x {tuple(self[0].shape)})"


def attention(name: str) -> tuple[property, property, property, property]:
    """W_Q, W_K, W_V ("head d_model d_head") and W_O ("head d_head d_model") of the named attention in every block."""
    into = "(head d_head) d_model -> head d_model d_head"

    def of(projection: str) -> Callable[[BlockPaths], str | None]:
        def path(parts: BlockPaths) -> str | None:
            module = parts.attentions.get(name)
            return None if module is None else f"{module}.{getattr(parts, projection)}"

        return path

    return (
        _per_block(of("query"), into),
        _per_block(of("key"), into),
        _per_block(of("value"), into),
        _per_block(of("output"), "d_model (head d_head) -> head d_head d_model"),
    )


def mlp() -> tuple[property, property]:
    """W_in ("d_model d_mlp") and W_out ("d_mlp d_model") of every block."""
    return (
        _per_block(lambda parts: parts.mlp_in, "d_mlp d_model -> d_model d_mlp"),
        _per_block(lambda parts: parts.mlp_out, "d_model d_mlp -> d_mlp d_model"),
    )


def unembeddings(traced: TracedModel) -> Weights:
    """The unembeddings W_U, "d_model vocab", one per codebook."""
    matrices = (_matrix(head, traced.config.d_model, traced) for head in traced.heads)
    return _weights(matrices, "vocab d_model -> d_model vocab")


def vocabulary() -> tuple[property, property, property]:
    """W_E ("code d_model") and W_U ("d_model vocab") of every codebook, and W_pos ("position d_model").

    The last row of each `W_E` belongs to the start token, which no `W_U` predicts.
    """

    def embeddings(lens: HasModel) -> Weights:
        traced = lens.traced_model
        parts = traced.family.embeddings(traced.model)
        return _weights((_rows(part, traced) for part in parts), "code d_model -> code d_model")

    def heads(lens: HasModel) -> Weights:
        return unembeddings(lens.traced_model)

    def positions(lens: HasModel) -> Tensor:
        traced = lens.traced_model
        return traced.family.positions(traced.model).weights.detach()

    return (
        property(embeddings, doc='One per codebook: "code d_model"; the last row is that of the start token.'),
        property(heads, doc='One per codebook: "d_model vocab".'),
        property(positions, doc='"position d_model".'),
    )


def _per_block(find: Callable[[BlockPaths], str | None], axes: str) -> property:
    """One weight of every block. `axes` converts transformers' "out in" to TransformerLens's layout without a copy."""

    def read(lens: HasModel) -> Weights:
        traced = lens.traced_model
        path = find(traced.family.parts)
        if path is None:
            raise AttributeError(f"{traced.family.name} has no cross-attention, and therefore no weights for it.")
        sizes = {"head": traced.config.n_heads} if "head" in axes else {}
        parts = [traced.family.part(block, path) for block in traced.blocks]
        width = traced.config.d_mlp if path == traced.family.parts.mlp_out else traced.config.d_model
        return _weights((_matrix(part, width, traced) for part in parts), axes, **sizes)

    return property(read, doc=f'One per block: "{axes.partition(" -> ")[2]}".')


@torch.no_grad()
def _matrix(module: Any, width: int, traced: TracedModel) -> Tensor:
    return affine(module, width, _like(module, traced))[0]


@torch.no_grad()
def _rows(module: Any, traced: TracedModel) -> Tensor:
    return table(module, _like(module, traced))


def _like(module: Any, traced: TracedModel) -> Tensor:
    """Return an empty tensor on the device of a module, in the dtype in which the model computes."""
    return torch.empty(0, dtype=traced.dtype, device=next(module.parameters()).device)


def _weights(parameters: Iterable[Tensor], axes: str, **sizes: int) -> Weights:
    return Weights(rearrange(parameter.detach(), axes, **sizes) for parameter in parameters)
