"""Compute the effective matrix and bias of a linear layer, even if an adapter wraps it.

An adapter such as unmerged LoRA replaces a layer with a module whose `weight` is that of the base layer alone. The
effective matrix is therefore computed by applying the module to the unit vectors. When a model is loaded,
`tracing/self_check/projections.py` verifies that the module is affine.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def affine(
    module: nn.Module, width: int, like: Tensor, call: Callable[[Tensor], Any] | None = None
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Return the matrix and bias of a projection of vectors with `width` entries.

    For a plain linear layer these are the layer's own tensors, not copies. For any other module they are computed, in
    the dtype and on the device of `like`. If the module cannot be called directly, `call` is called instead.
    """
    if type(module) is nn.Linear:
        return module.weight, module.bias
    apply = call or module
    nothing = torch.zeros(1, width, dtype=like.dtype, device=like.device)
    unit = torch.eye(width, dtype=like.dtype, device=like.device)
    bias = apply(nothing)
    return (apply(unit) - bias).T, bias[0]


def table(module: nn.Module, like: Tensor) -> Float[Tensor, "code d_model"]:
    """The rows of an embedding: the weight of a plain embedding, or the output of any other module for each code."""
    weight: Any = module.weight
    if type(module).__module__.partition(".")[0] in ("torch", "transformers"):
        return weight
    return module(torch.arange(len(weight), device=like.device))
