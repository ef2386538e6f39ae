"""Render a study's page as one HTML file that opens offline, with embedded figures, sounds and tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures.canvas import SINGLE
from analysis.figures.style import name_of
from analysis.placement.shifts import PLACED
from analysis.report import live, losses, vector, words
from analysis.report.downloads import data_link, downloads
from analysis.report.templates import template, text
from analysis.report.words import number
from analysis.resampling import COVERAGE
from analysis.sweep import BASELINE
from analysis.wording import clips_of, counted, rounded
from audiolens.directions.strategies import STRATEGIES
from audiolens.measure import UNITS
from audiolens.sound import soundfiles

if TYPE_CHECKING:
    from analysis.report.drawings import Drawing
    from analysis.report.writer import PageSound
    from analysis.study.result import Study

MOST_PLAYERS = 24
SOUND_BYTES = 900_000
"""Maximum total size of the embedded sounds in base64. With the plotting library (0.7 MB), the tables and the figures,
the page of a default study stays below 3 MB, and that of any study below 5 MB."""
_SIDE = {
    "effect": "change in {concept}", "interval": "{coverage} interval", "failed": "failed clips",
    "rms_ratio": "level, relative to unsteered", "onsets": "onsets",
    "entropy_ratio": "code entropy, relative to unsteered", "drift": "drift [nats per code]",
    "frechet": "Fréchet distance",
}  # fmt: skip
"""The columns of the table of side effects, the study's own measure first."""


@dataclass(frozen=True)
class Section:
    """A section of the page, with a title, text and figures."""

    name: str
    title: str
    figures: tuple[str, ...] = ()
    text: str = ""


def render(
    study: Study,
    sounds: Sequence[tuple[PageSound, str]],
    left_out: int,
    drawings: Sequence[Drawing],
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> str:
    """Return the page's HTML.

    `sounds` come from `fitting`, and `left_out` is the number of sounds that did not fit.
    """
    figures = {drawing.name: fields(drawing) for drawing in drawings}
    pairs = _rows(study, sounds)
    everything = {**tables, "clips": study.clips}
    screens = [drawing.screen for drawing in drawings if drawing.screen is not None]
    library, packed = live.library(screens) if screens else ("", "")
    scripts = {"saves": text("downloads.js"), "plays": text("players.js"), "themes": text("theme.js"),
               "calls": text("live.js")}  # fmt: skip
    outcomes = [formatted(outcome.as_dict()) for outcome in study.outcomes]
    # The negative pole is on the left, as in the players and on the axes.
    outcomes.reverse()
    side_effects = [losses.words(row) for row in tables["lost"].to_dict("records")] if "lost" in tables else []
    labels = _side_labels(study)
    return template("page.html.j2").render(
        study=study,
        policy=live.policy(library, *scripts.values()),
        style=text("style.css"),
        library=packed,
        **scripts,
        trio=_trio(study, sounds, pairs),
        finding=figures.get("finding"),
        facts=facts,
        coverage=COVERAGE,
        strategies={name: STRATEGIES[name].meaning for name in PLACED},
        quantity=name_of(study.measure),
        unit=f" {UNITS[study.measure]}" if UNITS.get(study.measure) else "",
        outcomes=outcomes,
        rows=_number_rows(study, outcomes),
        rho=number(study.monotonicity.rho, "+.2f"),
        baseline=rounded(study.response.loc[study.response["kind"] == "baseline", "median"].iloc[0]),
        sections=[
            {"name": one.name, "title": one.title, "text": one.text,
             "figures": [figures[name] for name in one.figures if name in figures]}
            for one in _sections(study)
            if _shown(one, pairs, figures)
        ],
        pairs=pairs,
        more_sounds=f"{counted(left_out, 'more clip')} {'is' if left_out == 1 else 'are'}" if left_out else "",
        size=clips_of(study.settings.test, study.settings.test_seeds),
        rows_of={name: counted(len(table), "row") for name, table in everything.items()},
        side_labels=labels.values(),
        side_effects=[{**row, "cells": [(labels[name], row[name]) for name in labels]} for row in side_effects],
        frechet="frechet" in labels,
        downloads=downloads(everything, {name: _file_of(name) for name in everything}),
        chosen=words.strength(study),
        controls=words.controls(study),
        tested=all(outcome.testable for outcome in study.outcomes),
        minutes=sum(study.seconds.values()) / 60,
    )  # fmt: skip


def compressed(samples: np.ndarray, sample_rate: int) -> str:
    """Compress sound and return it as a data URI."""
    content, mime = soundfiles.compressed(samples, sample_rate)
    return data_link(mime, content)


def _sections(study: Study) -> list[Section]:
    missing = study.where.reason if study.where is not None else "The poles have no matched prompts to patch between."
    evidence = ("layer_attribution", "patching_windows", "patching_components", "patching_heads", "attention_words")
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


def fields(drawing: Drawing) -> dict[str, Any]:
    """Return the template fields for a figure, which contain its interactive version or, if it has none, SVG."""
    shown, svg, slim = None, None, None
    if drawing.screen is not None:
        screen = drawing.screen.update_layout(autosize=True, width=None)
        shown = live.figure(screen, f"live-{drawing.name}", drawing.title)
    else:
        svg = vector.inline(drawing.svg, drawing.name, drawing.title)
        if drawing.narrow is not None:
            content = vector.file_of(drawing.narrow, "svg", drawing.name)
            slim = vector.inline(content, f"{drawing.name}-slim", drawing.title)
    return {
        "name": drawing.name, "title": drawing.title, "caption": drawing.caption, "tables": drawing.tables,
        "svg": svg, "slim": slim, "small": drawing.figure.get_figwidth() <= SINGLE, "live": shown,
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
                "id": f"sound-{sound.pair}-{len(row['clips'])}",
                "prompt": sound.prompt,
                "seed": sound.seed,
                "seconds": round(sound.samples.shape[-1] / study.sample_rate, 2),
                "label": sound.label.replace(" -", " −"),
                "full": f"{sound.label.replace(' -', ' −')}: “{sound.prompt}”, seed {sound.seed}",
                "file": f"audio/{sound.file}",
                "audio": link,
                "image": data_link("image/webp", thumbnail(sound.samples, study.sample_rate)),
                "value": _with_unit(float(measured[study.measure]), study.measure),
                "failed": bool(measured["failed"]),
            }
        )
    return list(rows.values())


def _with_unit(value: float, measured: str) -> str:
    text = rounded(value)
    return f"{text} {UNITS[measured]}" if np.isfinite(value) and UNITS.get(measured) else text


def _trio(
    study: Study, sounds: Sequence[tuple[PageSound, str]], pairs: Sequence[Mapping[str, Any]]
) -> list[tuple[Any, str, str]]:
    """Return the negative, the unsteered and the positive clip of the first pair, each with its picture and name.

    The list is empty if one of the three clips is not on the page.
    """
    strength = study.choice.strength
    words = {strength: study.words[0], -strength: study.words[1]}
    conditions = {
        row["condition"]: row["strength"]
        for row in study.clips[study.clips["kind"] == "steered"]
        .drop_duplicates("condition")[["condition", "strength"]]
        .to_dict("records")
    }
    found: dict[float, tuple[Any, str, str]] = {}
    mine = [sound for sound, _ in sounds if pairs and sound.pair == sounds[0][0].pair]
    for sound, clip in zip(mine, pairs[0]["clips"] if pairs else [], strict=True):
        at = 0.0 if sound.label == BASELINE else conditions.get(sound.condition, float("nan"))
        if at == 0.0 or at in words:
            name = f"{words[at].capitalize()} ({at:+g})".replace("-", "−") if at else "Original"
            image = data_link("image/webp", thumbnail(sound.samples, study.sample_rate, (3.8, 1.05)))
            found[at] = (clip, image, name)
    return [found[at] for at in (-strength, 0.0, strength)] if len(found) == 3 else []


def three_clips(study: Study, sounds: Sequence[PageSound], name: str) -> list[tuple[Any, str, str]]:
    """Return the three clips with which a study's page begins, for a page of several studies.

    Args:
        sounds: the sounds of the study (`writer.sounds`).
        name: what the ids of the clips begin with.
    """
    first = [(sound, compressed(sound.samples, study.sample_rate)) for sound in sounds if sound.pair == sounds[0].pair]
    found = _trio(study, first, _rows(study, first))
    return [({**clip, "id": f"{name}-{at}"}, image, said) for at, (clip, image, said) in enumerate(found)]


def thumbnail(samples: np.ndarray, sample_rate: int, size: tuple[float, float] = (1.9, 1.05)) -> bytes:
    """Draw a small mel spectrogram without axes, and return it as WebP."""
    from matplotlib.figure import Figure

    from analysis.figures import spectrograms

    figure = Figure(figsize=size, dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    spectrograms.one(samples, sample_rate, axes=axes)
    axes.set_axis_off()
    buffer = io.BytesIO()
    # As PNG, the pictures would take more of the page than the sounds.
    figure.savefig(buffer, format="webp", dpi=100, pil_kwargs={"quality": 75})
    return buffer.getvalue()


def _number_rows(study: Study, outcomes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of numbers, the study's own measure first."""
    unit = f" [{UNITS[study.measure]}]" if UNITS.get(study.measure) else ""
    rows = {
        f"change in {name_of(study.measure)}": "{effect}",
        f"{COVERAGE} interval": "{interval}",
        f"median{unit}": "{median}",
        "asked for in words": "{prompted}",
        "steered, other pole in the prompt": "{opposed}",
        "strength": "{strength}",
        "failed clips": "{failed}",
        "p, all controls": "{p_controls} ({controls})",
        f"p, corrected for {counted(study.outcomes[0].n_tests, 'test')}": "{p_corrected}",
        "p, random directions": "{p_random} ({n_random})",
        "p, balanced shuffles": "{p_shuffled} ({n_shuffled})",
        "other concepts with as large an effect": "{rivals} of {n_other}",
    }
    absent = {"p, balanced shuffles": "n_shuffled", "other concepts with as large an effect": "n_other"}
    return [
        (name, ["none run" if name in absent and not one[absent[name]] else form.format(**one) for one in outcomes])
        for name, form in rows.items()
    ]


def _side_labels(study: Study) -> dict[str, str]:
    """Return the columns of the table of side effects with their names."""
    measured = study.side_effects is not None and bool(study.side_effects["frechet"].notna().any())
    names = {"concept": study.concept, "coverage": COVERAGE}
    return {key: name.format(**names) for key, name in _SIDE.items() if key != "frechet" or measured}


def formatted(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an outcome as they are shown."""
    percent = {key: number(values[key], "+.0%") for key in ("effect", "low", "high", "prompted", "opposed")}
    percent["strength"] = number(values["strength"], "+g")
    ranks = {key: number(values[key], ".2f") for key in ("p_random", "p_shuffled", "p_other")}
    ranks |= {key: number(values[key], ".3f") for key in ("p_controls", "p_corrected")}
    # An interval over prompts needs two of them.
    interval = f"{percent['low']} to {percent['high']}" if np.isfinite(values["low"]) else "none"
    return {
        **values, **percent, **ranks, "interval": interval, "rivals": values["rivals"] or "none",
        "controls": counted(values["n_controls"], "control"), "failed": number(values["failed"], ".0%"),
        "median": rounded(values["median"]),
    }  # fmt: skip


def _file_of(name: str) -> str:
    return "clips.csv" if name == "clips" else f"tables/{name}.csv"
