"""Choose and check the device, the dtype and the attention implementation of a model, and name them in results.

`"auto"` takes a GPU if there is one, and bfloat16 if the GPU computes in it natively. Elsewhere it means the CPU and
float32.
"""

import importlib.util
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from audiolens.checks import shown
from audiolens.errors import InputError, InputTypeError

AUTO = "auto"
ATTENTIONS = ("sdpa", "flash_attention_2", "eager")
FLASH_PACKAGE = "flash_attn"
"""The package that `flash_attention_2` needs, under the name by which it is imported."""
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HALF = (torch.float16, torch.bfloat16)


def chosen_device(device: str | int | torch.device | None) -> torch.device | None:
    """Return the device that was asked for, after checking that it exists; `None` stays `None`.

    "auto" is the current CUDA device, else Apple's GPU (mps), else the CPU.

    Raises:
        InputError: if this machine does not have the device.
    """
    if device is None:
        return None
    if isinstance(device, str) and device == AUTO:
        kinds = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        return torch.device(next((kind for kind, there in kinds if there), "cpu"))
    return checked_device(device)


def chosen_dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype | None:
    """Return the dtype that was asked for, after checking that the device can compute in it; `None` stays `None`.

    Args:
        device: `None` if a `device_map` places the model, or if the model stays where transformers loads it.

    Raises:
        InputError: if the dtype is unknown, or if the device does not support it.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        native = device is not None and device.type == "cuda" and has_bfloat16(device)
        return torch.bfloat16 if native else torch.float32
    found = checked_dtype(dtype)
    if found is not None and device is not None:
        _refuse_unsupported(found, device)
    return found


def mapped_device() -> torch.device:
    """Return a device among those on which a `device_map` such as "auto" places a model."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a CUDA device computes in bfloat16 natively. Older devices emulate it, which is slow."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def checked_device(device: str | int | torch.device) -> torch.device:
    """Return a device, after checking that it exists on this machine."""
    try:
        found = torch.device(device)
        lacking = _lacking(found)
        if lacking is None:
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        found, lacking = None, str(error).splitlines()[0]
    if found is None or lacking is not None:
        raise InputError(f"device={shown(str(device))} is not available: {lacking}")
    if found.type == "meta":
        raise InputError(f"device={shown(str(device))} stores no values: give a real device, such as 'cpu'.")
    return found


def _lacking(device: torch.device) -> str | None:
    """Return why this machine does not have a GPU, or `None` if it might have the device."""
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "torch finds no Apple GPU on this machine. Use 'cpu'."
    if device.type != "cuda":
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA. Install a build with CUDA, or use 'cpu'."
    if not torch.cuda.is_available():
        return "torch finds no GPU on this machine (`nvidia-smi` shows whether the driver does). Use 'cpu'."
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        return f"this machine has {count} GPU{'s' * (count > 1)}: {', '.join(f'cuda:{n}' for n in range(count))}."
    return None


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Check a floating-point dtype, given as a `torch.dtype` or by name, and return it; `None` stays `None`."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if (found is None and dtype is not None) or (found is not None and found not in _DTYPES):
        raise InputError(f"dtype={shown(dtype)}: expected a floating-point dtype such as 'float32' or 'bfloat16'.")
    return found


def _refuse_unsupported(dtype: torch.dtype, device: torch.device) -> None:
    """Raise an error if a device lacks the operations of a decoder or a codec in a dtype."""
    try:
        one = torch.ones(2, 2, dtype=dtype, device=device)
        functional.layer_norm(torch.softmax(one @ one, dim=-1), (2,))
        functional.conv1d(one[None], one[None])
    except (RuntimeError, TypeError) as error:
        name = str(dtype).removeprefix("torch.")
        raise InputError(
            f"dtype={name!r} is not supported on device={str(device)!r} ({str(error).splitlines()[0].rstrip('.')}): "
            "use 'float32'."
        ) from None


def refuse_attention(attention: object, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Raise an error if an attention implementation is unknown, or cannot run on this machine, device or dtype.

    `None` is never refused.
    """
    if attention is None:
        return
    if attention not in ATTENTIONS:
        raise InputError(f"attention={shown(attention)}: expected {', '.join(map(repr, ATTENTIONS))}.")
    if attention == "flash_attention_2":
        if importlib.util.find_spec(FLASH_PACKAGE) is None:
            raise InputError(
                f"attention={attention!r} needs the package flash-attn, which is not installed: use 'sdpa', or pip "
                "install flash-attn."
            )
        if device is not None and device.type != "cuda":
            raise InputError(f"attention={attention!r} runs only on a CUDA device, and this is {device}: use 'sdpa'.")
        if dtype is not None and dtype not in _HALF:
            raise InputError(
                f"attention={attention!r} computes only in bfloat16 or float16: give one of them as dtype, or use "
                "'sdpa'."
            )


def checked_device_map(device_map: Any) -> None:
    """Reject a device map that contains a device that this machine does not have, or if accelerate is not installed.

    Raises:
        InputTypeError, InputError: if the map is not accepted; the message states which maps are accepted.
    """
    if device_map is None:
        return
    if not (isinstance(device_map, str) and device_map in _MAPS):
        _refuse_map(device_map)
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            f"device_map={shown(device_map)} needs accelerate, which is not installed: pip install accelerate."
        )


def _refuse_map(device_map: Any) -> None:
    if isinstance(device_map, bool) or not isinstance(device_map, str | int | torch.device | Mapping):
        raise InputTypeError(
            f"device_map={shown(device_map)}: expected {', '.join(_MAPS)}, a device, or a dict of devices."
        )
    for device in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
        if device == "disk":
            raise InputError(
                f"device_map={shown(device_map)}: activations cannot be read from parts offloaded to disk."
            )
        try:
            checked_device(device)
        except InputError as error:
            raise InputError(
                f"device_map={shown(device_map)}: expected {', '.join(_MAPS)}, or devices; {error}"
            ) from None


def described(device: torch.device) -> str:
    """Return the name of a card, such as "NVIDIA H200", or the kind of processor, such as "cpu x86_64 AVX2".

    This is how results state what they were computed on, so it does not contain the number of the card.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # The instructions that torch uses change the last bits of sums.
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def memory_of(device: torch.device) -> int | None:
    """Return the total memory of a device in bytes, or `None` if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
