"""Where a study looks before it steers: a few matched pairs of prompts, patched and attributed.

`find` makes it; `write` and `read` keep it. Nothing is chosen from it: that is `analysis.placement`'s matter.
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

from analysis import attribution, layer_attribution, patching
from analysis.layer_attribution import LayerAttribution
from analysis.patch_result import PatchingResult
from audiolens.directions import Directions
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

_GRIDS = ("windows", "components")
_ARRAYS = ("patched", "clean", "corrupted")


@dataclass(frozen=True, eq=False)
class Where:
    """Grids of patches, and attributions, of the same pairs.

    Attributes:
        windows: the stream patched block by block and window by window.
        components: what each part of a block adds, patched over the whole clip.
        attribution: one row per site and block: `site`, `layer`, `effect`, `low`, `high` in nats, to first order.
        reason: why some of them are missing, if they are.

    It does not show where the concept is computed: see what each of the results does not show.
    """

    windows: PatchingResult | None
    components: PatchingResult | None
    attribution: pd.DataFrame | None
    reason: str = ""


def find(lens: AudioLens, sets: PromptSet, asked: Mapping[str, Any], progress: bool = False) -> Where:
    """Patch and attribute pairs: `asked` names `n`, `seconds`, `guidance_scale`, `first_seed` and `batch_size`."""
    own = {name: asked[name] for name in ("n", "seconds", "guidance_scale", "first_seed", "batch_size")}
    prefix = lens.config.conditioning == "prefix"
    found: dict[str, Any] = {"windows": None, "components": None, "attribution": None}
    try:
        # Gradients are taken where the two prompts of a pair stand at the same steps.
        pairs = patching.pairs(lens, sets, same_length=prefix, **own)
        given = pairs.clean, pairs.corrupted, pairs.codes
        found["windows"] = patching.patch(lens, *given, progress=progress)
        found["components"] = patching.patch(lens, *given, by="component", progress=progress)
        sites = [site for site in ("resid_post", "attn_out", "cross_attn_out", "mlp_out")
                 if f"blocks.0.hook_{site}" in lens.sites()]  # fmt: skip
        result = attribution.attribute(lens, *given, sites=sites, check=0)
        tables = [result.by_layer(site).assign(site=site) for site in sites]
        found["attribution"] = pd.concat(tables, ignore_index=True)[["site", "layer", "effect", "low", "high"]]
    except InputError as error:
        return Where(**found, reason=str(error))
    return Where(**found)


def evidence(directions: Directions, found: Where | None) -> LayerAttribution:
    """What there is over blocks, in one figure's worth."""
    given: dict[str, Any] = {"norm": directions}
    units = {"told apart": "held-out AUC"}
    if directions.evidence is not None:
        given["told apart"] = pd.Series(directions.evidence.auc.numpy(), index=list(directions.layers))
    if found is not None and found.attribution is not None:
        stream = found.attribution[found.attribution["site"] == "resid_post"]
        given["attribution"] = stream[["layer", "effect", "low", "high"]]
    if found is not None and found.components is not None:
        table = found.components.to_frame()
        codebook = table["codebook"].iloc[-1]
        for site, name in (("cross_attn_out", "patching cross-attention"), ("resid_post", "patching the stream")):
            mine = table[(table["component"] == site) & (table["codebook"] == codebook)]
            if len(mine):
                given[name] = mine[["layer", "effect", "low", "high"]]
                units[name] = "nats"
    return layer_attribution.gather(units=units, **given)


def write(found: Where, folder: Path) -> None:
    """As safetensors, Parquet and JSON."""
    facts: dict[str, Any] = {"reason": found.reason}
    for name in _GRIDS:
        grid: PatchingResult | None = getattr(found, name)
        if grid is None:
            continue
        save_file({key: np.ascontiguousarray(getattr(grid, key)) for key in _ARRAYS}, folder / f"{name}.safetensors")
        facts[name] = {one.name: getattr(grid, one.name) for one in fields(grid) if one.name not in (*_ARRAYS, "sound")}
    if found.attribution is not None:
        found.attribution.to_parquet(folder / "attribution.parquet", index=False)
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def read(folder: Path) -> Where:
    """What `write` wrote."""
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    grids: dict[str, Any] = {}
    for name in _GRIDS:
        told = facts.get(name)
        grids[name] = None
        if told is not None:
            values = {key: _tuples(value) for key, value in told.items()}
            grids[name] = PatchingResult(**load_file(folder / f"{name}.safetensors"), **values)
    path = folder / "attribution.parquet"
    return Where(**grids, attribution=pd.read_parquet(path) if path.is_file() else None, reason=facts["reason"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
