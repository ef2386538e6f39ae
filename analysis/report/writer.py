"""Write a study's sounds (WAV), directions, tables, figures, `summary.json` and page to a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures.literal import as_typed
from analysis.report import losses, page
from analysis.report.drawings import drawings
from analysis.spreadsheets import write_csv
from analysis.store.folder import STUDY
from analysis.store.versions import versions
from analysis.sweep import BASELINE
from audiolens.checks import checked_text
from audiolens.door import guarded
from audiolens.files.integrity import sealed_json
from audiolens.sound import soundfiles

if TYPE_CHECKING:
    from analysis.study.result import Study


@dataclass(frozen=True)
class PageSound:
    """A clip with its sound. `pair` is the number of its (prompt, seed) pair, and `label` describes its `condition`."""

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


@guarded
def write(study: Study, folder: Path, *, command: str = "") -> None:
    """Write all results of a study into an empty folder."""
    checked_text("command", command)
    for name in ("audio", "figures", "tables"):
        (folder / name).mkdir()
    kept = sounds(study)
    for sound in kept:
        soundfiles.write(folder / "audio" / sound.file, sound.samples, study.sample_rate)
    study.directions.save(folder / "directions.safetensors")
    study.clips.to_parquet(folder / "clips.parquet", index=False)
    write_csv(study.clips, folder / "clips.csv")
    shown = tables(study)
    for name, table in shown.items():
        write_csv(table, folder / "tables" / f"{name}.csv")
    fitting = page.fitting(kept, study.sample_rate)
    drawn = drawings(study, [sound for sound, _ in fitting])
    with as_typed():
        for drawing in drawn:
            drawing.figure.savefig(folder / "figures" / f"{drawing.name}.png")
    facts = summary(study, command)
    (folder / "summary.json").write_bytes(sealed_json(facts, indent=2, ensure_ascii=False))
    html = page.render(study, folder, fitting, len(kept) - len(fitting), drawn, shown, facts)
    (folder / "index.html").write_text(html, "utf-8")


def sounds(study: Study) -> list[PageSound]:
    """Return the kept clips of each pair by strength (negative to positive), followed by the prompted clips."""
    labels = {row["condition"]: row for row in study.response.to_dict("records")}
    pairs = list(dict.fromkeys((prompt, seed) for _, prompt, seed in study.sounds))
    found = []
    for (condition, prompt, seed), samples in study.sounds.items():
        labelled = labels[condition]
        rank = float(labelled["strength"]) if labelled["kind"] != "prompted" else np.inf
        if labelled["kind"] == "prompted":
            label = f"asked for {labelled['pole']}"
        else:
            label = BASELINE if labelled["kind"] == BASELINE else f"steered {labelled['strength']:+g}"
        pair = pairs.index((prompt, seed))
        found.append((pair, rank, PageSound(pair + 1, condition, prompt, seed, label, samples)))
    return [sound for _, _, sound in sorted(found, key=lambda item: item[:2])]


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Return the summary tables by file name."""
    return {
        "outcome": pd.DataFrame([outcome.as_dict() for outcome in study.outcomes]),
        "dose_response": study.response,
        "controls": study.controls,
        "cross_effects": study.cross,
        "scan": study.scan,
        "directions": directions(study),
        "cosines": study.cosines.to_frame(),
        "pca": study.components.summary(),
        "pca_points": study.components.to_frame(),
        "layer_attribution": study.layer_evidence().to_frame(),
        **({} if study.side_effects is None else {"lost": losses.with_effects(study.side_effects, study.response)}),
        **_where_tables(study),
    }


def directions(study: Study) -> pd.DataFrame:
    """Return a table of the directions' norms and evidence, with the permutation test of the norms."""
    table = study.directions.to_frame()
    if study.directions.samples is None:
        return table
    test = study.directions.permutation_test()
    return table.assign(times_shuffled=test.ratio.numpy(), permutation_p=test.p.numpy())


def _where_tables(study: Study) -> dict[str, pd.DataFrame]:
    tables = {} if study.placement is None else {"placement": study.placement.to_frame()}
    if study.where is not None:
        for name in ("windows", "components"):
            grid = getattr(study.where, name)
            if grid is not None:
                tables[f"patching_{name}"] = grid.to_frame()
    return tables


def summary(study: Study, command: str) -> dict[str, Any]:
    """Return the contents of `summary.json` as plain values, with null where nothing could be measured."""
    placed = study.placement
    return plain(
        {
            "format": STUDY,
            "concept": study.concept,
            "poles": study.poles,
            "model": study.model,
            "finding": study.finding,
            "qualification": study.qualification,
            "measure": study.measure,
            "choice": asdict(study.choice),
            "placement": None
            if placed is None
            else {**placed.where, "reason": placed.reason, "certainty": placed.certainty},
            "outcomes": [outcome.as_dict() for outcome in study.outcomes],
            "monotonicity": asdict(study.monotonicity),
            "cross_effects": study.cross.to_dict("records"),
            "clips": len(study.clips),
            "seconds": study.seconds,
            "settings": {**asdict(study.settings), "others": study.others},
            "directions": study.directions.meta.as_dict(),
            "versions": versions(),
            "devices": list(dict.fromkeys(run.device for run in study.runs)),
            "command": command,
        }
    )


def plain(value: Any) -> Any:
    """Convert a value to plain values for JSON. NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:48]
