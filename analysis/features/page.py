"""Write a page that plays the top-activating seconds of latents, as one HTML file that opens offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.report import live
from analysis.report.downloads import data_link
from analysis.report.page import compressed, thumbnail
from analysis.report.templates import template, text
from audiolens.files.atomic import as_path, written

if TYPE_CHECKING:
    from analysis.features.indexing import FeatureIndex
    from audiolens.lens import AudioLens


def write(
    index: FeatureIndex,
    path: str | os.PathLike[str],
    lens: AudioLens,
    latents: list[int] | None,
    most: int,
    sounds: int,
) -> Path:
    """Write the page; see `FeatureIndex.page`."""
    place = as_path(path)
    index.sae.refuse_other(lens)
    chosen = _chosen(index, most) if latents is None else latents
    tops = index.tops[index.tops["latent"].isin(chosen) & (index.tops["rank"] < sounds)]
    heard = _heard(index, lens, sorted(set(tops["clip"])))
    page = template("features.html.j2").render(
        index=index,
        sae=index.sae,
        policy=live.policy(),
        style=text("style.css"),
        scores=index.sae.scores,
        attributes=[_formatted(row) for row in index.attributes.to_dict("records")],
        features=[_feature(index, latent, tops, heard, lens.config.sample_rate) for latent in chosen],
    )
    with written(place) as whole:
        whole.write_text(page, "utf-8")
    return place


def _chosen(index: FeatureIndex, most: int) -> list[int]:
    """Return the latents matched to attributes, best first, and then those that are active most often."""
    found: list[int] = []
    if len(index.attributes):
        ranked = index.attributes.sort_values("auc", ascending=False, kind="stable")
        for name in ("latent", "matched"):
            found += [int(one) for one in ranked[name] if one >= 0]
    often = index.latents[index.latents["rate"] > 0].sort_values("rate", ascending=False, kind="stable")
    return list(dict.fromkeys([*found, *often["latent"]]))[:most]


def _heard(index: FeatureIndex, lens: AudioLens, clips: list[int]) -> dict[int, Float[np.ndarray, "channel sample"]]:
    """Return the sound of clips."""
    found = {}
    for clip in clips:
        found[clip] = lens.decode_codes(index.clips.codes[clip : clip + 1])[0].cpu().numpy()
    return found


def _feature(
    index: FeatureIndex, latent: int, tops: pd.DataFrame, heard: dict[int, np.ndarray], sample_rate: int
) -> dict[str, Any]:
    facts = index.latents.iloc[latent].to_dict()
    sounds = []
    for row in tops[tops["latent"] == latent].to_dict("records"):
        first = round(row["start"] * sample_rate)
        samples = heard[row["clip"]][:, first : first + round(index.seconds * sample_rate)]
        sounds.append(
            {
                "audio": compressed(samples, sample_rate),
                "image": data_link("image/webp", thumbnail(samples, sample_rate)),
                "value": f"{row['value']:.1f}", "start": f"{row['start']:.2f}", "prompt": row["prompt"] or "(none)",
                "clip": row["clip"],
            }
        )  # fmt: skip
    named = index.attributes[index.attributes["latent"] == latent] if len(index.attributes) else index.attributes
    return {
        "latent": latent, "rate": f"{facts['rate']:.1%}", "mean": f"{facts['mean']:.1f}", "words": facts["words"],
        "peak": f"{facts['peak']:.1f}", "sounds": sounds,
        "best_for": [f"{row['attribute']} (AUC {row['auc']:.2f})" for row in named.to_dict("records")],
    }  # fmt: skip


def _formatted(row: Mapping[Any, Any]) -> dict[str, Any]:
    shares = {name: f"{row[name]:.2f}" for name in ("auc", "matched_auc", "several_auc")}
    return {**row, **shares, "absorbed": f"{row['absorbed']:.0%}"}
