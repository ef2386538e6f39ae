"""Hash a model's weights, either fast and independently of the dtype, or exactly, covering every bit."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_SAMPLED = 256


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
    """Hash the name, dtype, shape and exact values of every weight and buffer, and the adapter settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    digest.update(adapter_settings(model))
    return digest.hexdigest()
