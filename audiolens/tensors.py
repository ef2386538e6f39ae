"""Convert a caller's numbers and arrays to tensors, whatever the strides, byte order or device of the arrays."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolens.arrays import AsArray
from audiolens.checks import refuse_masked
from audiolens.errors import InputError, InputTypeError


def numbers(name: str, value: Any) -> Tensor:
    """Convert a number, a sequence, an array or a tensor to a finite float tensor with at most one axis."""
    tensor = finite(name, value)
    if tensor.ndim > 1:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}: expected a number, or one per row.")
    return tensor


def finite(name: str, value: Any) -> Tensor:
    """Return a detached float32 copy of an array of finite numbers. The copy is on the CPU until a run moves it to the
    model's device."""
    tensor = tensor_of(name, value).detach()
    if tensor.is_complex() or tensor.dtype == torch.bool:
        kind = "complex numbers" if tensor.is_complex() else "booleans"
        raise InputTypeError(f"{name}={type(value).__name__}: expected real numbers, got {kind}.")
    tensor = tensor.to("cpu", torch.float32, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} contains NaN or infinite values in float32: expected finite numbers.")
    return tensor


def tensor_of(name: str, values: Any) -> Tensor:
    """Copy an array, a number or a list of numbers to a tensor, or return a tensor unchanged.

    Raises:
        InputTypeError: if `values` is another kind of object, or a masked array.
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
        # torch converts Python floats to its default dtype, which may round them.
        return torch.as_tensor(given, dtype=torch.float32, device="cpu") if made.is_floating_point() else made
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name}={type(values).__name__}: expected numbers ({error}).") from None


def _of_array(name: str, array: np.ndarray) -> Tensor:
    """Copy a numpy array to a tensor. Negative strides, non-native byte order and long doubles are converted, because
    torch does not accept them."""
    if array.dtype.kind not in "fiubc":
        raise InputTypeError(f"{name} has dtype {array.dtype}: expected numbers.")
    wide = array.dtype.kind == "f" and array.itemsize > 8
    return torch.from_numpy(array.astype(np.float64 if wide else array.dtype.newbyteorder("="), order="C", copy=True))
