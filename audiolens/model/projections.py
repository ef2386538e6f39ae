"""Projections: what a linear part of a model does, as one matrix and one bias, whatever is wrapped around it.

An adapter (unmerged LoRA, for one) puts a module of its own in the place of a layer, and the `weight` that it shows is
the base layer's alone. Its matrix is therefore what it does to the unit vectors; `proof_projections.py` shows at load
that it has one.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def affine(
    module: nn.Module, width: int, like: Tensor, call: Callable[[Tensor], Any] | None = None
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """The matrix and the bias of a projection of vectors of a `width`: a plain layer's own tensors, not copies.

    Of any other module they are computed, in the dtype and on the device of `like`; `call` is how it is called, where
    that is not as a function.
    """
    if type(module) is nn.Linear:
        return module.weight, module.bias
    apply = call or module
    nothing = torch.zeros(1, width, dtype=like.dtype, device=like.device)
    unit = torch.eye(width, dtype=like.dtype, device=like.device)
    bias = apply(nothing)
    return (apply(unit) - bias).T, bias[0]


def table(module: nn.Module, like: Tensor) -> Float[Tensor, "code d_model"]:
    """The rows of an embedding: a plain one's own tensor, else what it gives for every code."""
    weight: Any = module.weight
    if type(module).__module__.partition(".")[0] in ("torch", "transformers"):
        return weight
    return module(torch.arange(len(weight), device=like.device))
