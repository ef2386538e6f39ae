"""Sums on the vectors of directions, layer by layer: their length, their span, and what may multiply them."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.checks import real_number
from audiolens.errors import InputTypeError

_PARALLEL = 1e-5


def apart(
    vectors: Float[Tensor, "layer d_model"], others: Sequence[Float[Tensor, "layer d_model"]]
) -> tuple[Float[Tensor, "layer d_model"], Bool[Tensor, " layer"]]:
    """What is left of each vector without its part in the span of the others', and where that is nothing."""
    # Unit vectors first, so that the rank cut-off of the least squares does not depend on lengths.
    basis = torch.stack([unit(other).double() for other in others], dim=-1)
    whole = vectors.double()
    rest = whole - (basis @ (torch.linalg.pinv(basis) @ whole[..., None]))[..., 0]
    return rest.float(), rest.norm(dim=-1) <= _PARALLEL * whole.norm(dim=-1)


def multiplier(what: str, value: object) -> float:
    """A finite number, Python's, numpy's or torch's.

    Raises:
        InputTypeError: if it is none.
    """
    try:
        number = real_number(value)
    except TypeError:
        number = math.nan
    if not math.isfinite(number):
        raise InputTypeError(f"directions {what} {value!r}: expected a finite number.")
    return number


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1; a zero vector stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
