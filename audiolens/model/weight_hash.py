"""Hash a model's weights, either fast and independently of the dtype, or exactly, covering every bit."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

_SAMPLED = 256
_BLOCK = 2**16
"""Number of 8-byte words that the checksum takes at a time, so that they fit in a CPU's cache."""
_FACTOR = 6364136223846793005
"""An odd 64-bit factor (that of Knuth's MMIX generator), which makes the checksum depend on the order of blocks."""


def weights_hash(model: nn.Module) -> str:
    """Hash a model's decoder: the name and shape of every parameter tensor, and 256 evenly spaced values of each.

    The hash is cheap even for billions of parameters, but a change in the other values is not detected. Training
    changes all values and is detected, whereas an edit of a single weight might not be detected. Values are first
    rounded to bfloat16, so that a model has the same hash in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    decoder = getattr(model, "decoder", model)
    for name, parameter in sorted(decoder.named_parameters(), key=lambda entry: entry[0]):
        flat = parameter.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
    digest.update(adapter_settings(decoder))
    return digest.hexdigest()[:16]


def adapter_settings(model: nn.Module) -> bytes:
    """Return the adapter settings (active adapter, scale), which change the output but are not weights.

    These settings are the plain values in modules from packages other than torch and transformers. The result is empty
    if there are no such modules.
    """
    settings, every = [], vars(nn.Module())
    for name, module in sorted(model.named_modules(), key=lambda entry: entry[0]):
        if type(module).__module__.partition(".")[0] not in ("torch", "transformers"):
            own = {key: value for key, value in vars(module).items() if key not in every and _plain(value)}
            settings.append([name, type(module).__qualname__, sorted((key, repr(value)) for key, value in own.items())])
    return json.dumps(settings).encode() if settings else b""


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(map(_plain, [*value, *value.values()]))
    return value is None or isinstance(value, bool | int | float | str)


def content_hash(model: nn.Module) -> str:
    """Hash the name, dtype, shape and exact values of every weight and buffer, and the adapter settings.

    A run asks for this hash several times. It is therefore kept with the model, together with a stamp of the weights,
    and computed again only if the stamp has changed.
    """
    weights = sorted(model.state_dict().items())
    settings = adapter_settings(model)
    stamp = settings, tuple(_stamp(name, tensor) for name, tensor in weights)
    kept = _KEPT.get(model)
    if kept is None or kept[0] != stamp:
        kept = _KEPT[model] = stamp, _hashed(weights, settings)
    return kept[1]


_Stamp = tuple[bytes, tuple[tuple[Any, ...], ...]]
_KEPT: "WeakKeyDictionary[nn.Module, tuple[_Stamp, str]]" = WeakKeyDictionary()
"""The content hash of every model that was hashed, with the stamp of its weights."""


def _hashed(weights: Iterable[tuple[str, Tensor]], settings: bytes) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        content: Any = _bytes_of(tensor).cpu().numpy()
        digest.update(content)
    digest.update(settings)
    return digest.hexdigest()


def _stamp(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Return a value that differs whenever the tensor was replaced or changed.

    Torch's version counter does not see a change through `.data` or through an array that shares the memory, so the
    stamp also contains a checksum of all values. It takes a fraction of the time of a cryptographic hash.
    """
    version = None if tensor.is_inference() else tensor._version
    where = tensor.device, tensor.data_ptr()
    return name, tensor.dtype, tuple(tensor.shape), where, version, _checksum(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> UInt8[Tensor, " byte"]:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


@cache
def _places(device: torch.device) -> Int64[Tensor, " word"]:
    return torch.arange(1, _BLOCK + 1, device=device)


def _checksum(content: UInt8[Tensor, " byte"]) -> int:
    """Return a 64-bit checksum that depends on the position of every byte."""
    if content.storage_offset() % 8 or content.data_ptr() % 8:
        content = content.clone()
    whole = len(content) // 8 * 8
    places = _places(content.device)
    found = int.from_bytes(bytes(content[whole:].tolist()), "little")
    for words in content[:whole].view(torch.int64).split(_BLOCK):
        # Overflow wraps around, in torch as in the modulus here.
        found = (found * _FACTOR + int((words * places[: len(words)]).sum())) % 2**64
    return found
