"""Reopening: what of a lens goes to another process: how it was opened, and a hash of its weights to compare there.

`AudioLens` pickles with it, so joblib and multiprocessing may hand a lens to their workers: each opens the model anew,
from the package, its folder or the hub, and refuses it if it does not hold the same weights to the bit.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audiolens.errors import InputError
from audiolens.model.loading import BUNDLED
from audiolens.model.weight_hash import content_hash

_SAVE = (
    "Save it (lens.model.save_pretrained(folder), lens.tokenizer.save_pretrained(folder)) and open it with "
    "AudioLens.from_pretrained(folder), here and there."
)


@dataclass(frozen=True)
class Opening:
    """How `AudioLens.from_pretrained` was called; `name` leads to the same model from any working directory."""

    name: str
    dtype: str | None
    revision: str | None
    device_map: Any

    @classmethod
    def of(
        cls,
        name: str | os.PathLike[str],
        dtype: str | torch.dtype | None,
        revision: str | None,
        device_map: Any,
    ) -> "Opening":
        """The opening of a call that went well."""
        folder = Path(name).expanduser()
        local = os.fspath(name) not in BUNDLED and folder.is_dir()
        return cls(
            str(folder.absolute()) if local else os.fspath(name),
            None if dtype is None else str(dtype).removeprefix("torch."),
            revision,
            device_map,
        )


def packed(lens: Any, opening: Opening | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What `pickle` writes of a lens.

    Raises:
        InputError: for a model that was given in memory, or has hooks, which are in no file.
    """
    if opening is None:
        raise InputError(
            f"a lens on a model that was given in memory ({lens.name!r}) cannot go to another process, which could not "
            f"load it. {_SAVE}"
        )
    if any(map(_hooked, lens.model.modules())):
        raise InputError(f"the model of {lens.name!r} has hooks, which are in none of its files: remove them first.")
    device = None if opening.device_map is not None else str(lens.device)
    return _reopened, (type(lens), opening, lens.name, device, _attention(lens.model), content_hash(lens.model))


def _reopened(
    cls: "type[Any]", opening: Opening, name: str, device: str | None, attention: str | None, weights: str
) -> Any:
    lens = cls.from_pretrained(
        opening.name, device=device, dtype=opening.dtype, revision=opening.revision, device_map=opening.device_map
    )
    if content_hash(lens.model) != weights:
        raise InputError(
            f"{name!r} does not hold the weights here that it had where the lens comes from: they were changed in "
            f"memory, or the files differ. {_SAVE}"
        )
    if attention is not None and attention != _attention(lens.model):
        lens.model.set_attn_implementation(attention)
    lens.name = name
    return lens


def _hooked(part: torch.nn.Module) -> bool:
    """Whether a part has hooks other than those that torch itself puts on, as for a weight norm."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return any(not type(hook).__module__.startswith("torch.nn.utils") for hook in hooks)


def _attention(model: Any) -> str | None:
    return getattr(model.config, "_attn_implementation", None)
