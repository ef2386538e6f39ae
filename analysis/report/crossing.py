"""Draw cross-effects, which show how steering along each concept's direction changes every concept's measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, heat, screen_heat, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import name_of, signed, styled
from analysis.resampling import COVERAGE
from analysis.wording import change

CAPTION = (
    "Median change in each concept's measure on test prompts, relative to the unsteered clip with the same seed. "
    f"Brackets: {COVERAGE} interval over prompts. A direction that changes only its own concept leaves the other "
    "columns at 0."
)


def paper(table: pd.DataFrame, caption: bool = True) -> Figure:
    """Draw a heat map with numbers in its cells. Use `caption=False` for a page that adds its own caption."""
    values, texts, rows, columns = _grid(table)
    with styled():
        figure = canvas((2.4 + 1.9 * len(columns), 1.8 + 0.55 * len(rows)))
        axes = figure.add_subplot()
        most = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
        image = heat(axes, values, x=columns, y=rows, limit=most)
        for (row, column), text in np.ndenumerate(texts):
            shade = "white" if abs(values[row, column]) > 0.6 * most else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=shade)
        axes.set_xlabel("measured concept")
        axes.set_ylabel("steered towards")
        bar = figure.colorbar(image, ax=axes, label="change")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(signed))
        return captioned(figure, CAPTION) if caption else figure


@literally
def screen(table: pd.DataFrame) -> go.Figure:
    """Draw the interactive version of `paper` (plotly figure)."""
    values, texts, rows, columns = _grid(table)
    columns = [name.replace("\n", "<br>") for name in columns]
    cells = screen_heat(values, columns, rows, "change", text=texts, texttemplate="%{text}")
    figure = go.Figure(cells)
    figure.update_layout(xaxis_title="measured concept", yaxis_title="steered towards")
    return screen_plain(figure, CAPTION)


def _grid(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Return the effects (axes "steered measured"), the text of each cell, and the names of rows and columns."""
    steered = list(dict.fromkeys(table[["concept", "pole", "strength"]].itertuples(index=False, name=None)))
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
    names = [f"{pole} ({concept} {strength:+g})".replace("-", "−") for concept, pole, strength in steered]
    # Names are broken into short lines, so that neighbouring names do not overlap.
    words = [f"{name}, measured by\n{name_of(measured)}".replace(" (", "\n(") for name, measured in others]
    return values, texts, names, words
