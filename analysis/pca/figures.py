"""Draw principal components in two and three dimensions, and paths over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.literal import in_template, literally
from analysis.figures.style import SYMBOLS, looks, sliding, styled

if TYPE_CHECKING:
    from analysis.pca.components import PCAResult, Trajectories

_FLAT = {"triangle-up": "circle-open", "triangle-down": "diamond-open"}
"""Replacements for markers that plotly lacks in three dimensions."""


def panels_paper(result: PCAResult) -> Figure:
    """Draw the scores on the first two components, with one panel per layer and one colour and marker per pole."""
    count = len(result.layers)
    columns = min(4, count)
    lines = -(-count // columns)
    poles = list(dict.fromkeys(result.labels))
    labels = np.array(result.labels)
    with styled():
        figure = canvas((2.3 * columns, 2.25 * lines + 0.4))
        panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
        for index, axes in enumerate(panels):
            if index >= count:
                axes.set_visible(False)
                continue
            scores, explained = result.scores[index], result.explained[index]
            for pole, (colour, marker) in zip(poles, looks(len(poles)), strict=True):
                chosen = labels == pole
                second = scores[chosen, 1] if scores.shape[1] > 1 else np.zeros(chosen.sum())
                axes.scatter(
                    scores[chosen, 0], second, s=11, c=colour, marker=marker, alpha=0.65, linewidths=0, label=pole
                )
            axes.set_title(_title(result, index, "\n"), fontsize=8.5)
            axes.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)", fontsize=7.5)
            if len(explained) > 1:
                axes.set_ylabel(f"component 2 ({explained[1]:.0%})", fontsize=7.5)
            axes.tick_params(labelsize=7)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(poles), markerscale=1.6)
    return figure


@literally
def panels_screen(result: PCAResult) -> go.Figure:
    """Draw the first two components of a layer, with a slider over layers."""
    poles = list(dict.fromkeys(result.labels))
    labels = np.array(result.labels)
    figure = go.Figure()
    for index in range(len(result.layers)):
        for pole, (colour, marker) in zip(poles, looks(len(poles)), strict=True):
            x, y = _two(result.scores[index][labels == pole])
            figure.add_scatter(
                x=x, y=y, mode="markers", name=pole, visible=index == 0,
                marker={"color": colour, "symbol": SYMBOLS[marker], "size": 7, "opacity": 0.7},
            )  # fmt: skip
    titles = [_title(result, index, ": ") for index in range(len(result.layers))]
    return sliding(figure, result.layers, titles, _flat_axes(result), each=len(poles))


def space_paper(result: PCAResult) -> Figure:
    """Draw the scores on the first three components, with one panel per layer and one colour and marker per pole."""
    labels = np.array(result.labels)
    poles = list(dict.fromkeys(result.labels))
    columns = min(4, len(result.layers))
    lines = -(-len(result.layers) // columns)
    with styled():
        figure = canvas((3.0 * columns, 2.9 * lines + 0.5), layout=None)
        for index in range(len(result.layers)):
            axes: Any = figure.add_subplot(lines, columns, index + 1, projection="3d")
            explained = result.explained[index]
            for pole, (colour, marker) in zip(poles, looks(len(poles)), strict=True):
                chosen = result.scores[index][labels == pole]
                axes.scatter(*chosen.T[:3], s=9, c=colour, marker=marker, alpha=0.65, linewidths=0, label=pole)
            axes.set_title(_title(result, index, "\n"), fontsize=8.5, pad=-2)
            for which, name in enumerate("xyz"):
                getattr(axes, f"set_{name}label")(
                    f"component {which + 1} ({explained[which]:.0%})", fontsize=6.5, labelpad=-9
                )
            axes.tick_params(labelsize=5.5, pad=-4)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="upper center", ncols=len(poles), markerscale=1.8)
        figure.subplots_adjust(left=0.02, right=0.96, bottom=0.05, top=0.88 if lines == 1 else 0.92, wspace=0.12)
    return figure


@literally
def space_screen(result: PCAResult) -> go.Figure:
    """Draw the first three components of a layer, with a slider over layers."""
    labels = np.array(result.labels)
    poles = list(dict.fromkeys(result.labels))
    figure = go.Figure()
    for index in range(len(result.layers)):
        for pole, (colour, marker) in zip(poles, looks(len(poles)), strict=True):
            chosen = result.scores[index][labels == pole]
            symbol = SYMBOLS[marker]
            figure.add_scatter3d(
                x=chosen[:, 0], y=chosen[:, 1], z=chosen[:, 2], mode="markers", name=pole, visible=index == 0,
                marker={"color": colour, "symbol": _FLAT.get(symbol, symbol), "size": 4, "opacity": 0.75},
            )  # fmt: skip
    titles = [_title(result, index, ": ") for index in range(len(result.layers))]
    axes = [
        {
            f"scene.{name}axis.title.text": f"component {which + 1} ({explained[which]:.0%})"
            for which, name in enumerate("xyz")
        }
        for explained in result.explained
    ]
    return sliding(figure, result.layers, titles, axes, each=len(poles))


def paths_paper(result: Trajectories) -> Figure:
    """Draw each pole's mean path in two components, one panel per layer, above a map of the silhouette over time."""
    columns = min(4, len(result.layers))
    lines = -(-len(result.layers) // columns)
    marks = _whole_seconds(result.seconds)
    with styled():
        figure = canvas((2.5 * columns + 0.6, 2.2 * lines + 2.2))
        halves: Any = figure.subfigures(2, 1, height_ratios=[2.2 * lines + 0.3, 1.9])
        upper, lower = halves
        panels = np.atleast_1d(upper.subplots(lines, columns)).ravel()
        for index, axes in enumerate(panels):
            if index >= len(result.layers):
                axes.set_visible(False)
                continue
            for number, (pole, (colour, marker)) in enumerate(zip(result.poles, looks(len(result.poles)), strict=True)):
                x, y = _two(result.means[index, number])
                axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.8)
                axes.plot(x[marks], y[marks], color=colour, marker=marker, markersize=4, linestyle="none", label=pole)
                axes.plot(
                    x[:1], y[:1], color=colour, marker=marker, markersize=6, markerfacecolor="white", linestyle="none"
                )
            explained = result.explained[index]
            axes.set_title(f"block {result.layers[index]}", fontsize=8.5)
            axes.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)", fontsize=7)
            axes.set_ylabel(f"component 2 ({explained[1]:.0%})" if len(explained) > 1 else "", fontsize=7)
            axes.tick_params(labelsize=6.5)
        handles, names = panels[0].get_legend_handles_labels()
        upper.legend(
            handles, [f"{name}: a dot every second; hollow: start" for name in names], loc="outside upper center",
            ncols=min(2, len(names)),
        )  # fmt: skip
        axes = lower.subplots()
        axes.grid(False)
        step = float(np.median(np.diff(result.seconds))) if len(result.seconds) > 1 else 1.0
        image = axes.imshow(
            result.silhouettes, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest",
            vmin=min(0.0, float(result.silhouettes.min())),
            extent=(result.seconds[0], result.seconds[-1] + step, -0.5, len(result.layers) - 0.5),
        )  # fmt: skip
        axes.set_yticks(range(len(result.layers)), [str(layer) for layer in result.layers])
        axes.set_xlabel("time in the clip [s]")
        axes.set_ylabel("block")
        lower.colorbar(image, ax=axes, label="silhouette")
    return figure


@literally
def paths_screen(result: Trajectories) -> go.Figure:
    """Draw the poles' paths in two components, with a slider over layers. Hovering over a path shows the time."""
    figure = go.Figure()
    for index in range(len(result.layers)):
        for number, (pole, (colour, marker)) in enumerate(zip(result.poles, looks(len(result.poles)), strict=True)):
            x, y = _two(result.means[index, number])
            figure.add_scatter(
                x=x, y=y, mode="lines+markers", name=pole, visible=index == 0, line_color=colour,
                marker={"symbol": SYMBOLS[marker], "size": 5}, customdata=np.stack(
                    [result.seconds, result.silhouettes[index]], axis=1
                ),
                hovertemplate="%{customdata[0]:.2f} s, silhouette %{customdata[1]:.2f}"
                f"<extra>{in_template(pole)}</extra>",
            )  # fmt: skip
    titles = [f"block {layer}: paths of the poles" for layer in result.layers]
    return sliding(figure, result.layers, titles, _flat_axes(result), each=len(result.poles))


def _title(result: PCAResult, index: int, joint: str) -> str:
    """Return a panel's title: its block, and the silhouette with an interval over prompts."""
    interval = result.intervals[index]
    # Rounding and then adding 0 avoids "-0.00".
    value, low, high = (round(float(one), 2) + 0.0 for one in (result.silhouettes[index], interval.low, interval.high))
    known = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
    return f"block {result.layers[index]}{joint}silhouette {value:.2f}{known}"


def _flat_axes(result: PCAResult | Trajectories) -> list[dict[str, str]]:
    return [
        {
            "xaxis.title.text": f"component 1 ({explained[0]:.0%} of variance)",
            "yaxis.title.text": f"component 2 ({explained[1]:.0%})" if len(explained) > 1 else "",
        }
        for explained in result.explained
    ]


def _two(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return means[:, 0], means[:, 1] if means.shape[1] > 1 else np.zeros(len(means))


def _whole_seconds(seconds: np.ndarray) -> np.ndarray:
    """Return the steps nearest to whole seconds."""
    whole = np.arange(np.ceil(seconds[0]), np.floor(seconds[-1]) + 1)
    return np.unique([int(np.abs(seconds - one).argmin()) for one in whole]) if len(whole) else np.array([0])
