"""Store the directions and placement of a study's stages in files, and read them back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from analysis.layer_attribution import LayerAttribution, LayerEvidence
from analysis.placement import Placement
from analysis.placement.shifts import checked_strategies
from analysis.store import parquet
from audiolens.directions.directions import Directions
from audiolens.directions.pole_reader import Samples
from audiolens.errors import InputError
from audiolens.files.bounded import read_header, read_json, read_object
from audiolens.files.integrity import content_of
from audiolens.files.json_shapes import refuse_other

_PLAIN = ("concept", "strategy", "layer", "by", "certainty", "n_prompts", "row_steps", "left_out", "at_strength")


_SHAPE = {
    "concept": str, "strategy": str, "layer": (int, None), "by": str, "certainty": float, "n_prompts": int,
    "row_steps": int, "left_out": {str: str}, "at_strength": float, "poles": [str, str], "random": [float],
}  # fmt: skip
_EVIDENCE: Mapping[str, parquet.Kind] = {
    "evidence": "text", "unit": "text", "layer": "number", "value": "number", "low": "number", "high": "number",
}  # fmt: skip
_CANDIDATES: Mapping[str, parquet.Kind] = {
    "strategy": "text", "layer": "number", "alignment": "number", "low": "number", "high": "number", "gain": "number",
    "strength": "number",
}  # fmt: skip


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
    return replace(found, samples=Samples(values, labels, found.layers, tuple(prompts)))


def hash_of(directions: Directions) -> str:
    """Return a hash of the vectors' exact bits."""
    return hashlib.sha256(directions.vectors.contiguous().numpy().tobytes()).hexdigest()[:16]


def _table(path: Path, kinds: Mapping[str, parquet.Kind]) -> pd.DataFrame:
    return parquet.read(path, content_of(path), kinds)[0]


def write_placement(placement: Placement, folder: Path) -> None:
    """Write a placement without its directions, which are stored as a separate stage."""
    facts = {name: getattr(placement, name) for name in (*_PLAIN, "poles", "random")}
    (folder / "placement.json").write_text(json.dumps(facts), "utf-8")
    placement.candidates.to_parquet(folder / "candidates.parquet", index=False)
    placement.evidence.to_frame().to_parquet(folder / "evidence.parquet", index=False)


def read_placement(folder: Path, directions: Directions) -> Placement:
    """Read a placement that `write_placement` stored, and attach its directions."""
    facts = read_object(folder / "placement.json")
    refuse_other(folder / "placement.json", facts, _SHAPE)
    checked_strategies([facts["strategy"]])
    evidence = []
    for (name, unit), mine in _table(folder / "evidence.parquet", _EVIDENCE).groupby(["evidence", "unit"], sort=False):
        values = [mine[part].to_numpy(float) for part in ("value", "low", "high")]
        evidence.append(LayerEvidence(str(name), str(unit), tuple(int(layer) for layer in mine["layer"]), *values))
    return Placement(
        **{name: facts[name] for name in _PLAIN},
        poles=tuple(facts["poles"]),
        random=tuple(facts["random"]),
        directions=directions,
        candidates=_table(folder / "candidates.parquet", _CANDIDATES),
        evidence=LayerAttribution(tuple(evidence)),
    )
