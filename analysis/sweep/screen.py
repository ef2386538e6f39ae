"""Plotly figures of sweeps, the interactive versions of those in `plots.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.literal import literally
from analysis.figures.style import BLACK, DIVERGING, GREY, POLES, SEVERAL, SYMBOLS, name_of, plain, screen_errors
from analysis.sweep.factorial import spoken
from analysis.sweep.plots import LOSSES, labelled
from analysis.sweep.response import is_ratio
from audiolens.directions.strategies import described

if TYPE_CHECKING:
    from analysis.sweep.tradeoff import Front, LayerMap, Limits, Strategies

STRENGTH = "strength [differences of means]"


def in_units(figure: go.Figure, measured: str) -> go.Figure:
    """Relabel the effect axis from percentages to differences if the measure has no true zero."""
    return figure if is_ratio(measured) else figure.update_yaxes(tickformat="+.3g", title=_label(measured))


@literally
def layer_map(result: LayerMap) -> go.Figure:
    """Draw the effect by layer and strength."""
    most = float(np.nanmax(np.abs(result.effect), initial=0)) or 1.0
    shares = is_ratio(result.measured)
    figure = go.Figure(
        go.Heatmap(
            z=result.effect,
            x=[f"{strength:+g}" if strength else "0" for strength in result.strengths],
            y=[str(layer) for layer in result.layers],
            zmin=-most,
            zmax=most,
            colorscale=DIVERGING,
            customdata=result.failed,
            colorbar={"title": "change", "tickformat": "+.0%" if shares else "+.2g"},
            hovertemplate="block %{y}, strength %{x}: %{z:"
            + ("+.1%" if shares else "+.3g")
            + "}, %{customdata:.0%} failed"
            "<extra></extra>",
        )
    )
    title = f"{result.concept}, {result.strategy}: {_label(result.measured)}"
    return plain(
        figure.update_layout(
            title=title, xaxis_title=STRENGTH, yaxis_title=described(result.strategy).axis, xaxis_type="category"
        )
    )


@literally
def cross_effects(table: pd.DataFrame) -> go.Figure:
    """Draw the change in every measure, with ratios on the left axis and differences on the right."""
    figure = go.Figure()
    for strength in sorted(table["strength"].unique()):
        colour, marker = POLES[0] if strength > 0 else POLES[1]
        for unit, axis in (("ratio", "x"), (None, "x2")):
            same = table["unit"] == "ratio"
            rows = table[(table["strength"] == strength) & (same if unit else ~same)]
            if len(rows):
                _intervals(figure, rows, [_named(row) for row in rows.itertuples()], colour, marker, f"{strength:+g}",
                           xaxis=axis, showlegend=axis == "x", offsetgroup=f"{strength:+g}")  # fmt: skip
    figure.update_layout(
        legend_title="strength",
        # Intervals of one measure would otherwise lie on top of each other.
        scattermode="group",
        scattergap=0.5,
        xaxis={"title": "change from the unsteered clip", "tickformat": "+.0%", "domain": [0, 0.62]},
        xaxis2={"title": "difference, in the unit shown", "domain": [0.68, 1], "anchor": "y"},
        yaxis_autorange="reversed",
    )
    return plain(figure).update_layout(margin_l=190)


@literally
def limits(result: Limits) -> go.Figure:
    """Draw the range of strengths whose loss stays within the bound, for every place."""
    figure = go.Figure()
    for sign, colour, marker in ((1, *POLES[0]), (-1, *POLES[1])):
        mine = result.table[result.table["sign"] == sign]
        symbols = [
            ("triangle-right" if sign > 0 else "triangle-left") if row else SYMBOLS[marker] for row in mine["open"]
        ]
        names = [spoken(row) for _, row in mine.iterrows()]
        figure.add_bar(x=mine["strength"], y=names, orientation="h", marker_color=colour, width=0.2, showlegend=False)
        figure.add_scatter(
            x=mine["strength"],
            y=names,
            mode="markers",
            marker={"color": colour, "symbol": symbols, "size": 10},
            customdata=np.stack([mine["effect"], mine[result.loss]], axis=1),
            hovertemplate="%{y}: %{x:+g}, change %{customdata[0]:.3g}, loss %{customdata[1]:.3g}<extra></extra>",
            name="positive" if sign > 0 else "negative",
        )
    title = (
        f"{result.concept}: {LOSSES.get(result.loss, result.loss)} at most {result.bound:g}; arrow: bound not reached"
    )
    figure.update_layout(title=title, xaxis_title=STRENGTH, yaxis_autorange="reversed", barmode="overlay")
    return plain(figure).update_layout(margin_l=150)


@literally
def strategies(result: Strategies) -> go.Figure:
    """Draw every strategy's largest effect towards each pole, with a bound on the loss."""
    figure = go.Figure()
    for sign, label in ((1, "towards the positive pole"), (-1, "towards the negative pole")):
        mine = result.table[result.table["sign"] == sign]
        pairs = zip(mine["strategy"], mine["branch"], strict=True)
        names = [one if branch == "both" else f"{one} ({branch})" for one, branch in pairs]
        _intervals(
            figure, mine, names, *POLES[0 if sign > 0 else 1], label, text=[spoken(row) for _, row in mine.iterrows()]
        )
    figure.add_vline(x=0, line_color=BLACK, line_width=1)
    title = f"{result.concept}: {LOSSES.get(result.loss, result.loss)} at most {result.bound:g}"
    shares = "+.0%" if is_ratio(result.measured) else "+.2g"
    figure.update_layout(title=title, xaxis={"title": _label(result.measured), "tickformat": shares})
    return plain(figure).update_layout(margin_l=130)


@literally
def front(result: Front) -> go.Figure:
    """Draw gain against loss. Filled markers are Pareto-optimal conditions."""
    figure = go.Figure()
    for place, ((strategy, sign), mine) in enumerate(result.table.groupby(["strategy", "sign"], sort=False)):
        colour, marker = SEVERAL[place % len(SEVERAL)]
        symbol = SYMBOLS[marker]
        figure.add_scatter(
            x=mine[result.loss],
            y=mine["gain"],
            mode="markers",
            marker={
                "color": colour,
                "size": 9,
                "symbol": [symbol if best else f"{symbol}-open" for best in mine["best"]],
            },
            text=[f"{spoken(row)} {row['strength']:+g}" for _, row in mine.iterrows()],
            name=f"{strategy}, {'positive' if sign > 0 else 'negative'}",  # pyright: ignore[reportOperatorIssue]
        )
    figure.add_hline(y=0, line_color=GREY, line_width=1)
    shares = "+.0%" if is_ratio(result.measured) else "+.2g"
    figure.update_layout(
        xaxis={
            "title": LOSSES.get(result.loss, result.loss),
            "tickformat": ".0%" if result.loss == "failed" else ".2g",
        },
        yaxis={"title": f"{_label(result.measured)}, towards the pole", "tickformat": shares},
    )
    return plain(figure)


def _intervals(figure: go.Figure, rows: Any, names: Any, colour: str, marker: str, label: str, **more: Any) -> None:
    figure.add_scatter(
        x=rows["effect"],
        y=names,
        error_x=screen_errors(rows["effect"], rows["low"], rows["high"]),
        mode="markers",
        marker={"color": colour, "symbol": SYMBOLS[marker], "size": 8},
        orientation="h",
        name=label,
        **more,
    )


def _named(row: Any) -> str:
    return name_of(row.measure) if row.unit in ("ratio", "") else f"{name_of(row.measure)} [{row.unit}]"


def _label(measured: str) -> str:
    return labelled(measured).replace("\n", " ")
