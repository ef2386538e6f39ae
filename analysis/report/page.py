"""The page: one HTML file with its figures, sounds and tables inside, which opens from disk without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures import plots
from audiolens.measure import UNITS

if TYPE_CHECKING:
    from analysis.report.writer import Drawing, Sound
    from analysis.study import Study


def render(
    study: Study,
    folder: Path,
    sounds: Sequence[Sound],
    drawings: Sequence[Drawing],
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> str:
    """The page's HTML. `folder` holds the figures as files already."""
    from jinja2 import Environment

    template = files("analysis.report").joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    figures = [
        {
            "name": drawing.name,
            "title": drawing.title,
            "caption": drawing.caption,
            "image": _data("image/png", (folder / "figures" / f"{drawing.name}.png").read_bytes()),
        }
        for drawing in drawings
    ]
    downloads = {f"tables/{name}.csv": _csv(table) for name, table in tables.items()}
    downloads["clips.csv"] = _csv(study.clips)
    return environment.from_string(template).render(
        study=study,
        facts=facts,
        quantity=plots.name_of(study.measure),
        unit=f" {UNITS[study.measure]}" if UNITS.get(study.measure) else "",
        outcomes=[_outcome(outcome.as_dict()) for outcome in study.outcomes],
        rho=_number(study.monotonicity.rho, "+.2f"),
        baseline=_number(float(study.response.loc[study.response["kind"] == "baseline", "median"].iloc[0]), ".0f"),
        pairs=_pairs(study, sounds),
        figures=[figure for figure in figures if figure["name"] != "spectrograms"],
        downloads=downloads,
        minutes=sum(study.seconds.values()) / 60,
    )


def _pairs(study: Study, sounds: Sequence[Sound]) -> list[dict[str, Any]]:
    """The sounds in rows of one prompt and seed, each with its picture and what was measured in it."""
    tested = study.clips[study.clips["split"] == "test"].to_dict("records")
    heard = {(row["condition"], row["prompt"], row["seed"]): row for row in tested}
    rows: dict[int, dict[str, Any]] = {}
    for sound in sounds:
        measured = heard[sound.condition, sound.prompt, sound.seed]
        row = rows.setdefault(sound.pair, {"prompt": sound.prompt, "seed": sound.seed, "clips": []})
        row["clips"].append(
            {
                "label": sound.label.replace(" -", " −"),
                "file": f"audio/{sound.file}",
                "audio": compressed(sound.samples, study.sample_rate),
                "image": _data("image/png", _thumbnail(sound.samples, study.sample_rate)),
                "value": _number(float(measured[study.measure]), ".0f"),
                "failed": bool(measured["failed"]),
            }
        )
    return list(rows.values())


def compressed(samples: np.ndarray, sample_rate: int) -> str:
    """Sound as a data URI: Ogg Vorbis, or FLAC where this build of libsndfile cannot write that."""
    import soundfile

    clip = np.clip(samples.T, -1, 1)
    for kind, subtype, mime in (("OGG", "VORBIS", "audio/ogg"), ("FLAC", "PCM_16", "audio/flac")):
        if kind not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(kind):
            continue
        buffer = io.BytesIO()
        soundfile.write(buffer, clip, sample_rate, format=kind, subtype=subtype)
        return _data(mime, buffer.getvalue())
    raise RuntimeError("libsndfile can write neither Ogg nor FLAC")


def _thumbnail(samples: np.ndarray, sample_rate: int) -> bytes:
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
    percent = {key: _number(values[key], "+.0%") for key in ("effect", "low", "high", "prompted", "opposed")}
    percent["strength"] = _number(values["strength"], "+g")
    ranks = {key: _number(values[key], ".2f") for key in ("p_random", "p_shuffled")}
    return {**values, **percent, **ranks, "failed": _number(values["failed"], ".0%"),
            "median": _number(values["median"], ".0f")}  # fmt: skip


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−") if np.isfinite(value) else "not measured"


def _csv(table: pd.DataFrame) -> str:
    return _data("text/csv", table.to_csv(index=False).encode("utf-8"))


def _data(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
