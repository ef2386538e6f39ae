"""Resumable training state in one safetensors file, without pickle: modules, optimiser moments and the step."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from audiolens.errors import InputError
from audiolens.files.atomic import written
from audiolens.files.bounded import read_header


def save(
    path: Path, modules: Mapping[str, torch.nn.Module], step: int, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write everything needed to resume from `step`. The file is written atomically."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    with written(path) as whole:
        save_file(
            {key: value.detach().clone().contiguous() for key, value in tensors.items()}, whole, {"step": str(step)}
        )


def load(path: Path, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restore in place what `save` wrote, and return the step to resume from, or 0 if there is no file.

    Raises:
        InputError: if the file is damaged, or contains the state of different modules.
    """
    if not os.path.lexists(path):
        return 0
    step = read_header(path).metadata.get("step", "")
    if not re.fullmatch(r"\d{1,15}", step):
        raise InputError(f"{path} is not a training state: its header gives no step.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        for name, module in modules.items():
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            module.load_state_dict(own)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{path} is not the training state of these modules: {error}.") from None
    if optimizer is not None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(step)
