"""Write the page that lists several studies: what each found, three clips of each, and their effects on one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from analysis.figures.canvas import DOUBLE, in_column
from analysis.report import crossing, live, page
from analysis.report.downloads import downloads
from analysis.report.drawings import Drawing, in_both, the_finding
from analysis.report.templates import template, text
from analysis.report.writer import plain, sounds
from analysis.resampling import COVERAGE
from analysis.spreadsheets import csv_of
from analysis.store.folder import SUMMARY, refuse_path
from audiolens.errors import InputError
from audiolens.files.atomic import put, refuse_special
from audiolens.files.bounded import read_object
from audiolens.files.integrity import read_json, sealed_json

if TYPE_CHECKING:
    from analysis.study.result import Study
    from analysis.study.study_set import Several

FORMAT, UNSEALED = "audiolens.studies.2", "audiolens.studies.1"
_TABLES = ("cross_effects", "cosines")
_COLUMNS = ("change", f"{COVERAGE} interval", "failed clips", "p, corrected")


@dataclass(frozen=True)
class _Listed:
    """A study as the page lists it. `trio` is empty if no sound of it is kept."""

    study: Study
    name: str
    link: str
    trio: list[tuple[Any, str, str]]
    finding: dict[str, Any]


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
    for name in ("index.html", SUMMARY, *_files()):
        refuse_special(folder / name)


def _files() -> list[str]:
    """Return the names of the tables and figures that compare studies."""
    return [f"{name}.{kind}" for name in _TABLES for kind in ("svg", "csv")]


def refuse_foreign(folder: Path, remedy: str) -> None:
    """Raise an `InputError` if a folder has a page or summary that is no index of studies. `remedy` says what to do."""
    for name in ("index.html", SUMMARY):
        if (folder / name).exists() and not is_ours(folder):
            raise InputError(
                f"{folder / name} exists, but it is not an index of studies, or its {SUMMARY} is damaged: choose "
                f"another folder, or {remedy}."
            )


def write(several: Several, folder: Path, command: str = "", names: Sequence[str] = ()) -> None:
    """Write `index.html`, `summary.json`, tables and figures into the folder that contains the studies.

    `names` are the names of the studies' folders, by default their concepts.

    Raises:
        InputError: if one of these names is not a valid folder name.
    """
    names = list(names) or [one.concept for one in several.studies]
    links = [_link(name) for name in names]
    tables, drawn = _crossed(several) if several.is_crossed else ({}, [])
    # If this index has no such figures, those of an earlier one are removed.
    drew = is_ours(folder) and read_json(folder / SUMMARY).get("cross_effects")
    for drawing in drawn:
        put(folder / f"{drawing.name}.svg", drawing.svg)
        put(folder / f"{drawing.name}.csv", csv_of(tables[drawing.name]).encode("utf-8"))
    concepts, models = (
        list(dict.fromkeys(getattr(one, name) for one in several.studies)) for name in ("concept", "model")
    )
    facts = {
        "format": FORMAT, "model": models[0], "concepts": [one.concept for one in several.studies], "folders": names,
        "finding": several.finding, "qualification": several.qualification,
        "cross_effects": tables["cross_effects"].to_dict("records") if several.is_crossed else [], "command": command,
    }  # fmt: skip
    scripts = {"saves": text("downloads.js"), "plays": text("players.js"), "themes": text("theme.js")}
    html = template("index.html.j2").render(
        concepts=concepts,
        models=models,
        studies=[_listed(*one) for one in zip(several.studies, names, links, range(len(names)), strict=True)],
        columns=_COLUMNS,
        rows=_numbers(several.studies),
        tests=2 * len(several.studies),
        figures=[page.fields(one) for one in drawn],
        held=downloads(tables, {name: f"{name}.csv" for name in tables}),
        command=command,
        style=text("style.css"),
        policy=live.policy(*scripts.values()),
        **scripts,
    )
    # The summary is written first because it identifies the index as ours.
    put(folder / SUMMARY, sealed_json(plain(facts), indent=2, ensure_ascii=False))
    put(folder / "index.html", html.encode("utf-8"))
    for name in _files() if drew and not drawn else ():
        (folder / name).unlink(missing_ok=True)


def _crossed(several: Several) -> tuple[dict[str, pd.DataFrame], list[Drawing]]:
    """Return the tables that need studies of different concepts on one model, and the figures of them."""
    effects, cosines = several.to_frame(), several.cosines
    tables = {"cross_effects": effects, "cosines": cosines.to_frame()}
    with in_column(DOUBLE):
        drawn = [
            Drawing("cross_effects", "Effect of each concept on the others", crossing.CAPTION,
                    **in_both(lambda: crossing.paper(effects, caption=False)), tables=("cross_effects",)),
            Drawing("cosines", "Cosine similarity between the directions", crossing.COSINES,
                    **in_both(lambda: crossing.cosines(cosines)), tables=("cosines",)),
        ]  # fmt: skip
    return tables, drawn


def _listed(study: Study, name: str, link: str, place: int) -> _Listed:
    with in_column(DOUBLE):
        drawing = the_finding(study)
    # Several studies are on one page, so each id states the number of its study.
    drawing = replace(drawing, name=f"finding-{place}", title=f"The finding: {study.concept}")
    return _Listed(study, name, link, page.three_clips(study, sounds(study), f"sound-{place}"), page.fields(drawing))


def _numbers(studies: Sequence[Study]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return a row for each pole of each study: its name, and the cells with the names of their columns."""
    rows = []
    for study in studies:
        # The negative pole comes first, as in the players and on the axes.
        for word, outcome in [*zip(study.words, study.outcomes, strict=True)][::-1]:
            one = page.formatted(outcome.as_dict())
            cells = (one["effect"], one["interval"], one["failed"], one["p_corrected"])
            name = f"{study.concept}: {word} ({one['strength']})".replace("-", "−")
            rows.append((name, list(zip(_COLUMNS, cells, strict=True))))
    return rows


def _link(folder: str) -> str:
    """Return the relative link to a study's page, quoted so that no folder name is parsed as another address."""
    refuse_path(folder)
    return f"{quote(folder, safe='')}/index.html"
