"""The files of a training run's folder, and the description that decides whether the run can be resumed there.

This module does not import torch, so that the command line can check a folder at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.store.resumable import Kind, first_difference
from audiolens.errors import InputError

PLAN, STATE, CHECKPOINT = "training.json", "state", "learner.safetensors"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""The names of SAELens for the settings and the weights of a SAE."""
OWN_AUC = 0.95
"""The AUC from which a latent counts as an attribute's own."""
FEWEST_CLIPS = 64
"""The fewest synthesised clips, so that every class of every label has several."""
KINDS = ("topk", "batchtopk", "jumprelu")
MOST_VECTORS = 2**40
"""The most vectors to train on."""
TRAINING = Kind(
    noun="training run of a SAE",
    busy="training in this folder",
    description=PLAN,
    format="audiolens.sae.1",
    unsealed="audiolens.sae.0",
    shape={
        "format": str,
        "source": {"weights": str, "dtype": str, "site": str, "prompts": str, "codes": str, "clips": int,
                   "held_out": str, "units": int, "order?": str},
        "settings": {"kind": str, "k": int, "width": int, "rate": float, "n_vectors": int, "batch_size": int,
                     "seed": int},
    },
    entries=STATE,
    files=(CONFIG, WEIGHTS),
)  # fmt: skip
_TOLD = (
    ("format", "it has format {there}, but this version writes {here}"),
    ("source.weights", "it was begun with other weights of the model ({there}; this is {here})"),
    ("source.order", "it was begun with clips read in other groups, by another reading_batch or harvest"),
    ("source.*", "it was begun with {name} {there}, but this one has {here}"),
    ("settings.*", "it was begun with {name}={there}, but this one has {here}"),
)


def difference(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return a description of the first difference between two training runs; `None` if there is none.

    Runs of earlier versions do not state in which order they read their clips.
    """
    there, here = begun.get("source") or {}, facts.get("source") or {}
    if "order" in here and "order" not in there:
        begun = {**begun, "source": {**there, "order": here["order"]}}
    return first_difference(begun, facts, _TOLD)


def check(folder: Path) -> None:
    """Check, before a model runs, that a SAE can be trained in a folder.

    Raises:
        InputError: if the path is a file, or if the folder contains links or anything other than a training run, or
            cannot be written to.
    """
    if not TRAINING.check(folder):
        raise TRAINING.foreign(folder)


def finished(folder: Path) -> bool:
    """Return whether a folder contains the files of a SAE."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def check_sae(path: Path) -> bool:
    """Check the place of a SAE, and return whether it is on this machine; otherwise its name is one of the hub.

    Raises:
        InputError: if there is no such folder, or a folder without the files of a SAE.
    """
    if path.is_dir():
        if missing := [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]:
            raise InputError(f"{path} has no {missing[0]}: expected a folder in the format of SAELens.")
        return True
    parts = path.as_posix().split("/")
    if path.exists() or path.is_absolute() or len(parts) < 2 or parts[0] in (".", ".."):
        raise InputError(f"{path}: no such folder. Expected a folder in the format of SAELens, or a hub name.")
    return False
