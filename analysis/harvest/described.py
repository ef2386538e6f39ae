"""The files of a harvest's folder, and the description that decides whether a harvest can be resumed there.

This module does not import torch, so that the command line can check a folder at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.store.resumable import Kind, first_difference
from audiolens.checks import MOST
from audiolens.errors import InputError

PLAN, SHARDS, INDEX, CLIPS = "harvest.json", "shards", "index.parquet", "clips.parquet"
MOST_THREADS = 1024


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    if not (1 <= facts["shard_rows"] <= MOST and 1 <= facts["rows"] <= MOST):
        raise InputError(f"{path} cannot be used: {facts['rows']} rows in shards of {facts['shard_rows']}.")
    if not 1 <= facts["model"]["threads"] <= MOST_THREADS:
        raise InputError(f"{path} cannot be used: it was begun with {facts['model']['threads']} threads.")


HARVEST = Kind(
    noun="harvest",
    busy="harvesting into this folder",
    description=PLAN,
    format="audiolens.harvest.1",
    unsealed="audiolens.harvest.0",
    shape={
        "format": str,
        "versions": {str: str},
        "model": {"name": str, "weights": str, "device": str, "dtype": str, "attention": str, "threads": int},
        "settings": {"sites": [str], "reduce": (str, None)},
        "source": str,
        "rows": int,
        "shard_rows": int,
    },
    entries=SHARDS,
    files=(INDEX, CLIPS),
    verify=_verify,
)
_TOLD = (
    ("format", "it has format {there}, but this version writes {here}"),
    ("source", "it was begun with clips from {there}, but these are from {here}"),
    ("versions.*", "it was begun with {name} {there}, but this one has {here}"),
    ("settings.*", "it was begun with {name} {there}, but this one has {here}"),
    ("model.weights", "it was begun with other weights ({begun[model][name]!r}; this is {facts[model][name]!r})"),
    ("model.device", "it was begun with device {there}, but this is {here}"),
    ("model.dtype", "it was begun with a model in {there}, but this is in {here}"),
    ("model.attention", "it was begun with attention {there}, but this is {here}"),
    ("rows", "it has {there} clips, but this one has {here}"),
    ("prompts", "its prompts differ"),
    ("seeds", "its seeds differ"),
    ("codes", "its codes differ"),
)


def difference(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return a description of the first difference between two harvests; `None` if there is none."""
    changed = first_difference(begun, facts, _TOLD)
    if changed is None and plan_hash(begun) != plan_hash(facts):
        return "its description has other entries than this one"
    return changed


def plan_hash(facts: Mapping[str, Any]) -> str:
    """Return a hash of what the activations depend on: all facts except the model's name and the number of threads."""
    model = {key: value for key, value in facts["model"].items() if key not in ("name", "threads")}
    return hashlib.sha256(json.dumps({**facts, "model": model}, sort_keys=True).encode()).hexdigest()


def check(folder: Path) -> None:
    """Check, before a model runs, that a harvest can be written to a folder.

    Raises:
        InputError: if the path is a file, or if the folder contains links or anything other than a harvest, or cannot
            be written to.
    """
    if not HARVEST.check(folder, (folder / SHARDS).glob("*.safetensors")) and not (
        written(folder) and HARVEST.holds_only(folder, SHARDS, INDEX, CLIPS)
    ):
        raise HARVEST.foreign(folder)


def written(folder: Path) -> frozenset[int]:
    """Return the numbers of the shards in a folder."""
    return frozenset(int(path.stem) for path in (folder / SHARDS).glob("*.safetensors") if path.stem.isdecimal())
