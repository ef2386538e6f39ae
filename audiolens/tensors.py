"""Numbers from outside as tensors: of any array, whatever its strides, the order of its bytes or its home."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolens.arrays import AsArray
from audiolens.checks import refuse_masked
from audiolens.errors import InputError, InputTypeError


def numbers(name: str, value: Any) -> Tensor:
    """A finite float tensor of no or one axis from a number, a sequence, an array or a tensor."""
    tensor = finite(name, value)
    if tensor.ndim > 1:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}: expected a number, or one per row.")
    return tensor


def finite(name: str, value: Any) -> Tensor:
    """A detached float32 copy, on the CPU, of an array of finite numbers; a run moves it to its model."""
    tensor = tensor_of(name, value).detach()
    if tensor.is_complex() or tensor.dtype == torch.bool:
        kind = "complex ones" if tensor.is_complex() else "truth values"
        raise InputTypeError(f"{name}={type(value).__name__}: expected numbers ({kind}).")
    tensor = tensor.to("cpu", torch.float32, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} holds NaN or infinite values in float32: expected finite numbers.")
    return tensor


def tensor_of(name: str, values: Any) -> Tensor:
    """A tensor of an array, a tensor, a number or a list of numbers; a tensor comes back as it is, all else copied.

    Raises:
        InputTypeError: for anything else, and for a masked array.
    """
    if isinstance(values, AsArray):
        raise InputTypeError(f"{name}={type(values).__name__}: expected numbers; {values.instead}")
    if isinstance(values, str | bytes | Mapping | Set):
        raise InputTypeError(f"{name}={type(values).__name__}: expected numbers.")
    refuse_masked(name, values)
    if isinstance(values, Tensor):
        return values
    if hasattr(values, "__array__"):
        return _of_array(name, np.asarray(values))
    try:
        given = list(values) if isinstance(values, Iterable) else values
        made = torch.as_tensor(given, device="cpu")
        # Of Python's numbers torch makes its default dtype, which may round them.
        return torch.as_tensor(given, dtype=torch.float32, device="cpu") if made.is_floating_point() else made
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name}={type(values).__name__}: expected numbers ({error}).") from None


def _of_array(name: str, array: np.ndarray) -> Tensor:
    """torch takes no negative stride, no foreign order of bytes and no long double."""
    if array.dtype.kind not in "fiubc":
        raise InputTypeError(f"{name} of {array.dtype}: expected numbers.")
    wide = array.dtype.kind == "f" and array.itemsize > 8
    return torch.from_numpy(array.astype(np.float64 if wide else array.dtype.newbyteorder("="), order="C", copy=True))
