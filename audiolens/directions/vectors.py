"""Vector arithmetic for directions, layer by layer: normalising, projecting out a span, checking multipliers."""

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
    """Project out of each vector its component in the span of the others; also return where nothing is left."""
    # Normalise first, so that the rank cut-off of the pseudo-inverse does not depend on lengths.
    basis = torch.stack([unit(other).double() for other in others], dim=-1)
    whole = vectors.double()
    rest = whole - (basis @ (torch.linalg.pinv(basis) @ whole[..., None]))[..., 0]
    return rest.float(), rest.norm(dim=-1) <= _PARALLEL * whole.norm(dim=-1)


def multiplier(what: str, value: object) -> float:
    """Return a finite Python, numpy or torch number as a float.

    Raises:
        InputTypeError: if it is not a finite number.
    """
    try:
        number = real_number(value)
    except TypeError:
        number = math.nan
    if not math.isfinite(number):
        raise InputTypeError(f"directions {what} {value!r}: expected a finite number.")
    return number


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors scaled to norm 1; a zero vector stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
