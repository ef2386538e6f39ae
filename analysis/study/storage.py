"""Store the directions and placement of a study's stages in files, and read them back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from analysis.layer_attribution import Evidence, LayerAttribution
from analysis.placement import Placement
from audiolens.directions.directions import Directions
from audiolens.directions.pole_reader import Samples
from audiolens.files.bounded import read_header, read_json, read_object

_PLAIN = ("concept", "strategy", "layer", "by", "certainty", "n_prompts", "row_steps", "left_out", "at_strength")


def write_directions(directions: Directions, folder: Path) -> None:
    """Write directions with their samples, which `Directions.save` omits."""
    directions.save(folder / "directions.safetensors")
    samples = directions.samples
    if samples is None:
        raise ValueError("these directions have no samples: read them with keep_samples=True.")
    save_file({"values": samples.values.contiguous(), "labels": samples.labels}, folder / "samples.safetensors")
    (folder / "prompts.json").write_text(json.dumps(samples.prompts), "utf-8")


def read_directions(folder: Path) -> Directions:
    """Read what `write_directions` wrote."""
    found = Directions.load(folder / "directions.safetensors")
    read_header(folder / "samples.safetensors")
    kept = load_file(folder / "samples.safetensors")
    prompts = read_json(folder / "prompts.json")
    return replace(found, samples=Samples(kept["values"], kept["labels"], found.layers, tuple(prompts)))


def hash_of(directions: Directions) -> str:
    """A hash of the vectors' exact bits."""
    return hashlib.sha256(directions.vectors.contiguous().numpy().tobytes()).hexdigest()[:16]


def write_placement(placement: Placement, folder: Path) -> None:
    """Write a placement without its directions, which have their own stage."""
    facts = {name: getattr(placement, name) for name in (*_PLAIN, "poles", "random")}
    (folder / "placement.json").write_text(json.dumps(facts), "utf-8")
    placement.candidates.to_parquet(folder / "candidates.parquet", index=False)
    placement.evidence.to_frame().to_parquet(folder / "evidence.parquet", index=False)


def read_placement(folder: Path, directions: Directions) -> Placement:
    """Read what `write_placement` wrote, and attach its directions."""
    facts = read_object(folder / "placement.json")
    evidence = []
    for (name, unit), mine in pd.read_parquet(folder / "evidence.parquet").groupby(["evidence", "unit"], sort=False):
        values = [mine[part].to_numpy(float) for part in ("value", "low", "high")]
        evidence.append(Evidence(str(name), str(unit), tuple(int(layer) for layer in mine["layer"]), *values))
    return Placement(
        **{name: facts[name] for name in _PLAIN},
        poles=tuple(facts["poles"]),
        random=tuple(facts["random"]),
        directions=directions,
        candidates=pd.read_parquet(folder / "candidates.parquet"),
        evidence=LayerAttribution(tuple(evidence)),
    )
