"""Write a comparison to a folder, as a page with its tables (CSV) and figure (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.figures.canvas import DOUBLE, in_column
from analysis.figures.style import signed
from analysis.report import live, page
from analysis.report.downloads import downloads
from analysis.report.drawings import Drawing, in_both
from analysis.report.templates import template, text
from analysis.report.writer import checked_kinds, plain
from analysis.resampling import COVERAGE
from analysis.spreadsheets import write_csv
from analysis.store import folder as folders
from analysis.store.versions import versions
from audiolens.files.integrity import sealed_json

if TYPE_CHECKING:
    from analysis.comparison.result import StudyComparison

FORMAT = "audiolens.comparison.1"
_MEASURED: Mapping[str, tuple[str, ...]] = {
    "study": ("study",), "concept": ("concept",), "towards": ("pole",), "place": ("strategy", "layer"),
    "strength": ("strength",), f"effect [{COVERAGE}]": ("effect", "low", "high"),
    "by the mixed model": ("slope", "slope_low", "slope_high"), "words": ("prompted",), "failed": ("failed",),
    "p": ("p_corrected",), "claim holds": ("alone",), "of all": ("claimable",),
}  # fmt: skip
"""Columns of the page's table, each with the columns of `StudyComparison.table` that it shows."""
_POOLED: Mapping[str, tuple[str, ...]] = {
    "concept": ("concept",), "towards": ("pole",), "studies": ("studies",), "models": ("models",),
    f"mean change [{COVERAGE}]": ("effect", "low", "high"), "between studies (tau)": ("tau",),
    "p of equal effects": ("p_heterogeneity",),
}  # fmt: skip


def write(comparison: StudyComparison, folder: Path, command: str, figures: Sequence[str] = ()) -> Path:
    """Write everything to a new folder. The figure is written as SVG and in the further kinds of files in `figures`."""
    kinds = checked_kinds(figures)
    with folders.fresh(folder, overwrite=None) as work:
        tables = {
            "effects": comparison.table, "pooled": comparison.pooled, "variation": comparison.variation,
            "differences": pd.DataFrame(comparison.differences, index=pd.Index(comparison.names, name="study"))
            .T.rename_axis("setting").reset_index(),
        }  # fmt: skip
        for name, table in tables.items():
            write_csv(table, work / f"{name}.csv")
        drawing = _drawing(comparison)
        for kind in kinds:
            (work / f"{drawing.name}.{kind}").write_bytes(drawing.file(kind))
        facts = {
            "format": FORMAT, "finding": comparison.finding, "studies": comparison.names,
            "weights": comparison.weights, "effects": comparison.table.to_dict("records"),
            "pooled": comparison.pooled.to_dict("records"), "versions": versions(), "command": command,
        }  # fmt: skip
        (work / folders.SUMMARY).write_bytes(sealed_json(plain(facts), indent=2, ensure_ascii=False))
        html = _page(comparison, tables, drawing, command)
        (work / "index.html").write_text(html, "utf-8")
    return folder


def _drawing(comparison: StudyComparison) -> Drawing:
    from analysis.comparison.figures import CAPTION

    with in_column(DOUBLE):
        drawn = in_both(lambda: comparison.plot(caption=False))
    return Drawing("effects", "Effects of all studies with intervals", CAPTION, tables=("effects",), **drawn)


def _page(comparison: StudyComparison, tables: Mapping[str, pd.DataFrame], drawing: Drawing, command: str) -> str:
    scripts = {"saves": text("downloads.js"), "themes": text("theme.js")}
    chosen = comparison.table[comparison.table["chosen"]].to_dict("records")
    others = comparison.table[~comparison.table["chosen"]].to_dict("records")
    notes = [
        (" ".join(str(row[name]) for name in ("study", "pole") if row.get(name) == row.get(name, "")), row["note"])
        for row in comparison.variation.to_dict("records")
        if row["note"]
    ]
    pooled = comparison.pooled.to_dict("records")
    return template("comparison.html.j2").render(
        names=comparison.names, cautions=comparison.cautions, findings=comparison.finding.split("\n"),
        figure=page.fields(drawing), held=downloads(tables, {name: f"{name}.csv" for name in tables}),
        chosen=_grid(chosen, _MEASURED), others=_grid(others, _OTHER), pooled=_grid(pooled, _POOLED), notes=notes,
        differences=comparison.differences, models=len(set(comparison.weights)), command=command,
        style=text("style.css"), policy=live.policy(*scripts.values()), **scripts,
    )  # fmt: skip


_OTHER = {name: columns for name, columns in _MEASURED.items() if name not in ("by the mixed model", "words", "p",
          "claim holds", "of all")}  # fmt: skip


def _grid(rows: Sequence[Mapping[Any, Any]], shown: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the heads and cells of a table, as texts."""
    return {
        "heads": list(shown),
        "rows": [[_cell([row.get(name) for name in names], names) for names in shown.values()] for row in rows],
    }


def _cell(values: Sequence[Any], names: Sequence[str]) -> str:
    first = values[0]
    if first is None or first != first:
        return "–"
    if names[0] in ("effect", "slope"):
        ends = [signed(one) if one == one else "–" for one in values]
        return f"{ends[0]} [{ends[1]}, {ends[2]}]"
    if names[0] == "strategy":
        return str(first) if values[1] is None or values[1] != values[1] else f"{first} {int(values[1])}"
    if names[0] == "strength":
        return f"{first:+g}".replace("-", "−")
    if names[0] in ("claimable", "alone"):
        return "yes" if first else "no"
    if names[0] == "prompted":
        return signed(first)
    if names[0] == "failed":
        return f"{first:.0%}"
    return f"{first:.3g}" if isinstance(first, float) else str(first)
