"""Draw the effects of several studies with their intervals, and the pooled effects below (a forest plot)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import plotly.graph_objects as go
from matplotlib.ticker import FuncFormatter, MaxNLocator
from plotly.subplots import make_subplots

from analysis.figures.canvas import SINGLE, canvas, is_narrow
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, POLES, SYMBOLS, errors, name_of, screen_errors, signed, styled
from analysis.resampling import COVERAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.comparison.result import StudyComparison

CAPTION = (
    f"Change at each study's chosen strength, with {COVERAGE} intervals over prompts, by a mixed model of all test "
    "clips. A hollow marker is the median effect, where there is no such fit. Diamonds are means over studies (random "
    "effects); their intervals reflect how much the studies differ."
)
_ROW, _LINE = 0.34, 0.15
"""Least height of a row, and height of a line of its label, in inches."""
_POOLED = "all studies"
_BESIDE = (0.12, -0.12)
"""Vertical offset of each pole's marks, so that their intervals do not overlap."""


@dataclass(frozen=True)
class _Mark:
    """An effect with its interval, to be drawn in row `at` (0 is the lowest). `fit` is false for a median effect."""

    at: int
    label: str
    value: float
    low: float
    high: float
    fit: bool
    pooled: bool = False


@dataclass(frozen=True)
class _Panel:
    """The effects on one concept: for each pole, its marks."""

    title: str
    labels: list[str]
    poles: dict[str, list[_Mark]]


def paper(comparison: StudyComparison) -> Figure:
    """Draw one panel per concept and measure, with a row for each study."""
    panels, narrow = list(_panels(comparison)), is_narrow()
    with styled():
        heights = [0.7 + _height(panel.labels, narrow) for panel in panels]
        height = 1.3 + sum(heights) + (0.5 * len(panels) if narrow else 0)
        figure = canvas((SINGLE if narrow else 6.6, height))
        drawn = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
        for axes, panel in zip(drawn[:, 0], panels, strict=True):
            for (pole, marks), (colour, marker), beside in zip(panel.poles.items(), POLES, _BESIDE, strict=True):
                for mark in marks:
                    ends = errors([mark.value], [mark.low], [mark.high])
                    axes.errorbar(
                        [mark.value], [mark.at + beside], xerr=ends, color=colour,
                        marker="D" if mark.pooled else marker, capsize=3, linestyle="none",
                        markerfacecolor=colour if mark.fit else "white", markersize=7 if mark.pooled else 5,
                    )  # fmt: skip
                axes.plot([], [], color=colour, marker=marker, linestyle="none", label=f"towards {pole}")
            axes.axvline(0, color=BLACK, linewidth=0.8)
            axes.set_yticks(range(len(panel.labels)), _wrapped(panel.labels, narrow))
            axes.set_ylim(-0.6, len(panel.labels) - 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
            axes.xaxis.set_major_formatter(FuncFormatter(signed))
            if narrow:
                # The legend is between the title and the axes, because there is no room at the side.
                axes.set_title(textwrap.fill(panel.title, 30), loc="left", fontsize=9, pad=32)
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2, borderaxespad=0.2)
            else:
                axes.set_title(panel.title, loc="left")
                axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        label = "change relative to the unsteered clip"
        drawn[-1, 0].set_xlabel(textwrap.fill(label, 20) if narrow else label)
        return captioned(figure, CAPTION)


@literally
def screen(comparison: StudyComparison) -> go.Figure:
    """Draw the interactive version of `paper` (plotly figure)."""
    panels = list(_panels(comparison))
    counts = [len(panel.labels) + 1 for panel in panels]
    figure: Any = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, row_heights=counts, vertical_spacing=0.1 / len(panels),
        subplot_titles=[panel.title for panel in panels],
    )  # fmt: skip
    for row, panel in enumerate(panels, start=1):
        for (pole, marks), (colour, marker), beside in zip(panel.poles.items(), POLES, _BESIDE, strict=True):
            hollow = {False: f"{SYMBOLS[marker]}-open", True: SYMBOLS[marker]}
            figure.add_scatter(
                x=[mark.value for mark in marks], y=[mark.at + beside for mark in marks],
                error_x=screen_errors(*zip(*((mark.value, mark.low, mark.high) for mark in marks), strict=True)),
                mode="markers", name=f"towards {pole}", text=[mark.label for mark in marks],
                hovertemplate="%{text}: %{x:+.0%}<extra>towards " + pole + "</extra>",
                marker={
                    "color": colour, "size": 9,
                    "symbol": ["diamond" if mark.pooled else hollow[mark.fit] for mark in marks],
                },
                row=row, col=1,
            )  # fmt: skip
        figure.add_vline(x=0, line_color=BLACK, line_width=1, row=row, col=1)
        figure.update_yaxes(tickvals=list(range(len(panel.labels))), ticktext=panel.labels, row=row, col=1)
    figure.update_xaxes(tickformat="+.0%")
    figure.update_xaxes(title="change relative to the unsteered clip", row=len(panels), col=1)
    figure.update_layout(height=160 + 34 * sum(counts))
    return screen_plain(figure, CAPTION)


def _wrapped(labels: list[str], narrow: bool) -> list[str]:
    """Return the labels in lines that leave room for the axes."""
    return [textwrap.fill(label, 15 if narrow else 32) for label in labels]


def _height(labels: list[str], narrow: bool) -> float:
    """Return the height of all rows in inches. All are as high as the one with the most lines."""
    lines = max(label.count("\n") + 1 for label in _wrapped(labels, narrow))
    return len(labels) * max(_ROW, _LINE * (lines + 0.5))


def _panels(comparison: StudyComparison) -> Iterator[_Panel]:
    chosen = comparison.table[comparison.table["chosen"]]
    # Two studies can give the same concept other poles.
    poles_of = chosen.groupby("study", sort=False)["pole"].agg(tuple)
    subjects = chosen.assign(poles=chosen["study"].map(poles_of))
    for key, mine in subjects.groupby(["concept", "measure", "poles"], sort=False):
        concept, measured, names = cast("tuple[str, str, tuple[str, str]]", key)
        both = comparison.pooled
        both = both[(both["concept"] == concept) & (both["measure"] == measured) & both["pole"].isin([*names])]
        studies = list(reversed(list(dict.fromkeys(mine["study"]))))
        first = 1 if len(both) else 0
        poles: dict[str, list[_Mark]] = {pole: [] for pole in names}
        for row in mine.to_dict("records"):
            fit = bool(np.isfinite(row.get("slope_low", np.nan)))
            ends = [row[name] for name in (("slope", "slope_low", "slope_high") if fit else ("effect", "low", "high"))]
            at = first + studies.index(row["study"])
            poles[row["pole"]].append(_Mark(at, row["study"], *ends, fit=fit))
        for row in both.to_dict("records"):
            poles[row["pole"]].append(_Mark(0, _POOLED, row["effect"], row["low"], row["high"], fit=True, pooled=True))
        labels = [*([_POOLED] if first else []), *studies]
        yield _Panel(f"{concept}, measured by {name_of(measured)}", labels, poles)
