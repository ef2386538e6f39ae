"""Writes a study's folder: WAVs, directions, tables, figures, `summary.json` and the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures import plots, spectrograms
from analysis.folder import STUDY
from analysis.report import page
from analysis.sweep import BASELINE
from audiolens.provenance import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.study import Study


@dataclass(frozen=True)
class Drawing:
    """A figure with the sentence under it."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Sound:
    """One kept clip: `pair` numbers its prompt and seed, `label` says what was done to it in its `condition`."""

    pair: int
    condition: str
    prompt: str
    seed: int
    label: str
    samples: np.ndarray

    @property
    def file(self) -> str:
        label = self.label.replace(" +", " plus ").replace(" -", " minus ")
        return f"{self.pair}_{_slug(self.prompt)}_seed{self.seed}_{_slug(label)}.wav"


def write(study: Study, folder: Path, *, command: str = "") -> None:
    """Fill an empty folder with everything a study found."""
    import soundfile

    for name in ("audio", "figures", "tables"):
        (folder / name).mkdir()
    kept = sounds(study)
    for sound in kept:
        soundfile.write(folder / "audio" / sound.file, sound.samples.T, study.sample_rate, subtype="PCM_16")
    study.directions.save(folder / "directions.safetensors")
    study.clips.to_parquet(folder / "clips.parquet", index=False)
    study.clips.to_csv(folder / "clips.csv", index=False)
    shown = tables(study)
    for name, table in shown.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    drawn = drawings(study, kept)
    for drawing in drawn:
        drawing.figure.savefig(folder / "figures" / f"{drawing.name}.png")
    facts = summary(study, command)
    (folder / "summary.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False), "utf-8")
    html = page.render(study, folder, kept, drawn, shown, facts)
    (folder / "index.html").write_text(html, "utf-8")


def sounds(study: Study) -> list[Sound]:
    """The kept clips in the order they are shown: by pair, from the negative pole to the positive, then the words."""
    labels = {row["condition"]: row for row in study.response.to_dict("records")}
    pairs = list(dict.fromkeys((prompt, seed) for _, prompt, seed in study.sounds))
    found = []
    for (condition, prompt, seed), samples in study.sounds.items():
        told = labels[condition]
        rank = float(told["strength"]) if told["kind"] != "prompted" else np.inf
        if told["kind"] == "prompted":
            label = f"asked for {told['pole']}"
        else:
            label = BASELINE if told["kind"] == BASELINE else f"steered {told['strength']:+g}"
        pair = pairs.index((prompt, seed))
        found.append((pair, rank, Sound(pair + 1, condition, prompt, seed, label, samples)))
    return [sound for _, _, sound in sorted(found, key=lambda item: item[:2])]


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """The summary tables by file name."""
    return {
        "outcome": pd.DataFrame([outcome.as_dict() for outcome in study.outcomes]),
        "dose_response": study.response,
        "cross_effects": study.cross,
        "scan": study.scan,
        "directions": study.directions.to_frame(),
        "cosines": study.cosines.to_frame(),
        "pca": study.components.summary(),
    }


def drawings(study: Study, kept: list[Sound]) -> list[Drawing]:
    """Every figure of the study, with its caption."""
    settings, name = study.settings, plots.name_of(study.measure)
    chosen = {"strategy": study.choice.strategy, "layer": study.choice.layer}
    listed = [
        Drawing(
            "dose_response",
            "Dose and response",
            f"Change of {name} on {settings.test} neutral test prompts x {settings.test_seeds} seeds, each clip beside "
            "the unsteered one of the same prompt and seed: median, and 95% interval over prompts. Crosses: "
            "directions without meaning, of the same length at the same place. Green lines: the same seeds, asked for "
            "in words. Hollow markers, and bars above the dotted line: more than a tenth of the clips were no music "
            "any more; these count as no change.",
            plots.dose_response(study.response, study.measure, study.poles),
        ),
        Drawing(
            "cross_effects",
            "What else changed",
            "The same clips in other measures (median and 95% interval over prompts; fainter: half the strength). "
            "A direction that moved one thing only would leave the others at 0.",
            plots.cross_effects(study.cross[study.cross["unit"] == "ratio"]),
        ),
        Drawing(
            "scan",
            "Where steering works",
            f"Change of {name} on {settings.development} development prompts x {settings.development_seeds} seeds, by "
            "block, for both signs. Place and strength were chosen here and are reported above on other prompts. "
            "Hollow markers: more than a tenth of the clips failed.",
            plots.layers(study.scan[study.scan["strategy"].notna()], study.measure, chosen=chosen),
        ),
        Drawing(
            "cosines",
            "The direction from block to block",
            "Cosine of the directions read at two blocks. Dotted marks on the scale: what 5% of random pairs exceed.",
            study.cosines.plot(),
        ),
        Drawing(
            "pca",
            "The two poles inside the model",
            f"Each point is a prompt: {_read_at(settings.position)}, on the first two principal components of its "
            "block. Silhouette: 1 far apart, 0 mixed.",
            study.components.plot(),
        ),
        Drawing(
            "norms",
            "How long the direction is",
            "Length of the difference of means at each block, and as a share of the residual stream it is added to.",
            plots.norms(study.directions.to_frame()),
        ),
    ]
    pairs = {sound.pair: [other for other in kept if other.pair == sound.pair] for sound in kept}
    if pairs:
        grid = [[sound.samples for sound in row if not sound.label.startswith("asked")] for row in pairs.values()]
        columns = [sound.label for sound in next(iter(pairs.values())) if not sound.label.startswith("asked")]
        rows = [f"{row[0].prompt}\nseed {row[0].seed}" for row in pairs.values()]
        figure = spectrograms.paired(grid, study.sample_rate, rows, columns)
        caption = "Mel spectrograms of the clips that can be heard above: each row is one prompt and seed."
        listed.append(Drawing("spectrograms", "The clips as pictures", caption, figure))
    return listed


def summary(study: Study, command: str) -> dict[str, Any]:
    """What `summary.json` holds: plain values, with null where nothing could be measured."""
    return _plain(
        {
            "format": STUDY,
            "concept": study.concept,
            "poles": study.poles,
            "model": study.model,
            "finding": study.finding,
            "measure": study.measure,
            "choice": asdict(study.choice),
            "outcomes": [outcome.as_dict() for outcome in study.outcomes],
            "monotonicity": asdict(study.monotonicity),
            "cross_effects": study.cross.to_dict("records"),
            "clips": len(study.clips),
            "seconds": study.seconds,
            "settings": asdict(study.settings),
            "directions": study.directions.meta.as_dict(),
            "versions": versions(),
            "command": command,
        }
    )


def _read_at(position: Any) -> str:
    """What a direction was read from, in words."""
    names = {
        "mean": "its mean activation while a clip is generated",
        "first": "the activation at the start token, before any sound",
        "last": "the activation at the last step of the clip generated",
        "eos": "the activation at the last token of its text",
    }
    return names.get(position) or "its mean activation over {:g} to {:g} s of the clip generated".format(*position)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:48]
