"""Write the state of a training run to a file, and go on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from analysis.features.learning import Learner
from audiolens.checks import shown
from audiolens.errors import DamagedError, InputError
from audiolens.files import integrity
from audiolens.files.atomic import written
from audiolens.files.bounded import json_of, read_header
from audiolens.files.json_shapes import refuse_other

FORMAT = "audiolens.sae.state.1"
_SHAPE = {"format": str, "step": int, "seen": int, "scale": float}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def keep(learner: Learner, path: Path) -> None:
    """Write the weights, the moments of the optimiser and the counters of a learner.

    Raises:
        InputError: if the file cannot be written.
    """
    tensors = {f"weights/{name}": value.detach().cpu().contiguous() for name, value in learner.weights.items()}
    for name, value in learner.weights.items():
        state = learner.adam.state.get(value, {})
        tensors |= {f"{moment}/{name}": state[moment].cpu().contiguous() for moment in _MOMENTS if moment in state}
    tensors["silent"] = learner.silent.cpu()
    facts = {"format": FORMAT, "step": learner.step, "seen": learner.seen, "scale": learner.scale}
    with written(path) as whole:
        save_file(tensors, whole, metadata=integrity.sealed_header(facts, tensors))


def restore(learner: Learner, path: Path) -> None:
    """Set a learner to the state in a file.

    Raises:
        DamagedError: if the file is damaged or is not a state of this learner.
    """
    try:
        facts = json_of(path, read_header(path).metadata.get(integrity.HEADER, "{}"))
        refuse_other(path, facts, _SHAPE)
        if facts["format"] != FORMAT:
            raise InputError(f"it has format {shown(facts['format'])}, and this version writes {FORMAT}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        integrity.check_header(path, facts, {name: tensor.shape for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            integrity.check_tensor(path, facts, name, tensor)
        with torch.no_grad():
            for name, value in learner.weights.items():
                value.copy_(tensors[f"weights/{name}"])
                if value.requires_grad:
                    moments = {moment: tensors[f"{moment}/{name}"].to(value.device) for moment in _MOMENTS}
                    learner.adam.state[value] = {"step": torch.tensor(float(facts["step"])), **moments}
        learner.silent = tensors["silent"].to(learner.silent.device)
    except (SafetensorError, InputError, KeyError, RuntimeError) as error:
        raise DamagedError(f"{path} is damaged ({' '.join(str(error).split())[:200].rstrip('.')}).") from None
    learner.step, learner.seen, learner.scale = facts["step"], facts["seen"], facts["scale"]
