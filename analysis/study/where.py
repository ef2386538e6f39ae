"""Before anything is steered, patch a few matched pairs of prompts block by block, to show where a concept acts.

`find` computes the grids, and `write` and `read` store and load them. The grids do not decide where to steer;
`analysis.placement` makes that decision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from analysis import layer_attribution, patching
from analysis.layer_attribution import LayerAttribution
from analysis.patching import PatchingResult
from analysis.placement import Placement
from audiolens.directions.directions import Directions
from audiolens.errors import InputError
from audiolens.files.bounded import read_header, read_object
from audiolens.files.json_shapes import refuse_other

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

_GRIDS = ("windows", "components")
_ARRAYS = ("patched", "clean", "corrupted")
_KEPT = tuple(one.name for one in fields(PatchingResult) if one.name not in (*_ARRAYS, "sound"))
_SHAPE = {
    "codebooks": [str], "layers": [(int, None)], "columns": [str], "spans": ([[float, float]], None), "by": str,
    "sites": [str], "mode": str, "metric": str, "unit": str, "scored": [float, float],
    "prompts": [[(str, None), (str, None)]], "clusters": [str], "n_bootstrap?": int, "n_permutations?": int,
    "seed?": int,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Where:
    """Two patching grids over the same pairs of prompts.

    Attributes:
        windows: the grid of the residual stream, patched in one block and one time window per cell.
        components: the grid of the components of each block, patched over the whole clip.
        reason: why a grid is missing, or an empty string.

    The grids do not show where the concept is computed (see the caveats of `PatchingResult`).
    """

    windows: PatchingResult | None = None
    components: PatchingResult | None = None
    reason: str = ""


def find(lens: AudioLens, sets: PromptSet, asked: Mapping[str, Any]) -> Where:
    """Patch matched pairs, and return the grids. `asked` contains the arguments of `patching.pairs`."""
    found: dict[str, Any] = {}
    try:
        pairs = patching.pairs(lens, sets, **asked)
        given = pairs.clean, pairs.corrupted, pairs.codes
        found["windows"] = patching.patch(lens, *given, progress=False)
        found["components"] = patching.patch(lens, *given, by="component", progress=False)
    except InputError as error:
        return Where(**found, reason=str(error))
    return Where(**found)


def evidence(directions: Directions, found: Where | None, placement: Placement | None) -> LayerAttribution:
    """Gather the evidence per block for one figure, from the placement if there is one, and otherwise from patching."""
    given: dict[str, Any] = {"norm": directions}
    units = {"separation": "held-out AUC"}
    if directions.evidence is not None:
        given["separation"] = pd.Series(directions.evidence.auc.numpy(), index=list(directions.layers))
    if placement is not None:
        given |= {one.name: one for one in placement.evidence.evidence}
    elif found is not None and found.components is not None:
        table = found.components.to_frame()
        table = table[table["codebook"] == found.components.names[-1]]
        for site, name in (("cross_attn_out", "patching cross-attention"), ("resid_post", "patching the stream")):
            mine = table[table["component"] == site]
            if len(mine):
                given[name], units[name] = mine[["layer", "effect", "low", "high"]], "nats"
    return layer_attribution.gather(units=units, **given)


def write(found: Where, folder: Path) -> None:
    """Write the grids as safetensors and JSON."""
    facts: dict[str, Any] = {"reason": found.reason}
    for name in _GRIDS:
        grid: PatchingResult | None = getattr(found, name)
        if grid is not None:
            arrays = {key: np.ascontiguousarray(getattr(grid, key)) for key in _ARRAYS}
            save_file(arrays, folder / f"{name}.safetensors")
            facts[name] = {key: getattr(grid, key) for key in _KEPT}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def read(folder: Path) -> Where:
    """Read the grids that `write` stored."""
    facts = read_object(folder / "facts.json")
    refuse_other(folder / "facts.json", facts, {"reason": str, **{f"{name}?": _SHAPE for name in _GRIDS}})
    grids: dict[str, Any] = {}
    for name in _GRIDS:
        if name in facts:
            values = {key: tuples(value) for key, value in facts[name].items()}
            arrays = _arrays(folder / f"{name}.safetensors", facts[name])
            grids[name] = PatchingResult(**arrays, **{key: values[key] for key in _KEPT if key in values})
    return Where(**grids, reason=facts["reason"])


def _arrays(path: Path, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the arrays of a grid, after checking that their sizes match its facts."""
    read_header(path)
    found = load_file(path)
    sizes = (len(facts["clusters"]), len(facts["codebooks"]), len(facts["layers"]), len(facts["columns"]))
    shapes = {name: (array.shape, array.dtype.kind) for name, array in found.items()}
    if shapes != {"patched": (sizes, "f"), "clean": (sizes[:2], "f"), "corrupted": (sizes[:2], "f")}:
        raise InputError(f"{path} cannot be used: expected a grid of {sizes} pairs, codebooks, layers and columns.")
    return found


def tuples(value: Any) -> Any:
    """Return a value from JSON with its lists converted to tuples."""
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
