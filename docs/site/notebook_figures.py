"""Prepare notebooks for the site: their plotly figures become pictures that a script replaces by the figures."""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.figures.offline import PLOTLY
from analysis.report import live, screens
from analysis.report.templates import template, text

SCRIPTS = ("plotly.js", "live.js")
"""plotly's library and the script that draws with it, once for the whole site. Only pages with figures load them."""
_BADGE = re.compile(r"\[!\[([^]]+)\]\([^)]+\)\]\(")
_HEIGHT = 450
"""Height in pixels of a figure that states none, as in notebooks."""


def write_scripts(folder: Path) -> None:
    """Write `SCRIPTS`. plotly's library is the one in the pages of studies."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in zip(SCRIPTS, (live.library(())[0], text("live.js")), strict=True):
        (folder / name).write_text(script, "utf-8")


def has_figures(body: str) -> bool:
    return '<script type="application/json" class="figure"' in body


def for_page(source: str) -> str:
    """Return a notebook in which figures are HTML, and badges are links: pages load no image from elsewhere."""
    notebook, number = json.loads(source), 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _BADGE.sub(r"[\1](", "".join(cell["source"]))
        for output in cell.get("outputs", ()):
            if PLOTLY in output.get("data", {}):
                number += 1
                output["data"] = {"text/html": _html(output["data"], f"figure-{number}")}
    return json.dumps(notebook)


def _html(data: dict[str, Any], name: str) -> str:
    """The picture of a figure with the data from which `live.js` draws it, and below it the figure's caption."""
    held = data[PLOTLY]
    figure = go.Figure({"data": held["data"], "layout": held["layout"]})
    layout: Any = figure.layout
    layout.height = layout.height or _HEIGHT
    caption = screens.caption_of(figure)
    figure = screens.slid(screens.without_caption(figure)) if layout.title.text else screens.bare(figure)
    shown = live.figure(figure, name, "".join(data["text/plain"]))
    picture = "data:image/png;base64," + "".join(data["image/png"]).replace("\n", "")
    drawn = template("live.html.j2").module.live({**shown, "picture": picture})
    axes: Any = figure.select_xaxes()
    if any(axis.domain and axis.domain[0] > 0 for axis in axes):
        # Panels side by side need room, and are scrolled on narrow screens.
        drawn = f'<div class="panels" tabindex="0"><div>{drawn}</div></div>'
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>" if caption else f"<figure>{drawn}</figure>"
