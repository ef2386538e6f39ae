"""Interactive figures of effects (plotly), corresponding to the static ones in `plots.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.literal import literally
from analysis.figures.plots import CONTROL_MARKS, lines
from analysis.figures.style import BLACK, GREEN, SEVERAL, SYMBOLS, change_of, plain, screen_errors
from analysis.statistics import MOST_FAILED


@literally
def dose_response(table: pd.DataFrame, measured: str, poles: Sequence[str]) -> go.Figure:
    """Plot effect against strength, with controls and prompted references. `table` is as in `plots.dose_response`."""
    figure = go.Figure()
    base = table[table["kind"] == "baseline"].assign(strength=0.0)
    chosen = table[table["kind"].isin(["steered", "alternative"])]
    for place, (strategy, mine) in enumerate(chosen.groupby("strategy", sort=False)):
        colour, marker = SEVERAL[place]
        mine = pd.concat([mine, base]).sort_values("strength")
        figure.add_scatter(
            x=mine["strength"],
            y=mine["effect"],
            error_y=screen_errors(mine["effect"], mine["low"], mine["high"]),
            customdata=mine["failed"],
            hovertemplate="strength %{x:+g}: %{y:+.1%}, %{customdata:.0%} failed<extra>" + str(strategy) + "</extra>",
            mode="lines+markers",
            line_color=colour,
            marker={
                "symbol": mine["failed"].gt(MOST_FAILED).map({True: f"{SYMBOLS[marker]}-open", False: SYMBOLS[marker]}),
                "size": 8,
            },
            name=str(strategy),
        )
    if chosen["failed"].gt(MOST_FAILED).any():
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": BLACK, "symbol": "circle-open", "size": 8},
            name=f"more than {MOST_FAILED:.0%} of the clips failed",
        )
    for kind, (colour, marker, words) in CONTROL_MARKS.items():
        mine = table[table["kind"] == kind]
        if len(mine):
            figure.add_scatter(
                x=mine["strength"],
                y=mine["effect"],
                mode="markers",
                marker={"color": colour, "symbol": SYMBOLS[marker], "size": 8},
                name=words,
            )
    for pole, dash in zip(poles, ("dash", "dashdot"), strict=True):
        mine = table[(table["kind"] == "prompted") & (table["pole"] == pole)]
        if len(mine) and np.isfinite(mine["effect"].iloc[0]):
            figure.add_hline(
                y=float(mine["effect"].iloc[0]),
                line_dash=dash,
                line_color=GREEN,
                annotation_text=f"prompted for “{pole}”",
            )
    figure.add_hline(y=0, line_color=BLACK, line_width=1)
    figure.update_layout(
        xaxis_title="strength [differences of means]",
        yaxis_title=change_of(measured).replace("\n", " "),
        yaxis_tickformat="+.0%",
    )
    return plain(figure)


@literally
def strengths(table: pd.DataFrame, measured: str) -> go.Figure:
    """Plot effect against strength for the conditions of a sweep."""
    figure = go.Figure()
    for place, (name, mine) in enumerate(lines(table)):
        colour, marker = SEVERAL[place % len(SEVERAL)]
        figure.add_scatter(
            x=mine["strength"],
            y=mine["effect"],
            mode="lines+markers",
            line_color=colour,
            marker_symbol=SYMBOLS[marker],
            name=name,
        )
    figure.update_layout(
        xaxis_title="strength [differences of means]",
        yaxis_title=change_of(measured).replace("\n", " "),
        yaxis_tickformat="+.0%",
    )
    return plain(figure)
