"""Draw how concepts relate on one model: what steering along each changes, and the cosines of their directions."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.figures.canvas import canvas, is_narrow
from analysis.figures.captions import captioned, screen_heat, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, GREY, POLES, SEVERAL, errors, name_of, signed, styled
from analysis.resampling import COVERAGE
from analysis.wording import change

if TYPE_CHECKING:
    from analysis.similarity import Comparison

CAPTION = (
    "Median change in each concept's measure on test prompts, relative to the unsteered clip with the same seed. "
    f"Bars: {COVERAGE} interval over prompts. Filled markers are the effect on the steered concept itself. A direction "
    "that changes only its own concept leaves the hollow markers at 0."
)
COSINES = (
    "Cosine similarity between the concepts' directions at each block. Of random directions, 5% have a cosine outside "
    "the grey band. A value far from 0 may come from prompts that name both concepts."
)
_MOST_PAIRS = len(SEVERAL)
"""The largest number of lines that differ in colour and marker. Of more pairs, the others are drawn in grey."""


def paper(table: pd.DataFrame, caption: bool = True) -> Figure:
    """Draw a panel for each measure, with a row for each pole. Use `caption=False` for a page with its own caption."""
    steered = _steered(table)
    measured = list(dict.fromkeys(table[["measured_concept", "measure"]].itertuples(index=False, name=None)))
    columns = 1 if is_narrow() else min(2, len(measured))
    lines = -(-len(measured) // columns)
    cells = {(row["concept"], row["pole"], row["measured_concept"]): row for row in table.to_dict("records")}
    with styled():
        figure = canvas((1.6 + 2.8 * columns, (0.9 + 0.34 * len(steered)) * lines + 0.5))
        panels = np.atleast_1d(figure.subplots(lines, columns, sharey=True, squeeze=False)).ravel()
        for axes, (concept, name) in zip(panels, measured, strict=False):
            for place, (own, pole, strength) in enumerate(steered):
                _interval(axes, place, cells[own, pole, concept], POLES[strength < 0], filled=own == concept)
            axes.axvline(0, color=BLACK, linewidth=0.8)
            axes.set_yticks(range(len(steered)), [_named(*one) for one in steered])
            axes.set_ylim(len(steered) - 0.5, -0.5)
            axes.grid(False, axis="y")
            axes.xaxis.set_major_formatter(FuncFormatter(signed))
            axes.locator_params(axis="x", nbins=5)
            axes.set_title(f"effect on {concept}", loc="left", fontsize=9)
            change = f"change in {name_of(name)}"
            axes.set_xlabel(change.replace(" (", "\n(") if is_narrow() else change, fontsize=8)
        for axes in panels[len(measured) :]:
            axes.set_visible(False)
        return captioned(figure, CAPTION) if caption else figure


def cosines(found: Comparison) -> Figure:
    """Draw a line over blocks for each pair of concepts, with the band of random directions."""
    pairs = list(combinations(range(len(found.names)), 2))
    # The pairs that are most alike are told apart.
    pairs.sort(key=lambda pair: -float(np.abs(found.cosines[:, pair[0], pair[1]]).max()))
    with styled():
        figure = canvas((5.4, 2.9))
        axes = figure.add_subplot()
        axes.axhspan(-found.chance, found.chance, color=GREY, alpha=0.25, linewidth=0)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        for place, (one, other) in enumerate(pairs):
            apart = place < _MOST_PAIRS
            colour, marker = SEVERAL[place] if apart else (GREY, "")
            axes.plot(
                found.layers, found.cosines[:, one, other], color=colour, marker=marker, markersize=4, linewidth=1.2,
                label=f"{found.names[one]} and {found.names[other]}" if apart else "other pairs",
            )  # fmt: skip
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("block")
        axes.set_ylabel("cosine similarity")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=1 if is_narrow() else 3)
    return figure


@literally
def screen(table: pd.DataFrame) -> go.Figure:
    """Draw a heat map of the same effects (plotly figure)."""
    values, texts, rows, columns = _grid(table)
    columns = [name.replace("\n", "<br>") for name in columns]
    cells = screen_heat(values, columns, rows, "change", text=texts, texttemplate="%{text}")
    figure = go.Figure(cells)
    figure.update_layout(xaxis_title="measured concept", yaxis_title="steered towards")
    return screen_plain(figure, CAPTION.partition(" Filled")[0].replace("Bars", "Brackets"))


def _interval(axes: Axes, place: int, cell: dict[Any, Any], look: tuple[str, str], *, filled: bool) -> None:
    if not np.isfinite(cell["effect"]):
        return
    colour, marker = look
    axes.errorbar(
        cell["effect"], place, xerr=errors(cell["effect"], cell["low"], cell["high"]).reshape(2, 1), color=colour,
        marker=marker, markersize=6, markerfacecolor=colour if filled else "none", capsize=3, elinewidth=1.4,
        linestyle="none",
    )  # fmt: skip


def _steered(table: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return concept, pole and strength of every row of a figure, the negative pole of each concept first."""
    found = list(dict.fromkeys(table[["concept", "pole", "strength"]].itertuples(index=False, name=None)))
    concepts = list(dict.fromkeys(concept for concept, _, _ in found))
    return sorted(found, key=lambda one: (concepts.index(one[0]), one[2]))


def _named(concept: str, pole: str, strength: float) -> str:
    return f"{pole} ({concept} {strength:+g})".replace("-", "−")


def _grid(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Return the effects (axes "steered measured"), the text of each cell, and the names of rows and columns."""
    steered = _steered(table)
    others = list(dict.fromkeys(table[["measured_concept", "measure"]].itertuples(index=False, name=None)))
    cells = {(row["concept"], row["pole"], row["measured_concept"]): row for row in table.to_dict("records")}
    values = np.full((len(steered), len(others)), np.nan)
    texts: Any = np.full(values.shape, "", dtype=object)
    for i, (concept, pole, _) in enumerate(steered):
        for j, (other, _) in enumerate(others):
            cell = cells[concept, pole, other]
            values[i, j] = cell["effect"]
            if np.isfinite(cell["effect"]):
                ends = [change(cell[side]) for side in ("low", "high") if np.isfinite(cell[side])]
                texts[i, j] = f"{change(cell['effect'])}\n[{', '.join(ends) or 'no interval'}]"
    # Names are broken into short lines, so that neighbouring names do not overlap.
    words = [f"{name}, measured by\n{name_of(measured)}".replace(" (", "\n(") for name, measured in others]
    return values, texts, [_named(*one) for one in steered], words
