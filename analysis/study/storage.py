"""Store the directions of a study's stage in files, and read them back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples
from audiolens.errors import InputError
from audiolens.files.bounded import read_header, read_json
from audiolens.files.json_shapes import refuse_other


def write_directions(directions: Directions, folder: Path) -> None:
    """Write directions with their samples, which `Directions.save` omits."""
    directions.save(folder / "directions.safetensors")
    samples = directions.samples
    if samples is None:
        raise ValueError("these directions have no samples: read them with keep_samples=True.")
    save_file({"values": samples.values.contiguous(), "labels": samples.labels}, folder / "samples.safetensors")
    (folder / "prompts.json").write_text(json.dumps(samples.prompts), "utf-8")


def read_directions(folder: Path) -> Directions:
    """Read directions that `write_directions` stored."""
    found = Directions.load(folder / "directions.safetensors")
    read_header(folder / "samples.safetensors")
    kept = load_file(folder / "samples.safetensors")
    prompts = read_json(folder / "prompts.json")
    refuse_other(folder / "prompts.json", prompts, [(str, None)])
    values, labels = (kept.get(name, torch.zeros(0)) for name in ("values", "labels"))
    if values.ndim != 3 or labels.dtype != torch.bool or labels.shape != values.shape[1:2]:
        raise InputError(
            f"{folder / 'samples.safetensors'} cannot be used: it does not hold one vector and label per prompt."
        )
    if values.shape[::2] != found.vectors.shape or len(prompts) != len(labels):
        raise InputError(
            f"{folder / 'samples.safetensors'} cannot be used: it does not belong to the directions next to it."
        )
    samples = Samples(values, labels, found.layers, tuple(prompts), found.meta, found.residual_norms)
    return replace(found, samples=samples)


def hash_of(directions: Directions) -> str:
    """Return a hash of the vectors' exact bits."""
    return hashlib.sha256(directions.vectors.contiguous().numpy().tobytes()).hexdigest()[:16]
