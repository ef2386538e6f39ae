"""Figures on screen (plotly): the same results as in `plots.py`, to hover over, zoom and slide through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.plots import BLACK, GREEN, GREY, POLES, PURPLE, SEVERAL, change_of, lines

if TYPE_CHECKING:
    from analysis.pca import PCAResult
    from analysis.similarity import CosineMap

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}


def cosines(result: CosineMap) -> go.Figure:
    """A heat map of cosines between layers."""
    first, second = result.names
    figure = go.Figure(
        go.Heatmap(
            z=result.cosines,
            x=list(result.other_layers),
            y=list(result.layers),
            zmin=-1,
            zmax=1,
            colorscale="PuOr_r",
            colorbar_title="cosine",
            text=np.where(result.significant, "*", ""),
            texttemplate="%{text}",
            customdata=result.p,
            hovertemplate="block %{y} and block %{x}: %{z:.3f}, p %{customdata:.3g}<extra></extra>",
        )
    )
    same = first == second
    figure.update_layout(
        title=first if same else f"{first} and {second}",
        xaxis_title="block" if same else f"block ({second})",
        yaxis_title="block" if same else f"block ({first})",
    )
    return _plain(figure)


def components(result: PCAResult) -> go.Figure:
    """The first two components of a layer, with a slider over layers."""
    poles = list(dict.fromkeys(result.labels))
    looks = POLES if len(poles) == 2 else SEVERAL
    labels = np.array(result.labels)
    figure = go.Figure()
    for place in range(len(result.layers)):
        for pole, (colour, marker) in zip(poles, looks, strict=False):
            chosen = result.scores[place][labels == pole]
            figure.add_scatter(
                x=chosen[:, 0],
                y=chosen[:, 1] if chosen.shape[1] > 1 else np.zeros(len(chosen)),
                mode="markers",
                marker={"color": colour, "symbol": SYMBOLS[marker], "size": 7, "opacity": 0.7},
                name=pole,
                visible=place == 0,
            )
    steps = []
    for place, layer in enumerate(result.layers):
        explained = result.explained[place]
        titles = [f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(explained[:2])]
        steps.append(
            {
                "method": "update",
                "label": str(layer),
                "args": [
                    {"visible": [i // len(poles) == place for i in range(len(poles) * len(result.layers))]},
                    {
                        "title.text": f"block {layer}: silhouette {result.silhouettes[place]:.2f}",
                        "xaxis.title.text": titles[0],
                        "yaxis.title.text": titles[1] if len(titles) > 1 else "",
                    },
                ],
            }
        )
    first = steps[0]["args"][1]
    figure.update_layout(
        title=first["title.text"],
        xaxis_title=first["xaxis.title.text"],
        yaxis_title=first["yaxis.title.text"],
        sliders=[{"steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 40}}],
    )
    return _plain(figure)


def dose_response(table: pd.DataFrame, measured: str, poles: Sequence[str]) -> go.Figure:
    """Effect against strength, with controls and prompted references; `table` as in `plots.dose_response`."""
    figure = go.Figure()
    base = table[table["kind"] == "baseline"].assign(strength=0.0)
    chosen = table[table["kind"].isin(["steered", "alternative"])]
    for place, (strategy, mine) in enumerate(chosen.groupby("strategy", sort=False)):
        colour, marker = SEVERAL[place]
        mine = pd.concat([mine, base]).sort_values("strength")
        figure.add_scatter(
            x=mine["strength"],
            y=mine["effect"],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (mine["high"] - mine["effect"]).fillna(0),
                "arrayminus": (mine["effect"] - mine["low"]).fillna(0),
            },
            customdata=mine["failed"],
            hovertemplate="strength %{x:+g}: %{y:+.1%}, %{customdata:.0%} failed<extra>" + str(strategy) + "</extra>",
            mode="lines+markers",
            line_color=colour,
            marker={"symbol": SYMBOLS[marker], "size": 8},
            name=str(strategy),
        )
    for kind, colour, symbol in (("random", GREY, "x-thin-open"), ("shuffled", PURPLE, "cross-thin-open")):
        mine = table[table["kind"] == kind]
        if len(mine):
            figure.add_scatter(
                x=mine["strength"],
                y=mine["effect"],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                name={"random": "random directions", "shuffled": "shuffled labels"}[kind],
            )
    for pole, dash in zip(poles, ("dash", "dashdot"), strict=True):
        mine = table[(table["kind"] == "prompted") & (table["pole"] == pole)]
        if len(mine) and np.isfinite(mine["effect"].iloc[0]):
            figure.add_hline(
                y=float(mine["effect"].iloc[0]), line_dash=dash, line_color=GREEN, annotation_text=f"asked for “{pole}”"
            )
    figure.add_hline(y=0, line_color=BLACK, line_width=1)
    figure.update_layout(
        xaxis_title="strength [differences of means]",
        yaxis_title=change_of(measured).replace("\n", " "),
        yaxis_tickformat="+.0%",
    )
    return _plain(figure)


def strengths(table: pd.DataFrame, measured: str) -> go.Figure:
    """Effect against strength of a sweep's conditions."""
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
    return _plain(figure)


def _plain(figure: go.Figure) -> go.Figure:
    return figure.update_layout(template="simple_white", margin={"l": 70, "r": 20, "t": 50, "b": 60})
