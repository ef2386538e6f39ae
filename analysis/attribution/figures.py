"""Attribution figures for print (matplotlib) and screen (plotly): cells by site, and components by codebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, heat, screen_heat, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import styled

if TYPE_CHECKING:
    from analysis.attribution import AttributionResult
    from analysis.attribution.logits import DirectResult

SHOWN = 36
"""The maximum number of components shown in a print figure."""


def paper(result: AttributionResult) -> Figure:
    """Plot one panel per site, with layers as rows and times, heads or tokens as columns."""
    sites = list(result.sites)
    columns = min(3, len(sites))
    rows = -(-len(sites) // columns)
    with styled():
        figure = canvas((3.6 * columns, 2.6 * rows + 0.7))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for site, axes in zip(sites, panels, strict=False):
            values, x, label = cells(result, site)
            layers = result.sites[site].layers
            continuous = label.startswith("time")
            image = heat(
                axes, values, x=None if continuous else x, y=["text"] if layers[0] < 0 else layers,
                extent=(0, len(x) / result.frame_rate) if continuous else None, numbers=not continuous,
            )  # fmt: skip
            axes.set_title(f"{site}{_agrees(result, site)}", fontsize=9)
            axes.set_xlabel(label)
            axes.set_ylabel("block")
            figure.colorbar(image, ax=axes, shrink=0.85, label="effect [nats]")
        for axes in panels[len(sites) :]:
            axes.set_visible(False)
        return captioned(figure, caption(result))


@literally
def screen(result: AttributionResult) -> go.Figure:
    """Plot a single panel with a menu that selects the site."""
    figure = go.Figure()
    buttons = []
    for place, site in enumerate(result.sites):
        values, x, label = cells(result, site)
        layers = result.sites[site].layers
        figure.add_trace(
            screen_heat(
                values,
                x,
                ["text" if layer < 0 else str(layer) for layer in layers],
                "effect [nats]",
                visible=place == 0,
                hovertemplate="block %{y}, " + label + " %{x}: %{z:.4g} nats<extra></extra>",
            )  # fmt: skip
        )
        shown = [other == place for other in range(len(result.sites))]
        title = f"{site}{_agrees(result, site)}"
        layout = {"title.text": title, "xaxis.title.text": label}
        buttons.append({"method": "update", "label": site, "args": [{"visible": shown}, layout]})
    first = buttons[0]["args"][1]
    figure.update_layout(
        title=first["title.text"], xaxis_title=first["xaxis.title.text"], yaxis_title="block",
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15}],
    )  # fmt: skip
    return screen_plain(figure, caption(result))


def cells(result: AttributionResult, site: str) -> tuple[np.ndarray, list[Any], str]:
    """Return the values "layer column" to plot for a site, the column positions, and the axis label."""
    scores = result.sites[site]
    if scores.heads and scores.cell_unit == "step":
        values = result.of(site, ("layer", "head"))
        return values, list(range(values.shape[1])), "head"
    values = result.of(site, ("layer", "place"))
    if scores.cell_unit == "step":
        return values, [round(step / result.frame_rate, 4) for step in range(values.shape[1])], "time [s]"
    words = {row: list(tokens) for row, tokens in enumerate(result.tokens)}
    same = len({tuple(tokens) for tokens in words.values()}) == 1
    label = "token" if same else "token (position in the text)"
    return values, words[0] if same else list(range(values.shape[1])), label


def caption(result: AttributionResult) -> str:
    gap = result.gap
    runs = ("corrupted", "clean") if result.towards == "denoising" else ("clean", "corrupted")
    how = "gradient x difference" if result.method == "gradient" else f"integrated gradients, {result.steps} steps"
    first, end = (0.0, 0.0) if result.window is None else result.window.seconds
    metric = "metric" if result.window is None else f"log-likelihood of the codes at {first:g}-{end:g} s"
    return (
        f"Estimated change in the {metric} if one cell of the {runs[0]} run took the {runs[1]} run's activation "
        f"({how}), mean over {len(result.clean)} pairs. The full gap is {gap.value:+.3g} nats [{gap.low:+.3g}, "
        f"{gap.high:+.3g}]. rho is the rank correlation with exact patching of randomly sampled cells."
    )


def direct_paper(result: DirectResult) -> Figure:
    """Plot the largest components by codebook, with numbers in the cells."""
    labels, values = _largest(result)
    with styled():
        figure = canvas((4.6, 0.17 * len(values) + 1.9))
        axes = figure.add_subplot()
        image = heat(axes, values[::-1], x=range(values.shape[1]), numbers=True)
        axes.set_yticks(range(len(values)), labels[::-1], fontsize=6.5)
        axes.set_xlabel("codebook")
        axes.set_ylabel("component")
        figure.colorbar(image, ax=axes, shrink=0.7, label="direct effect [logits]")
        return captioned(figure, direct_caption(result))


@literally
def direct_screen(result: DirectResult) -> go.Figure:
    """Plot all components by codebook."""
    values = result.values.mean(1)
    books = [str(book) for book in range(values.shape[1])]
    hover = "%{y}, codebook %{x}: %{z:.4g} logits<extra></extra>"
    figure = go.Figure(screen_heat(values[::-1], books, result.labels[::-1], "logits", hovertemplate=hover))
    figure.update_layout(xaxis_title="codebook", yaxis_title="component", height=220 + 14 * len(values))
    return screen_plain(figure, direct_caption(result), width=80)


def direct_caption(result: DirectResult) -> str:
    along = {
        "codes": "the given codes' logits minus the mean over the vocabulary",
        "difference": "the difference between clean and corrupted logits",
        "direction": "the logits that the direction writes",
    }[result.along]
    first, end = result.window.seconds
    shown = min(SHOWN, len(result.labels))
    return (
        f"What each component writes directly to the logits, along {along} (mean over {len(result.prompts)} rows and "
        f"the frames at {first:g}-{end:g} s). All {len(result.labels)} components add up to "
        f"{result.totals.mean():+.3g} logits; the paper figure shows the {shown} largest."
    )


def _largest(result: DirectResult) -> tuple[list[str], np.ndarray]:
    """Return the components with the largest contributions, at most `SHOWN` of them, in the model's order."""
    values = result.values.mean(1)
    kept = np.sort(np.argsort(-np.abs(values).max(1))[:SHOWN])
    return [result.labels[place] for place in kept], values[kept]


def _agrees(result: AttributionResult, site: str) -> str:
    return "" if result.agreement is None else f" (rho {result.agreement.rho[site]:.2f})"
