"""The index above several studies: their findings, what each does to the others, and how their directions lie."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.report import crossing, page
from analysis.report.downloads import data_link, downloads
from analysis.report.writer import plain
from analysis.study import stages
from audiolens.integrity import sealed_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.study.several import Several

FORMAT, UNSEALED = "audiolens.studies.2", "audiolens.studies.1"
_COSINES = (
    "Cosine of the concepts' directions at each block; a star where random directions do not reach. One far from 0 may "
    "come from prompts that name both."
)


def is_ours(folder: Path) -> bool:
    """Whether a folder holds an index that was written here."""
    try:
        return json.loads((folder / stages.SUMMARY).read_text("utf-8")).get("format") in (FORMAT, UNSEALED)
    except (OSError, ValueError, AttributeError):
        return False


def write(several: Several, folder: Path, command: str = "") -> None:
    """Write `index.html`, `summary.json`, the tables and their figures above the studies' folders."""
    tables = {"cross_effects": several.to_frame(), "cosines": several.cosines.to_frame()}
    drawn: dict[str, tuple[str, str, Figure]] = {
        "cross_effects": (
            "What each does to the others",
            crossing.CAPTION,
            crossing.paper(several.to_frame(), caption=False),
        ),
        "cosines": ("How the directions lie to one another", _COSINES, several.cosines.plot()),
    }
    held = downloads(tables, {name: f"{name}.csv" for name in tables})
    figures: list[dict[str, Any]] = []
    for name, (title, caption, figure) in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        stages.put(folder / f"{name}.png", buffer.getvalue())
        stages.put(folder / f"{name}.csv", tables[name].to_csv(index=False).encode("utf-8"))
        image = data_link("image/png", buffer.getvalue())
        least = page.least_width(figure)
        figures.append({"title": title, "caption": caption, "image": image, "least": least, "table": held[name]})
    names = [one.concept for one in several.studies]
    facts = {
        "format": FORMAT, "model": several.studies[0].model, "concepts": names, "finding": several.finding,
        "cross_effects": several.to_frame().to_dict("records"), "command": command,
    }  # fmt: skip
    html = page.template("index.html.j2").render(
        names=names, model=several.studies[0].model, studies=several.studies, figures=figures, command=command,
        style=page.verbatim("style.css"), script=page.verbatim("downloads.js"),
    )  # fmt: skip
    # First: it says whose the index is.
    stages.put(folder / stages.SUMMARY, sealed_json(plain(facts), indent=2, ensure_ascii=False))
    stages.put(folder / "index.html", html.encode("utf-8"))
