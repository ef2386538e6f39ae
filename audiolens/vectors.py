"""Vector arithmetic for directions at each layer: normalise, project out other vectors, match vectors to layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.checks import real_number, shown
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.tensors import finite

_PARALLEL = 1e-5


def apart(
    vectors: Float[Tensor, "layer d_model"], others: Sequence[Float[Tensor, "layer d_model"]]
) -> tuple[Float[Tensor, "layer d_model"], Bool[Tensor, " layer"]]:
    """Project the span of `others` out of `vectors` at each layer, and mark the layers where nothing remains."""
    # Normalise first, so that the rank cut-off of the pseudo-inverse does not depend on the vectors' lengths.
    basis = torch.stack([unit(other).double() for other in others], dim=-1)
    whole = vectors.double()
    rest = whole - (basis @ (torch.linalg.pinv(basis) @ whole[..., None]))[..., 0]
    return rest.float(), rest.norm(dim=-1) <= _PARALLEL * whole.norm(dim=-1)


def multiplier(what: str, value: object) -> float:
    """Return a finite Python, numpy or torch number as a float.

    Raises:
        InputTypeError: if the value is not a finite number.
    """
    try:
        number = real_number(value)
    except TypeError:
        number = math.nan
    if not math.isfinite(number):
        raise InputTypeError(f"directions {what} {shown(value)}: expected a finite number.")
    return number


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors scaled to norm 1, except that a zero vector stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def each_layers(direction: Any, layers: Sequence[int], width: int, site: str) -> list[Tensor]:
    """Return one vector per layer, taken from `Directions`, a mapping from layer to vector, or an array."""
    if isinstance(direction, Mapping) or (hasattr(direction, "layers") and hasattr(direction, "__contains__")):
        absent = [layer for layer in layers if layer not in direction]
        if absent:
            raise SiteError(
                f"no direction for layer {absent[0]}: {site} was recorded at layers {layers}. Use "
                "cache.at_layers([...]) to select the layers that have a direction."
            )
        vectors = [finite("direction", direction[layer]) for layer in layers]
    else:
        given = finite("direction", direction)
        vectors = list(given) if given.ndim == 2 and len(given) == len(layers) else [given] * len(layers)
    for vector in vectors:
        if vector.shape != (width,):
            raise InputError(
                f"direction of shape {tuple(vector.shape)}: expected a vector of width {width}, or one for each of "
                f"the {len(layers)} layers recorded at {site}."
            )
    return vectors
