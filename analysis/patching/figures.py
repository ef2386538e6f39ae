"""Draw patching grids for print (matplotlib) and screen (plotly), with raw effects in cells and the gap in the title.

Dots mark cells that differ from 0 (p at most 5%, adjusted for the whole grid), so that readers need not rely on colour.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas, wants_caption
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, DIVERGING, GREY, axis_of, on_white, styled
from analysis.statistics import LEVEL
from audiolens.model.sites import named

if TYPE_CHECKING:
    from analysis.patching.result import PatchingResult

_AXES = {
    "seconds": "patched window [s]",
    "head": "head",
    "component": "what is patched",
    "token": "text token (+0: the first that differs)",
}
_TEXT = {"cross_attn.k", "cross_attn.v", "text_states"}
"""Sites that depend on the text alone."""
_WIDEST = 24
"""The largest number of columns at which cells show their numbers."""


def paper(result: PatchingResult, codebook: int | str = "total") -> Figure:
    """Draw the grid of one codebook (or of their total) as a heat map, with the grid measured on sound to its right."""
    grids = [(result, codebook)] + ([(result.sound, "total")] if result.sound is not None else [])
    widths = [1.0 + 0.52 * max(len(grid.columns), 3) for grid, _ in grids]
    height = 2.0 + 0.3 * max(len(grid.layers) for grid, _ in grids)
    with styled():
        figure = canvas((sum(widths) + 1.2 * len(grids), height))
        panels = figure.subplots(1, len(grids), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
        for axes, (grid, name) in zip(panels, grids, strict=True):
            _panel(figure, axes, grid, name)
        if not wants_caption():
            return figure
        width = int(figure.get_figwidth() * 17)
        lines = [part for line in caption(result).splitlines() for part in wrap(line, width)]
        figure.set_figheight(height + 0.14 * (len(lines) - 2))
        figure.supxlabel("\n".join(lines), fontsize=7.5, color="#404040")
    return figure


def caption(result: PatchingResult) -> str:
    """Return two lines that explain what the grid shows, and a third line about the measured sound."""
    giver, taker = ("clean", "corrupted") if result.mode == "denoising" else ("corrupted", "clean")
    patched = f"{giver} values patched into the {taker} run"
    few = f" ({result.too_few}: exploratory)" if result.too_few else ""
    lines = [
        f"{patched.capitalize()}; mean change over {len(result.clean)} pairs of {result.means.n_clusters} prompts"
        f"{few}.",
        f"Dots: p ≤ {LEVEL:g}, adjusted for the whole grid. A patch transfers every difference between the runs.",
    ]
    if result.by_ear:
        lines.append(f"{_measured(result)} {_carried(result)}")
    elif result.sound is None:
        lines.append("Not measured on sound, because no patched clips were generated (sound=).")
    else:
        measured, carried = _measured(result.sound), _carried(result.sound)
        lines.append(f"The grid on the right was measured on generated sound. {measured} {carried}")
    return "\n".join(filter(None, lines))


def _measured(result: PatchingResult) -> str:
    """Return a sentence that states how many pairs were generated, and how many could be measured in both runs."""
    pairs = len(result.clean)
    both = int(np.isfinite(result.clean - result.corrupted).all(1).sum())
    return (
        f"{pairs} pairs"
        + (", in all of which" if both == pairs else f", in {both} of which")
        + " both runs could be measured."
    )


def _carried(result: PatchingResult) -> str:
    """Return what a patch transfers besides the text when both runs generate their own codes."""
    sites = {named(site).short for site in result.sites}
    if sites <= _TEXT:
        return ""
    if all(site.startswith("cross_attn") for site in sites):
        return "What the donor run reads from its text also depends on its own music."
    return "The patch also transfers the donor run's own music."


def title(result: PatchingResult, codebook: int | str) -> str:
    gap = result.gap(codebook)
    a, b = result.scored
    which = "all codebooks" if str(codebook) == "total" and len(result.codebooks) > 1 else f"codebook {codebook}"
    which = "" if len(result.codebooks) == 1 else f", {which}"
    unclear = "" if gap.clear else " (covers 0)"
    return f"{result.description}{which}\ngap {gap!r}{unclear}, {a:g}-{b:g} s"


def unit_of(result: PatchingResult) -> str:
    """Return the label of the colour bar."""
    if len(result.codebooks) == 1:
        return f"change in {axis_of(result.metric)}"
    return f"change in log-likelihood [{result.unit}]"


def _panel(figure: Figure, axes: Axes, result: PatchingResult, codebook: int | str) -> None:
    values = result.effect(codebook)
    most = float(np.nan_to_num(np.abs(values)).max()) or 1.0
    image = axes.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most, origin="lower", aspect="auto")
    significant = result.means.p_adjusted[result._index(codebook)] <= LEVEL
    narrow = len(result.columns) <= _WIDEST
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            axes.text(column, row, "–", ha="center", va="center", fontsize=6.5, color=GREY)
            continue
        shade = "white" if abs(value) > 0.6 * most else "black"
        if narrow:
            axes.text(column, row, _short(value, most), ha="center", va="center", fontsize=6.5, color=shade)
        if significant[row, column]:
            low = 0.32 if narrow else 0.0
            axes.plot(column, row - low, marker="o", markersize=2.4, color=shade, linestyle="none")
    crowded = max(map(len, result.columns)) > 4
    axes.set_xticks(
        range(len(result.columns)),
        list(result.columns),
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
    )
    axes.set_yticks(range(len(result.layers)), [str("–" if layer is None else layer) for layer in result.layers])
    axes.set_xlabel(_AXES[result.by])
    axes.set_ylabel("block")
    axes.grid(False)
    axes.set_title(title(result, codebook), fontsize=9, loc="left")
    figure.colorbar(image, ax=axes, shrink=0.9, label="\n".join(wrap(unit_of(result), int(9 * figure.get_figheight()))))


@literally
def screen(result: PatchingResult, codebook: int | str = "total") -> go.Figure:
    """Draw the grid as a heat map with a slider over codebooks. Hovering over a cell shows its interval and p."""
    names = list(result.names)
    first = result._index(codebook)
    figure = go.Figure()
    rows = ["–" if layer is None else str(layer) for layer in result.layers]
    steps: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        found, values = result.means, result.means.value[index]
        most = float(np.nan_to_num(np.abs(values)).max()) or 1.0
        figure.add_heatmap(
            z=values,
            x=list(result.columns),
            y=rows,
            zmin=-most,
            zmax=most,
            colorscale=DIVERGING,
            colorbar_title=result.unit,
            text=np.where(found.p_adjusted[index] <= LEVEL, "•", ""),
            texttemplate="%{text}",
            customdata=np.stack([found.low[index], found.high[index], found.p_adjusted[index]], axis=-1),
            hovertemplate=(
                "block %{y}, %{x}: %{z:+.3g} [%{customdata[0]:+.3g}, %{customdata[1]:+.3g}], "
                "adjusted p = %{customdata[2]:.2g}<extra></extra>"
            ),
            visible=index == first,
        )
        shown = [other == index for other in range(len(names))]
        small = [f"<sup>{line}</sup>" for line in caption(result).splitlines()]
        heading = "<br>".join([*title(result, name).splitlines(), *small])
        steps.append({"method": "update", "label": name, "args": [{"visible": shown}, {"title.text": heading}]})
    on_white(figure).update_layout(
        title=steps[first]["args"][1]["title.text"],
        xaxis={"title": _AXES[result.by], "type": "category"},
        yaxis={"title": "block", "type": "category"},
        font_color=BLACK,
        margin={"l": 70, "r": 20, "t": 130, "b": 60},
    )
    if len(names) > 1:
        slider = {"steps": steps, "active": first, "currentvalue": {"prefix": "codebook "}, "pad": {"t": 45}}
        figure.update_layout(sliders=[slider])
    return figure


def _short(value: float, most: float) -> str:
    """Format a value with as many decimals as the largest value of the grid needs."""
    decimals = 0 if most >= 100 else 1 if most >= 1 else 2 if most >= 0.1 else 3
    text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")
