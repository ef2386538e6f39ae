"""Count the operations for which the host would wait for a GPU, and the copies between host and device.

On a CPU nothing waits. Reading a number (`.item()`, `bool(tensor)`, `.tolist()`), finding indices (`nonzero`, indexing
with a mask or a list), moving a tensor by naming a device, and creating one from Python's numbers all show there too.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "lift_fresh", "unique_dim", "bincount"}
"""Operations of ATen that read from the device, or make a tensor from numbers of the host."""
METHODS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.cuda, Tensor.__bool__, Tensor.__float__,
    Tensor.__int__, Tensor.__index__,
}  # fmt: skip
"""Methods that read from the device, not all of which show as an operation on a CPU."""


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        name = func._schema.name.removeprefix("aten::")
        indices = [one for one in args[1] if isinstance(one, Tensor)] if name in ("index", "index_put_") else []
        if name in OPERATIONS or any(one.dtype == torch.bool for one in indices):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        named = func is Tensor.to and any(isinstance(one, torch.device | str) for one in args[1:])
        if func in METHODS or named:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(found: Counter[str]) -> Iterator[Counter[str]]:
    """Add what happens inside this context to `found`, by name."""
    with _Operations(found), _Methods(found):
        yield found
