"""Draw the area of every method, for print (matplotlib) and screen (plotly), with one panel per concept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, BLUE, GREY, ORANGE, SYMBOLS, name_of, styled
from analysis.methods.table import REFERENCE
from analysis.resampling import COVERAGE
from analysis.statistics import LEVEL

if TYPE_CHECKING:
    from analysis.methods.result import MethodsResult

KINDS = {"method": (BLUE, "o"), "prompting": (ORANGE, "s")}
CONTROL = (GREY, "x")
"""Colour and marker of methods, of prompting and of controls."""
COLUMNS = 4


def paper(result: MethodsResult) -> Figure:
    """Draw one panel per concept, with methods as rows. The line is the area of the difference in means."""
    concepts = list(result.concepts)
    names = methods_of(result)
    columns = min(COLUMNS, len(concepts))
    rows = -(-len(concepts) // columns)
    with styled():
        figure = canvas((2.4 * columns + 1.6, (0.19 * len(names) + 0.7) * rows + 0.9))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for concept, axes in zip(concepts, panels, strict=False):
            mine = rows_of(result, concept, names)
            for place, row in mine.iterrows():
                colour, marker = KINDS.get(row["kind"], CONTROL)
                axes.plot([row["area_low"], row["area_high"]], [place, place], color=colour, linewidth=1.2)
                axes.plot(row["area"], place, color=colour, marker=marker, markersize=4, linestyle="none")
                if row["kind"] != "method" or not row["p_holm"] <= LEVEL:
                    continue
                end = np.fmax(row["area"], row["area_high"])
                axes.annotate("*", (end, place), xytext=(3, -4), textcoords="offset points")
            axes.axvline(0.0, color=BLACK, linewidth=0.6)
            axes.axvline(reference(mine), color=BLUE, linewidth=0.8, linestyle="--")
            axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            axes.set_title(f"{concept}\n({name_of(result.measured[concept])})", fontsize=9)
            axes.set_xlabel("area [SD]")
        panels[0].invert_yaxis()
        for axes in panels[len(concepts) :]:
            axes.set_visible(False)
        return captioned(figure, caption(result))


@literally
def screen(result: MethodsResult) -> go.Figure:
    """Draw the same panels for the screen. Hovering over a point shows what else is known about the method."""
    concepts, names = list(result.concepts), methods_of(result)
    columns = min(COLUMNS, len(concepts))
    rows = -(-len(concepts) // columns)
    figure = make_subplots(rows, columns, subplot_titles=concepts, shared_yaxes=True, vertical_spacing=0.12)
    for number, concept in enumerate(concepts):
        mine = rows_of(result, concept, names)
        at: dict[str, Any] = {"row": number // columns + 1, "col": number % columns + 1}
        for kind in dict.fromkeys(mine["kind"]):
            some = mine[mine["kind"] == kind]
            colour, marker = KINDS.get(str(kind), CONTROL)
            figure.add_scatter(
                x=some["area"], y=some["method"], mode="markers", name=str(kind), showlegend=False,
                marker={"color": colour, "symbol": SYMBOLS[marker], "size": 7},
                error_x={
                    "type": "data", "symmetric": False, "array": some["area_high"] - some["area"],
                    "arrayminus": some["area"] - some["area_low"], "color": colour, "thickness": 1.2,
                },
                customdata=some[["difference", "p_holm", "selectivity", "failed"]],
                hovertemplate="%{y}: area %{x:.2f} (%{customdata[0]:+.2f} from the difference in means, Holm p "
                "%{customdata[1]:.2g})<br>selectivity %{customdata[2]:.2f}, failed %{customdata[3]:.0%}<extra></extra>",
                **at,
            )  # fmt: skip
        figure.add_vline(x=reference(mine), line_color=BLUE, line_width=1, line_dash="dash", **at)
        figure.update_xaxes(title_text="area [SD]", **at)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    figure.update_layout(height=150 + rows * (90 + 22 * len(names)))
    return screen_plain(figure, caption(result))


def methods_of(result: MethodsResult) -> list[str]:
    """Return all rows of a panel, in the order of the table."""
    return list(dict.fromkeys(result.table["method"]))


def rows_of(result: MethodsResult, concept: str, names: list[str]) -> pd.DataFrame:
    """Return the rows of a concept, numbered by the place of the method in the panel."""
    mine = result.table[result.table["concept"] == concept]
    return mine.set_axis([names.index(name) for name in mine["method"]], axis=0)


def reference(mine: pd.DataFrame) -> float:
    return float(np.asarray(mine.loc[mine["method"] == REFERENCE, "area"])[0])


def caption(result: MethodsResult) -> str:
    """Return a description of the panels."""
    return (
        f"Mean effect on each concept's measure over drifts up to {1 + result.limit:g} times that between two seeds of "
        f"a prompt, in standard deviations of unsteered clips; both signs, {result.n_prompts} test prompts of "
        f"{result.model}, {COVERAGE} intervals over prompts. Circles are methods, squares prompts that name the pole, "
        "crosses random and shuffled directions of the same norm. The dashed line is the difference in means; * marks "
        "methods that differ from it at a Holm-corrected p of .05."
    )
