"""Resumable training state in one safetensors file, without pickle: modules, optimiser moments and the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audiolens.files.atomic import written


def save(
    path: Path, modules: Mapping[str, torch.nn.Module], step: int, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write everything needed to resume from `step`; the file appears complete or not at all."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    with written(path) as whole:
        save_file(
            {key: value.detach().clone().contiguous() for key, value in tensors.items()}, whole, {"step": str(step)}
        )


def load(path: Path, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restore in place what `save` wrote; returns the step to resume from, 0 if there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        step = int(file.metadata()["step"])
    for name, module in modules.items():
        module.load_state_dict({k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")})
    if optimizer is not None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
