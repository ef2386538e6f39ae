"""Write a study's sounds (WAV), directions, tables, figures, `summary.json` and page to a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.report import page, vector
from analysis.report.drawings import Drawing, drawings
from analysis.report.tables import tables
from analysis.spreadsheets import write_csv
from analysis.store.folder import STUDY
from analysis.store.versions import versions
from analysis.study import config
from analysis.sweep import BASELINE
from audiolens.checks import checked_text, listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError
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
def write(study: Study, folder: Path, *, command: str = "", figures: Sequence[str] = ()) -> None:
    """Write all results of a study into an empty folder.

    Figures are written as SVG and in the further kinds of files in `figures` ("pdf", "png").
    """
    checked_text("command", command)
    kinds = checked_kinds(figures)
    for name in ("audio", "figures", "tables"):
        (folder / name).mkdir()
    kept = sounds(study)
    for sound in kept:
        soundfiles.write(folder / "audio" / sound.file, sound.samples, study.sample_rate)
    study.directions.save(folder / "directions.safetensors")
    study.clips.to_parquet(folder / "clips.parquet", index=False)
    write_csv(study.clips, folder / "clips.csv")
    found = tables(study)
    for name, table in found.items():
        write_csv(table, folder / "tables" / f"{name}.csv")
    fitting = page.fitting(kept, study.sample_rate)
    drawn = drawings(study, [sound for sound, _ in fitting])
    for drawing in drawn:
        for kind in kinds:
            (folder / "figures" / f"{drawing.name}.{kind}").write_bytes(drawing.file(kind))
    (folder / "figures" / "captions.md").write_text(captions(drawn, kinds), "utf-8")
    (folder / config.FILE).write_text(config.text_of(study), "utf-8")
    facts = summary(study, command)
    (folder / "summary.json").write_bytes(sealed_json(facts, indent=2, ensure_ascii=False))
    html = page.render(study, fitting, len(kept) - len(fitting), drawn, found, facts)
    (folder / "index.html").write_text(html, "utf-8")


def checked_kinds(figures: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of files in which figures are written, SVG first.

    Raises:
        InputError: if a kind is unknown.
    """
    asked = [figures] if isinstance(figures, str) else listed("figures", figures)
    for kind in asked:
        if checked_text("figures", kind) not in vector.KINDS:
            raise InputError(f"figures={shown(kind)}: expected some of {', '.join(vector.KINDS)}.")
    return (*dict.fromkeys(("svg", *asked)),)


def captions(drawn: Sequence[Drawing], kinds: Sequence[str]) -> str:
    """Return the captions of the figures, with their files and widths, as Markdown."""
    parts = [
        f"## {one.title}\n\n{', '.join(f'{one.name}.{kind}' for kind in kinds)} "
        f"({25.4 * one.figure.get_figwidth():.0f} mm wide)\n\n{one.caption}\n"
        for one in drawn
    ]
    # Markdown can contain HTML.
    return "\n".join(["# Captions\n", *parts]).replace("<", "&lt;")


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
