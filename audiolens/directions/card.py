"""The card (README.md) of a repository of directions on the Hugging Face hub, written from their provenance."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

from audiolens.files import hub
from audiolens.model.provenance import Provenance

FILE = "directions.safetensors"


def written(meta: Provenance, layers: tuple[int, ...], evidence: str, repo_id: str) -> str:
    """Return the card as Markdown, with metadata for the hub."""
    # A model from the hub has a commit; a folder could have a name of the same form.
    base = [f"base_model: {meta.model}"] if meta.revision and hub.is_repository(meta.model) else []
    where = 'strategy="heads", heads=4' if meta.n_heads else f"layer={layers[len(layers) // 2]}"
    counts = f"{meta.n_prompts[0]} + {meta.n_prompts[1]}"
    facts = {
        "model": f"{plain(meta.model)} (weights {plain(meta.weights[:12])})", "blocks": listed(layers),
        "site": plain(meta.site), "position": plain(str(meta.position)), "estimator": plain(meta.estimator),
        "prompts": f"{counts}, read over {plain(meta.source)}", "branch": plain(meta.branch),
        "guidance scale": f"{meta.guidance_scale:g}",
        "evidence": plain(evidence),
        "versions": plain(", ".join(f"{name} {version}" for name, version in meta.versions.items())),
    }  # fmt: skip
    return "\n".join(
        [
            "---", "library_name: audiolens", "tags:", "- activation-steering", "- music-generation", *base, "---", "",
            f"# {plain(meta.label or 'Directions')}", "",
            f"Steering directions for {plain(meta.model)}, one per block. They are read with "
            "[audiolens](https://pypi.org/project/audiolens/):", "",
            "```python", "import audiolens as al", "", f"lens = al.AudioLens.from_pretrained({meta.model!r})",
            f"d = al.Directions.from_hub({repo_id!r}, lens)",
            f'out = lens.generate("a calm piano tune", interventions=al.steer(d, {where}, strength=1.0))', "```", "",
            "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), "",
            "The directions mean nothing in a model with other weights, and loading them with another lens raises an "
            "error. They do not show that the model computes the concept in these blocks.", "",
        ]
    )  # fmt: skip


def without_path(directions: Any) -> Any:
    """Return directions whose provenance names a local model without the path of its folder."""
    meta = directions.meta
    if meta.revision or not ({"/", os.sep} & {*meta.model}):
        return directions
    return replace(directions, meta=replace(meta, model=os.path.basename(os.path.normpath(meta.model))))


def plain(text: str) -> str:
    """Return a text in which no character has a meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;")


def listed(layers: tuple[int, ...]) -> str:
    """Return block numbers as text, such as "0 to 7"."""
    first, last = min(layers), max(layers)
    whole = first < last and layers == tuple(range(first, last + 1))
    return f"{first} to {last}" if whole else ", ".join(map(str, layers))
