"""Live figures, and the policy of a page: what comes from a file is data in it, and only our own scripts run.

A page's policy (Content-Security-Policy) names its scripts by their hashes and lets nothing be fetched: text that got
into the page as markup could not run, could not call anyone, and could not change where links lead.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.report.templates import template, text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def policy(*scripts: str) -> str:
    """The policy of a page that runs these scripts, as they stand in it, and shows and plays what it holds itself."""
    hashes = " ".join(f"'sha256-{_hashed(script)}'" for script in scripts)
    # plotly sets styles, and saves its pictures through a blob.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def scripts() -> tuple[str, str]:
    """The library that draws live figures, and what calls it: both stand in a page, as there is no network."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("\r\n", "\n"), text("live.js")


def figure(drawn: go.Figure, name: str) -> dict[str, Any]:
    """A figure as `live.html.j2` puts it into a page."""
    import plotly.io

    layout: Any = drawn.layout
    height = "100%" if layout.height is None else f"{layout.height:g}px"
    # Without a "<", nothing in it ends the element that holds it.
    held = plotly.io.to_json(drawn) or ""
    return {"name": name, "height": height, "held": held.replace("<", r"\u003c")}


def write(drawn: go.Figure, path: Path, title: str) -> None:
    """A live figure as a page of its own."""
    library, calls = scripts()
    page = template("figure.html.j2").render(
        title=title, figure=figure(drawn, "figure"), policy=policy(library, calls), library=library, calls=calls
    )
    path.write_text(page, "utf-8")


def _hashed(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
