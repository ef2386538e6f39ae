"""Embed interactive figures in a page, and write its Content-Security-Policy, so that only our own scripts run.

The policy lists the page's scripts by hash and allows no network requests. If untrusted text were ever interpreted as
markup, it could not run scripts, contact a server, or change where links lead.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.report.templates import template, text

if TYPE_CHECKING:
    import plotly.graph_objects as go

BUNDLE = "plotly-cartesian.min.js.gz"
"""The library in this folder; `plotly-LICENSE` is its licence."""
_CARTESIAN = {
    "bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "pie", "scatter",
    "scatterternary", "violin",
}  # fmt: skip
"""The kinds of traces that the bundle can draw."""


def policy(*scripts: str) -> str:
    """Return a policy under which a page runs only these scripts, and shows and plays only embedded content."""
    hashes = " ".join(f"'sha256-{_hashed(script)}'" for script in scripts)
    # plotly sets inline styles and saves images through a blob.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def library(drawn: Iterable[go.Figure]) -> tuple[str, str]:
    """Return plotly's library as a script, and the same script compressed for `live.html.j2`.

    The library is the bundle of plotly.js for plots with two axes (MIT licence, from the npm package
    plotly.js-cartesian-dist-min, whose version must be that of the installed plotly's own library or close to it). A
    figure with other traces, such as 3-D ones, gets the whole library.
    """
    if all(trace.type in _CARTESIAN for figure in drawn for trace in _traces(figure)):
        packed = files("analysis.report").joinpath(BUNDLE).read_bytes()
        return gzip.decompress(packed).decode("utf-8"), base64.b64encode(packed).decode("ascii")
    from plotly.offline import get_plotlyjs

    whole = get_plotlyjs().replace("\r\n", "\n")
    return whole, base64.b64encode(gzip.compress(whole.encode("utf-8"), mtime=0)).decode("ascii")


def figure(drawn: go.Figure, name: str, title: str) -> dict[str, Any]:
    """Return the fields that `live.html.j2` needs to show a figure.

    A slider of plotly, which no keyboard reaches, is taken out, and the page shows one of its own.
    """
    import plotly.graph_objects as go
    import plotly.io

    drawn = go.Figure(drawn)
    layout: Any = drawn.layout
    sliders, slider = layout.sliders, None
    if sliders:
        moved = sliders[0]
        steps = [{"label": step.label, "data": step.args[0], "layout": step.args[1]} for step in moved.steps]
        slider = {"prefix": moved.currentvalue.prefix or "", "active": moved.active or 0, "steps": steps}
        layout.sliders = ()
    height = "100%" if layout.height is None else f"{layout.height:g}px"
    # Escape "<", so that the data cannot close the script element that contains them.
    held = f'{{"figure": {plotly.io.to_json(drawn)}, "slider": {json.dumps(slider)}}}'.replace("<", r"\u003c")
    return {"name": name, "title": title, "height": height, "held": held, "slider": slider}


def write(drawn: go.Figure, path: Path, title: str) -> None:
    """Write an interactive figure as a separate page."""
    script, packed = library([drawn])
    calls = text("live.js")
    page = template("figure.html.j2").render(
        title=title, figure=figure(drawn, "figure", title), policy=policy(script, calls), library=packed, calls=calls
    )
    path.write_text(page, "utf-8")


def _traces(drawn: go.Figure) -> Any:
    return drawn.data


def _hashed(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
