"""Store the placement of a study's stage in files, and read it back.

The directions have a module of their own (`storage`), so that a change to the code of placement does not invalidate
the stage that reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.layer_attribution import LayerAttribution, LayerEvidence
from analysis.placement import Placement
from analysis.placement.shifts import checked_strategies
from analysis.store import parquet
from audiolens.directions.directions import Directions
from audiolens.files.bounded import read_object
from audiolens.files.integrity import content_of
from audiolens.files.json_shapes import refuse_other

_PLAIN = ("concept", "strategy", "layer", "by", "certainty", "n_prompts", "row_steps", "left_out", "at_strength")
_LATER = ("choices", "costs", "constancy")
"""Fields that files of earlier versions lack."""
_SHAPE = {
    "concept": str, "strategy": str, "layer": (int, None), "by": str, "certainty": float, "n_prompts": int,
    "row_steps": int, "left_out": {str: str}, "at_strength": float, "poles": [str, str], "random": [float],
    "choices?": {str: str}, "costs?": {str: int}, "constancy?": float,
}  # fmt: skip
_EVIDENCE: Mapping[str, parquet.Kind] = {
    "evidence": "text", "unit": "text", "layer": "number", "value": "number", "low": "number", "high": "number",
}  # fmt: skip
_CANDIDATES: Mapping[str, parquet.Kind] = {
    "strategy": "text", "layer": "number", "alignment": "number", "low": "number", "high": "number", "gain": "number",
    "strength": "number",
}  # fmt: skip


def write_placement(placement: Placement, folder: Path) -> None:
    """Write a placement without its directions, which are stored as a separate stage."""
    facts = {name: getattr(placement, name) for name in (*_PLAIN, *_LATER, "poles", "random")}
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
        **{name: facts[name] for name in (*_PLAIN, *_LATER) if name in facts},
        poles=tuple(facts["poles"]),
        random=tuple(facts["random"]),
        directions=directions,
        candidates=_table(folder / "candidates.parquet", _CANDIDATES),
        evidence=LayerAttribution(tuple(evidence)),
    )


def _table(path: Path, kinds: Mapping[str, parquet.Kind]) -> pd.DataFrame:
    return parquet.read(path, content_of(path), kinds)[0]
