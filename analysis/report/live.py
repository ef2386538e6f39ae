"""Embed interactive figures in a page, and write its Content-Security-Policy, so that only our own scripts run.

The policy lists the page's scripts by hash and allows no network requests. If untrusted text were ever interpreted as
markup, it could not run scripts, contact a server, or change where links lead.
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
    """Return a policy under which a page runs only these scripts, and shows and plays only embedded content."""
    hashes = " ".join(f"'sha256-{_hashed(script)}'" for script in scripts)
    # plotly sets inline styles and saves images through a blob.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def scripts() -> tuple[str, str]:
    """Return the plotting library and the script that calls it. Both are embedded, so that a page works offline."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("\r\n", "\n"), text("live.js")


def figure(drawn: go.Figure, name: str) -> dict[str, Any]:
    """Return the fields that `live.html.j2` needs to show a figure."""
    import plotly.io

    layout: Any = drawn.layout
    height = "100%" if layout.height is None else f"{layout.height:g}px"
    # Escape "<", so that the data cannot close the script element that contains them.
    held = plotly.io.to_json(drawn) or ""
    return {"name": name, "height": height, "held": held.replace("<", r"\u003c")}


def write(drawn: go.Figure, path: Path, title: str) -> None:
    """Write an interactive figure as a separate page."""
    library, calls = scripts()
    page = template("figure.html.j2").render(
        title=title, figure=figure(drawn, "figure"), policy=policy(library, calls), library=library, calls=calls
    )
    path.write_text(page, "utf-8")


def _hashed(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
