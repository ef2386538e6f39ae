"""Matplotlib figures of sweeps, in the style of `figures.plots`. `screen.py` has the plotly versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, ScalarFormatter

from analysis.figures.canvas import canvas, is_narrow
from analysis.figures.style import BLACK, DIVERGING, GREY, POLES, SEVERAL, change_of, errors, name_of, signed, styled
from analysis.statistics import MOST_FAILED
from analysis.sweep.factorial import spoken
from analysis.sweep.response import is_ratio, unit_of_change
from audiolens.directions.strategies import described

if TYPE_CHECKING:
    from analysis.sweep.tradeoff import Front, LayerMap, Limits, Strategies

LOSSES = {"failed": "share of clips that failed", "drift": "drift [nats per code]"}


def in_units(figure: Figure, measured: str) -> Figure:
    """Relabel a figure's effect axis from percentages to differences if the measure has no true zero."""
    if not is_ratio(measured):
        with styled():
            axes = figure.axes[0]
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.set_ylabel(labelled(measured))
    return figure


def labelled(measured: str) -> str:
    """Return the label of an effect axis, with the unit if the effect is a difference."""
    unit = "" if is_ratio(measured) else f" [{unit_of_change(measured)}]"
    return change_of(measured) + unit


def layer_map(result: LayerMap) -> Figure:
    """Draw the effect by layer and strength.

    A cross marks cells in which more than a tenth of the clips failed. Grey cells have no value.
    """
    rows, columns = result.effect.shape
    with styled():
        figure = canvas((2.4 + 0.62 * columns, 2.1 + 0.32 * rows))
        axes = figure.add_subplot()
        most = float(np.nanmax(np.abs(result.effect), initial=0)) or 1.0
        axes.set_facecolor("#D9D9D9")
        image = axes.imshow(result.effect, vmin=-most, vmax=most, cmap=DIVERGING, origin="lower", aspect="auto")
        axes.set_xticks(range(columns), [f"{strength:+g}" if strength else "0" for strength in result.strengths])
        axes.set_yticks(range(rows), [str(layer) for layer in result.layers])
        axes.set_xlabel("strength [differences of means]")
        axes.set_ylabel(described(result.strategy).axis)
        axes.grid(False)
        for (row, column), value in np.ndenumerate(result.effect):
            lost = result.failed[row, column] > MOST_FAILED
            shade = "white" if abs(value) > 0.65 * most else "black"
            if lost:
                axes.plot(column, row, marker="x", color=shade, markersize=11, markeredgewidth=0.9, alpha=0.7)
            if max(rows, columns) <= 16 and np.isfinite(value):
                text = signed(value) if is_ratio(result.measured) else f"{value:+.2g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)
        bar = figure.colorbar(image, ax=axes)
        bar.set_label(labelled(result.measured), fontsize=7.5)
        _shares(bar.ax, result.measured, "y")
        axes.set_title(f"{result.concept}, {result.strategy}")
        figure.supxlabel("× more than a tenth of the clips failed", fontsize=7.5)
    return figure


def cross_effects(table: pd.DataFrame) -> Figure:
    """Draw the change in every measure by strength.

    Percentages share a panel, and differences have one panel per unit.
    """
    units = list(dict.fromkeys(table["unit"]))
    counts = [table.loc[table["unit"] == unit, "measure"].nunique() for unit in units]
    strengths = sorted(table["strength"].unique())
    largest = max(abs(strength) for strength in strengths)
    with styled():
        figure = canvas((6.6, 0.5 * sum(counts) + 0.75 * len(units) + 0.5))
        panels = np.atleast_1d(figure.subplots(len(units), 1, gridspec_kw={"height_ratios": counts}))
        for axes, unit in zip(panels, units, strict=True):
            mine = table[table["unit"] == unit]
            names = list(dict.fromkeys(mine["measure"]))
            for strength, offset in zip(strengths, np.linspace(0.3, -0.3, len(strengths) + 2)[1:-1], strict=True):
                rows = mine[mine["strength"] == strength].set_index("measure").reindex(names)
                colour, marker = POLES[0] if strength > 0 else POLES[1]
                faint = 0.35 + 0.65 * abs(strength) / largest
                _intervals(axes, rows, np.arange(len(names)) - offset, colour, marker, f"{strength:+g}", faint)
            axes.axvline(0, color=BLACK, linewidth=0.8)
            axes.set_yticks(range(len(names)), [name_of(name) for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            if unit == "ratio":
                axes.xaxis.set_major_formatter(FuncFormatter(signed))
            change = "change" if is_narrow() else "change from the unsteered clip"
            axes.set_xlabel(change + ("" if unit == "ratio" else f" [{unit}]".replace(" []", "")))
        handles, names = panels[0].get_legend_handles_labels()
        where: Any = {"loc": "outside lower left", "ncols": 4} if is_narrow() else {"loc": "outside right upper"}
        figure.legend(handles, names, title="strength", title_fontsize=8, **where)
    return figure


def limits(result: Limits) -> Figure:
    """Draw the range of strengths whose loss stays within the bound, for every place.

    An arrow means that no tested strength exceeded the bound.
    """
    places = list(dict.fromkeys(spoken(row) for _, row in result.table.iterrows()))
    with styled():
        figure = canvas((6.2, 0.3 * len(places) + 1.5))
        axes = figure.add_subplot()
        for _, row in result.table.iterrows():
            colour, marker = POLES[0] if row["sign"] > 0 else POLES[1]
            height = places.index(spoken(row))
            axes.plot([0, row["strength"]], [height, height], color=colour, linewidth=3, solid_capstyle="butt")
            end = {1: ">", -1: "<"}[row["sign"]] if row["open"] else marker
            axes.plot(row["strength"], height, color=colour, marker=end, markersize=7 if row["open"] else 5)
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_yticks(range(len(places)), places)
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.set_xlabel("strength [differences of means]; arrow: bound not reached")
        axes.set_title(f"{result.concept}: {LOSSES.get(result.loss, result.loss)} at most {result.bound:g}")
    return figure


def strategies(result: Strategies) -> Figure:
    """Draw every strategy's largest effect towards each pole, with a bound on the loss and intervals over prompts."""
    names = list(dict.fromkeys(zip(result.table["strategy"], result.table["branch"], strict=True)))
    with styled():
        figure = canvas((6.4, 0.62 * len(names) + 1.4))
        axes = figure.add_subplot()
        for sign, label in ((1, "towards the positive pole"), (-1, "towards the negative pole")):
            colour, marker = POLES[0] if sign > 0 else POLES[1]
            mine = result.table[result.table["sign"] == sign]
            heights = [names.index(key) for key in zip(mine["strategy"], mine["branch"], strict=True)]
            _intervals(axes, mine, np.array(heights, dtype=float), colour, marker, label)
            for height, (_, row) in zip(heights, mine.iterrows(), strict=True):
                if np.isfinite(row["effect"]):
                    layer = (
                        "" if row["layer"] != row["layer"] or row["layer"] is None else f"block {int(row['layer'])}, "
                    )
                    axes.annotate(
                        f"{layer}{row['strength']:+g}", (row["effect"], height), xytext=(0, 6),
                        textcoords="offset points", ha="center", va="bottom", fontsize=7, color=colour,
                    )  # fmt: skip
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_yticks(range(len(names)), [one if branch == "both" else f"{one} ({branch})" for one, branch in names])
        axes.set_ylim(len(names) - 0.5, -0.7)
        _shares(axes, result.measured, "x")
        axes.set_xlabel(labelled(result.measured).replace("\n", " "))
        axes.set_title(f"{result.concept}: {LOSSES.get(result.loss, result.loss)} at most {result.bound:g}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def front(result: Front) -> Figure:
    """Draw gain against loss, with one panel per sign. A line joins the Pareto-optimal conditions."""
    signs = sorted(result.table["sign"].unique(), reverse=True) or [1.0]
    names = list(dict.fromkeys(result.table["strategy"]))
    with styled():
        figure = canvas((3.9 * len(signs) + 1.0, 3.7))
        panels = np.atleast_1d(figure.subplots(1, len(signs), sharex=True))
        for axes, sign in zip(panels, signs, strict=True):
            mine = result.table[result.table["sign"] == sign]
            best = mine[mine["best"]].sort_values([result.loss, "gain"])
            axes.plot(best[result.loss], best["gain"], color=BLACK, linewidth=1, linestyle="--", label="front")
            for index, strategy in enumerate(names):
                colour, marker = SEVERAL[index % len(SEVERAL)]
                own = mine[mine["strategy"] == strategy]
                look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
                axes.plot(own[result.loss], own["gain"], **{**look, "markerfacecolor": "white"}, alpha=0.8)
                axes.plot(own.loc[own["best"], result.loss], own.loc[own["best"], "gain"], **look, label=strategy)
            for _, row in best.iterrows():
                layer = "" if row["layer"] != row["layer"] or row["layer"] is None else f"{int(row['layer'])}, "
                axes.annotate(
                    f"{layer}{row['strength']:+g}", (row[result.loss], row["gain"]), xytext=(5, -3),
                    textcoords="offset points", fontsize=6.5, va="top",
                )  # fmt: skip
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_xlabel(LOSSES.get(result.loss, result.loss))
            axes.set_title("towards the positive pole" if sign > 0 else "towards the negative pole")
            _shares(axes, result.measured, "y")
            if result.loss == "failed":
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        panels[0].set_ylabel(f"{labelled(result.measured)}, towards the pole", fontsize=8)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(names) + 1)
    return figure


def _intervals(
    axes: Axes, rows: pd.DataFrame, heights: Any, colour: str, marker: str, label: str, alpha: float = 1.0
) -> None:
    error = errors(rows["effect"], rows["low"], rows["high"])
    axes.errorbar(
        rows["effect"], heights, xerr=error, color=colour, marker=marker, linestyle="none", markersize=5, elinewidth=1,
        capsize=2, alpha=alpha, label=label,
    )  # fmt: skip


def _shares(axes: Axes, measured: str, which: str) -> None:
    if is_ratio(measured):
        (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(FuncFormatter(signed))
