"""Placed: where the evidence says that a direction is added, and how stages keep it and the directions.

The seam between a study and `analysis.placement`: while there is no evidence (`available` is false) a study scans.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors.torch import load_file, save_file

from analysis.scan import told
from audiolens.directions import Directions
from audiolens.reading import Samples

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet


@dataclass(frozen=True, eq=False)
class Place:
    """Where a direction is added, by evidence that no steering went into.

    Attributes:
        where: strategy, layer and layers, as `al.steer` takes them.
        why: the reason, in a sentence.
        evidence: what it rests on; one row per block.

    It does not show that steering works there: that is what test clips are for.
    """

    where: Mapping[str, Any]
    why: str
    evidence: pd.DataFrame

    def __repr__(self) -> str:
        return f"Place({told(self.where)}: {self.why})"


def available() -> bool:
    """Whether there is evidence to place by."""
    return find_spec("analysis.placement") is not None


def place_of(lens: AudioLens, sets: PromptSet, directions: Directions) -> Place:
    """Where the evidence puts these directions."""
    found = import_module("analysis.placement").place(lens, sets, site=directions.meta.site)
    named = {key: value for key, value in found.where.items() if key in ("strategy", "layer", "layers")}
    return Place(named, repr(found), found.evidence)


def beside(where: Mapping[str, Any], strategies: Iterable[str]) -> list[dict[str, Any]]:
    """The same block in other strategies, to stand beside the chosen one."""
    if where.get("layer") is None:
        return []
    others = (name for name in strategies if name != where["strategy"] and name in ("one-to-one", "one-to-all"))
    return [{"strategy": name, "layer": where["layer"]} for name in others]


def write_place(place: Place, folder: Path) -> None:
    (folder / "place.json").write_text(json.dumps({"where": dict(place.where), "why": place.why}), "utf-8")
    place.evidence.to_parquet(folder / "evidence.parquet", index=False)


def read_place(folder: Path) -> Place:
    facts = json.loads((folder / "place.json").read_text("utf-8"))
    return Place(facts["where"], facts["why"], pd.read_parquet(folder / "evidence.parquet"))


def write_directions(directions: Directions, folder: Path) -> None:
    """With the samples that `Directions.save` leaves out."""
    directions.save(folder / "directions.safetensors")
    if directions.samples is not None:
        kept = {"values": directions.samples.values.contiguous(), "labels": directions.samples.labels}
        save_file(kept, folder / "samples.safetensors")
        (folder / "prompts.json").write_text(json.dumps(directions.samples.prompts), "utf-8")


def read_directions(folder: Path) -> Directions:
    found = Directions.load(folder / "directions.safetensors")
    if not (folder / "samples.safetensors").is_file():
        return found
    kept = load_file(folder / "samples.safetensors")
    prompts = json.loads((folder / "prompts.json").read_text("utf-8"))
    return replace(found, samples=Samples(kept["values"], kept["labels"], found.layers, tuple(prompts)))


def hash_of(directions: Directions) -> str:
    """A hash of their vectors, to the bit."""
    return hashlib.sha256(directions.vectors.contiguous().numpy().tobytes()).hexdigest()[:16]
