"""Write an index page for several studies, with their findings, cross-effects, and cosines between directions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from analysis.figures.literal import as_typed
from analysis.report import crossing, live, page
from analysis.report.downloads import data_link, downloads
from analysis.report.templates import template, text
from analysis.report.writer import plain
from analysis.spreadsheets import csv_of
from analysis.store.folder import SUMMARY, refuse_path
from audiolens.errors import InputError
from audiolens.files.atomic import put, refuse_special
from audiolens.files.bounded import read_object
from audiolens.files.integrity import sealed_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.study.study_set import Several

FORMAT, UNSEALED = "audiolens.studies.2", "audiolens.studies.1"
_TABLES = ("cross_effects", "cosines")
_COSINES = (
    "Cosine similarity between the concepts' directions at each block. A star marks values beyond those of random "
    "directions. A value far from 0 may come from prompts that name both concepts."
)


def is_ours(folder: Path) -> bool:
    """Return whether a folder contains an index that audiolens wrote."""
    try:
        return read_object(folder / SUMMARY).get("format") in (FORMAT, UNSEALED)
    except (OSError, InputError):
        return False


def check(folder: Path) -> None:
    """Check that no link or directory in a folder has the name of a file that `write` creates.

    Raises:
        InputError: if there is such a link or directory, which the error names.
    """
    for name in ("index.html", SUMMARY, *(f"{name}.{kind}" for name in _TABLES for kind in ("png", "csv"))):
        refuse_special(folder / name)


def write(several: Several, folder: Path, command: str = "") -> None:
    """Write `index.html`, `summary.json`, tables and figures into the folder that contains the studies.

    Raises:
        InputError: if a study's concept is not a valid folder name.
    """
    linked = [(one, _link(one.concept)) for one in several.studies]
    tables = {"cross_effects": several.to_frame(), "cosines": several.cosines.to_frame()}
    drawn: dict[str, tuple[str, str, Figure]] = {
        "cross_effects": (
            "Effect of each concept on the others",
            crossing.CAPTION,
            crossing.paper(several.to_frame(), caption=False),
        ),
        "cosines": ("Cosine similarity between the directions", _COSINES, several.cosines.plot()),
    }
    held = downloads(tables, {name: f"{name}.csv" for name in tables})
    figures: list[dict[str, Any]] = []
    for name, (title, caption, figure) in drawn.items():
        buffer = io.BytesIO()
        with as_typed():
            figure.savefig(buffer, format="png")
        put(folder / f"{name}.png", buffer.getvalue())
        put(folder / f"{name}.csv", csv_of(tables[name]).encode("utf-8"))
        image = data_link("image/png", buffer.getvalue())
        least = page.least_width(figure)
        figures.append({"title": title, "caption": caption, "image": image, "least": least, "table": held[name]})
    names = [one.concept for one in several.studies]
    facts = {
        "format": FORMAT, "model": several.studies[0].model, "concepts": names, "finding": several.finding,
        "qualification": several.qualification,
        "cross_effects": several.to_frame().to_dict("records"), "command": command,
    }  # fmt: skip
    saves = text("downloads.js")
    html = template("index.html.j2").render(
        names=names, model=several.studies[0].model, studies=linked, figures=figures, command=command,
        style=text("style.css"), saves=saves, policy=live.policy(saves),
    )  # fmt: skip
    # The summary is written first because it identifies the index as ours.
    put(folder / SUMMARY, sealed_json(plain(facts), indent=2, ensure_ascii=False))
    put(folder / "index.html", html.encode("utf-8"))


def _link(folder: str) -> str:
    """Return the relative link to a study's page, quoted so that no folder name is parsed as another address."""
    refuse_path(folder)
    return f"{quote(folder, safe='')}/index.html"
