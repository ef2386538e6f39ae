"""Draw a placement for print (matplotlib) and screen (plotly), with the other evidence below the alignment."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, GREY, SEVERAL, SYMBOLS, errors, screen_errors, styled
from analysis.resampling import COVERAGE

if TYPE_CHECKING:
    import pandas as pd

    from analysis.placement.result import Placement


def paper(placement: Placement) -> Figure:
    """Draw the alignment by block, one line per strategy, with a ring around the chosen place.

    Each kind of other evidence has its own panel.
    """
    others = placement.evidence.evidence
    with styled():
        figure = canvas((5.8, 3.0 + 1.15 * len(others)))
        heights = [2.2, *[1.0] * len(others)]
        panels = figure.subplots(1 + len(others), 1, sharex=True, squeeze=False, height_ratios=heights).ravel()
        axes = panels[0]
        for (strategy, mine), (colour, marker) in zip(_strategies(placement), SEVERAL, strict=False):
            if mine.layer.isna().all():
                axes.axhline(mine.alignment.iloc[0], color=colour, linestyle="--", label=strategy)
                continue
            axes.errorbar(
                mine.layer.astype(int), mine.alignment, yerr=errors(mine.alignment, mine.low, mine.high),
                color=colour, marker=marker, markersize=4.5, capsize=2, elinewidth=1, linewidth=1.3, label=strategy,
            )  # fmt: skip
        if placement.random:
            most = max(map(abs, placement.random))
            axes.axhspan(-most, most, color=GREY, alpha=0.25, linewidth=0, label="random directions")
        if placement.layer is not None:
            axes.plot(
                [placement.layer], [placement.chosen.alignment], marker="o", markersize=13, markerfacecolor="none",
                markeredgecolor=BLACK, markeredgewidth=1.5, linestyle="none", label=_mark(placement),
            )  # fmt: skip
        axes.axhline(0, color=BLACK, linewidth=0.7)
        axes.set_ylabel("cosine with the\neffect of the words")
        axes.set_title(f"{placement.concept}: {' / '.join(placement.poles)}", fontsize=10, loc="left")
        figure.legend(loc="outside upper center", ncols=4)
        for panel, one in zip(panels[1:], others, strict=True):
            panel.errorbar(
                one.layers, one.values, yerr=errors(one.values, one.low, one.high), color=BLACK, marker=".",
                capsize=2, elinewidth=1, linewidth=1.1,
            )  # fmt: skip
            panel.axhline(one.chance, color=BLACK, linewidth=0.7, linestyle=":" if one.chance else "-")
            panel.set_title(one.name, fontsize=8.5, loc="left")
            panel.set_ylabel(textwrap.fill(one.unit or one.name, 14), fontsize=7)
            panel.margins(y=0.18)
        panels[-1].set_xlabel("block")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return captioned(figure, _caption(placement))


@literally
def screen(placement: Placement) -> go.Figure:
    """Draw the interactive version (plotly)."""
    others = placement.evidence.evidence
    # The legend occupies the space of the first panel's title.
    titles = ["", *(one.name for one in others)]
    rows = len(titles)
    weights = [2.2, *[1.0] * len(others)]
    figure = make_subplots(
        rows=rows, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.22 / rows,
        row_heights=[weight / sum(weights) for weight in weights],
    )  # fmt: skip
    for (strategy, mine), (colour, marker) in zip(_strategies(placement), SEVERAL, strict=False):
        if mine.layer.isna().all():
            ends = [int(placement.evidence.evidence[0].layers[end]) for end in (0, -1)]
            figure.add_scatter(x=ends, y=[mine.alignment.iloc[0]] * 2, mode="lines", name=strategy, row=1, col=1,
                               line={"color": colour, "dash": "dash"})  # fmt: skip
            continue
        figure.add_scatter(
            x=mine.layer.astype(int), y=mine.alignment, mode="lines+markers", line_color=colour, name=strategy,
            marker={"symbol": SYMBOLS[marker], "size": 8}, customdata=np.stack([mine.gain, mine.strength], 1),
            error_y=screen_errors(mine.alignment, mine.low, mine.high), row=1, col=1,
            hovertemplate="block %{x}: cosine %{y:.3f}<br>gain %{customdata[0]:.3g}; shifts as far as the word at "
            "strength %{customdata[1]:.3g}<extra>" + strategy + "</extra>",
        )  # fmt: skip
    if placement.random:
        most = max(map(abs, placement.random))
        x0, x1 = (float(value) for value in np.quantile(others[0].layers, (0, 1)))
        figure.add_scatter(
            x=[x0, x1, x1, x0], y=[-most, -most, most, most], fill="toself", fillcolor="rgba(138,138,138,0.25)",
            mode="none", name="random directions", hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
    if placement.layer is not None:
        figure.add_scatter(
            x=[placement.layer], y=[placement.chosen.alignment], mode="markers", name=_mark(placement), row=1, col=1,
            marker={"symbol": "circle-open", "size": 18, "color": BLACK, "line": {"width": 2}},
        )  # fmt: skip
    for row, one in enumerate(others, start=2):
        figure.add_scatter(
            x=list(one.layers), y=one.values, mode="lines+markers", line_color=BLACK, name=one.name, showlegend=False,
            error_y=screen_errors(one.values, one.low, one.high), row=row, col=1,
            hovertemplate=f"block %{{x}}: %{{y:.4g}} {one.unit}<extra>{one.name}</extra>",
        )  # fmt: skip
        if one.chance:
            figure.add_hline(y=one.chance, line_dash="dot", line_width=1, line_color=BLACK, row=row, col=1)  # pyright: ignore[reportArgumentType]
        figure.update_yaxes(title_text=one.unit, row=row, col=1)
    figure.update_yaxes(title_text="cosine with the effect of the words", row=1, col=1)
    figure.update_xaxes(title_text="block", row=rows, col=1)
    figure.update_layout(height=360 + 140 * len(others))
    return screen_plain(figure, _caption(placement))


def _strategies(placement: Placement) -> list[tuple[str, pd.DataFrame]]:
    table = placement.candidates
    return [(str(name), table[table.strategy == name]) for name in table.strategy.unique()]


def _mark(placement: Placement) -> str:
    return "rejected place" if placement.rejected else "placed here"


def _caption(placement: Placement) -> str:
    random = "; grey: range of |cosine| for random directions there" if placement.random else ""
    ring = "; the ring marks the chosen place" if placement.layer is not None else f"; {placement.name} is chosen"
    return (
        f"Cosine (Fisher metric) between the effects of the direction and of the words on the next codes, over "
        f"{placement.n_prompts} neutral prompts, with {COVERAGE} intervals over prompts{ring}{random}. "
        f"Below: other evidence by block (dotted: chance).{f' {placement.rejected}' if placement.rejected else ''}"
    )
