"""Render a study's page as one HTML file that opens offline, with embedded figures, sounds and tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures.style import name_of
from analysis.placement.shifts import PLACED
from analysis.report import live, losses, words
from analysis.report.downloads import data_link, downloads
from analysis.report.templates import template, text
from analysis.report.words import number
from analysis.resampling import COVERAGE
from audiolens.directions.strategies import STRATEGIES
from audiolens.measure import UNITS
from audiolens.sound import soundfiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.report.drawings import Drawing
    from analysis.report.writer import PageSound
    from analysis.study.result import Study

MOST_PLAYERS = 24
SOUND_BYTES = 2_000_000
"""Maximum total size of the embedded sounds in base64. With the plotting library (4.8 MB), the tables and the figures,
a page stays below 10 MB."""
_READABLE = 75
"""Minimum resolution of an image in pixels per inch, at which its text is nine pixels high."""


@dataclass(frozen=True)
class Section:
    """A section of the page, with a title, text and figures."""

    name: str
    title: str
    figures: tuple[str, ...] = ()
    text: str = ""


def render(
    study: Study,
    folder: Path,
    sounds: Sequence[tuple[PageSound, str]],
    left_out: int,
    drawings: Sequence[Drawing],
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> str:
    """Return the page's HTML. The figures must already have been written to `folder`.

    `sounds` come from `fitting`, and `left_out` is the number of sounds that did not fit.
    """
    figures = {drawing.name: _figure(drawing, folder) for drawing in drawings}
    pairs = _rows(study, sounds)
    everything = {**tables, "clips": study.clips}
    library, calls = live.scripts() if any(figure["live"] for figure in figures.values()) else ("", "")
    saves = text("downloads.js")
    return template("page.html.j2").render(
        study=study,
        policy=live.policy(library, calls, saves),
        style=text("style.css"),
        library=library,
        calls=calls,
        saves=saves,
        facts=facts,
        coverage=COVERAGE,
        strategies={name: STRATEGIES[name].meaning for name in PLACED},
        quantity=name_of(study.measure),
        unit=f" {UNITS[study.measure]}" if UNITS.get(study.measure) else "",
        outcomes=[_outcome(outcome.as_dict()) for outcome in study.outcomes],
        rho=number(study.monotonicity.rho, "+.2f"),
        baseline=number(float(study.response.loc[study.response["kind"] == "baseline", "median"].iloc[0]), ".0f"),
        sections=[
            {"name": one.name, "title": one.title, "text": one.text,
             "figures": [figures[name] for name in one.figures if name in figures]}
            for one in _sections(study)
            if _shown(one, pairs, figures)
        ],
        pairs=pairs,
        more_sounds=left_out,
        side_effects=[losses.words(row) for row in tables["lost"].to_dict("records")] if "lost" in tables else [],
        frechet=study.side_effects is not None and bool(study.side_effects["frechet"].notna().any()),
        downloads=downloads(everything, {name: _file_of(name) for name in everything}),
        chosen=words.strength(study),
        controls=words.controls(study),
        tested=all(outcome.testable for outcome in study.outcomes),
        minutes=sum(study.seconds.values()) / 60,
    )  # fmt: skip


def least_width(figure: Figure) -> int:
    """Return the minimum width of an image in pixels. On a narrower screen, the image scrolls."""
    return round(_READABLE * figure.get_figwidth())


def compressed(samples: np.ndarray, sample_rate: int) -> str:
    """Compress sound and return it as a data URI."""
    content, mime = soundfiles.compressed(samples, sample_rate)
    return data_link(mime, content)


def _sections(study: Study) -> list[Section]:
    missing = study.where.reason if study.where is not None else "The poles have no matched prompts to patch between."
    evidence = ("layer_attribution", "patching_windows", "patching_components")
    return [
        Section("listen", "Listen"),
        Section("response", "Dose-response", ("dose_response", "cross_effects")),
        *([Section("lost", "Side effects")] if study.side_effects is not None else []),
        Section("where", "Evidence by block", evidence, missing),
        Section("geometry", "Inside the model", ("pca", "cosines", "norms")),
        Section("place", "How place and strength were chosen", ("scan",), words.place(study)),
    ]


def _shown(section: Section, pairs: Sequence[Any], figures: Mapping[str, Any]) -> bool:
    """Return whether the section has anything to show."""
    if section.name == "listen":
        return bool(pairs)
    return bool(section.text) or section.name == "lost" or any(name in figures for name in section.figures)


def _figure(drawing: Drawing, folder: Path) -> dict[str, Any]:
    """Return the template fields for a figure, which contain its interactive version or, if it has none, an image."""
    shown, image = None, None
    if drawing.screen is None:
        image = data_link("image/png", (folder / "figures" / f"{drawing.name}.png").read_bytes())
    else:
        shown = live.figure(drawing.screen.update_layout(autosize=True, width=None), f"live-{drawing.name}")
    return {
        "name": drawing.name, "title": drawing.title, "caption": drawing.caption, "tables": drawing.tables,
        "image": image, "least": least_width(drawing.figure), "live": shown,
    }  # fmt: skip


def fitting(sounds: Sequence[PageSound], sample_rate: int) -> list[tuple[PageSound, str]]:
    """Return the sounds of the first pairs that fit on the page, each with its compressed sound as a data URI.

    Pairs are never split. The rest is neither compressed nor drawn, because a study can keep hundreds of clips.
    """
    found: list[tuple[PageSound, str]] = []
    size = 0
    for pair in dict.fromkeys(sound.pair for sound in sounds):
        mine = [sound for sound in sounds if sound.pair == pair]
        if len(found) + len(mine) > MOST_PLAYERS:
            break
        links = [compressed(sound.samples, sample_rate) for sound in mine]
        size += sum(map(len, links))
        if found and size > SOUND_BYTES:
            break
        found += zip(mine, links, strict=True)
    return found


def _rows(study: Study, sounds: Sequence[tuple[PageSound, str]]) -> list[dict[str, Any]]:
    """Group the sounds into rows of one prompt and seed, and add each sound's spectrogram and measured value."""
    tested = study.clips[study.clips["split"] == "test"]
    # A large study has few of its clips on the page.
    for name in ("condition", "prompt"):
        tested = tested[tested[name].isin({getattr(sound, name) for sound, _ in sounds})]
    measures = {(row["condition"], row["prompt"], row["seed"]): row for row in tested.to_dict("records")}
    rows: dict[int, dict[str, Any]] = {}
    for sound, link in sounds:
        row = rows.setdefault(sound.pair, {"prompt": sound.prompt, "seed": sound.seed, "clips": []})
        measured = measures[sound.condition, sound.prompt, sound.seed]
        row["clips"].append(
            {
                "label": sound.label.replace(" -", " −"),
                "file": f"audio/{sound.file}",
                "audio": link,
                "image": data_link("image/png", thumbnail(sound.samples, study.sample_rate)),
                "value": number(float(measured[study.measure]), ".0f"),
                "failed": bool(measured["failed"]),
            }
        )
    return list(rows.values())


def thumbnail(samples: np.ndarray, sample_rate: int) -> bytes:
    """Draw a small mel spectrogram without axes, and return it as a PNG."""
    from matplotlib.figure import Figure

    from analysis.figures import spectrograms

    figure = Figure(figsize=(1.9, 1.05), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    spectrograms.one(samples, sample_rate, axes=axes)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _outcome(values: dict[str, Any]) -> dict[str, Any]:
    percent = {key: number(values[key], "+.0%") for key in ("effect", "low", "high", "prompted", "opposed")}
    percent["strength"] = number(values["strength"], "+g")
    ranks = {key: number(values[key], ".2f") for key in ("p_random", "p_shuffled", "p_other")}
    ranks |= {key: number(values[key], ".3f") for key in ("p_controls", "p_corrected")}
    return {**values, **percent, **ranks, "failed": number(values["failed"], ".0%"),
            "median": number(values["median"], ".0f")}  # fmt: skip


def _file_of(name: str) -> str:
    return "clips.csv" if name == "clips" else f"tables/{name}.csv"
