"""Convert audiolens objects to numpy arrays and torch tensors, or raise an error if they do not contain a single array.

Without this conversion, numpy and torch would iterate over such an object, and compute with its keys (layer numbers or
site names) instead of its values.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from audiolens.errors import InputTypeError

if TYPE_CHECKING:
    from torch import Tensor


class AsArray:
    """Base class of objects that numpy and torch can convert to one array.

    `np.asarray` and `torch.as_tensor` copy what `_numbers` returns, and numpy defers to the operators of the class.
    """

    __array_ufunc__ = None

    def _numbers(self) -> "Tensor":
        raise InputTypeError(f"{type(self).__name__} is not an array of numbers: {self.instead}")

    @property
    def instead(self) -> str:
        """Advice on what to pass instead of this object where a single array is expected."""
        raise NotImplementedError

    def _copy(self) -> "Tensor":
        return self._numbers().detach().clone()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: ARG002 - always a copy
        try:
            dtype = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise InputTypeError(f"dtype={type(dtype).__name__}: expected a numpy dtype.") from None
        values = self._copy().cpu()
        # numpy has no bfloat16.
        return np.asarray(values.float() if values.is_floating_point() and values.itemsize < 4 else values, dtype=dtype)

    def __dlpack__(self, **how: Any) -> Any:
        return self._copy().__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._numbers().__dlpack_device__()
