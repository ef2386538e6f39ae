"""Static figures of effects (matplotlib), drawn from the tables of sweeps and studies.

`screen.py` has the interactive versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures.canvas import SINGLE, canvas, is_narrow
from analysis.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    POLES,
    PURPLE,
    SEVERAL,
    change_of,
    errors,
    percent,
    styled,
)
from analysis.statistics import MOST_FAILED
from audiolens.directions.strategies import described

CONTROL_MARKS: Mapping[str, tuple[str, str, str]] = {
    "random": (GREY, "x", "random directions"),
    "balanced": (PURPLE, "+", "balanced shuffles"),
    "other": (BLACK, "d", "other concepts"),
    "shuffled": (PURPLE, "1", "freely shuffled labels"),
}
"""Colour, marker and name of each kind of control. Only folders written by earlier versions contain the last kind."""


def layers(scan: pd.DataFrame, measured: str, *, chosen: Mapping[str, Any] | None = None) -> Figure:
    """Draw the effect of steering at each block on development prompts, one panel per strategy.

    `scan` has the columns strategy, layer, strength, effect and failed. Markers are hollow where more than a tenth of
    the clips failed.
    """
    strategies = list(dict.fromkeys(scan["strategy"]))
    with styled():
        if is_narrow():
            figure = canvas((SINGLE, 3.2 * len(strategies)))
            panels = np.atleast_1d(figure.subplots(len(strategies), 1, sharey=True))
        else:
            figure = canvas((3.6 * len(strategies) + 0.8, 3.8))
            panels = np.atleast_1d(figure.subplots(1, len(strategies), sharey=True))
        for axes, strategy in zip(panels, strategies, strict=True):
            mine = scan[scan["strategy"] == strategy]
            amounts = sorted(mine["strength"].abs().unique())
            for strength, group in mine.groupby("strength"):
                size = amounts.index(abs(strength))
                colour, marker = POLES[0] if strength > 0 else POLES[1]
                group = group.sort_values("layer")
                faint = 1.0 if size == len(amounts) - 1 else 0.45
                line = "-" if size == len(amounts) - 1 else "--"
                axes.plot(group["layer"], group["effect"], color=colour, alpha=faint, linestyle=line, linewidth=1.2)
                _points(axes, group["layer"], group["effect"], group["failed"], colour, marker, faint, f"{strength:+g}")
            axes.axhline(0, color=BLACK, linewidth=0.8)
            axes.set_title(strategy, pad=14)
            axes.set_xlabel(described(strategy).axis)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(
                title="strength", ncols=3 if is_narrow() else 4, title_fontsize=8, loc="upper center",
                bbox_to_anchor=(0.5, -0.2 if is_narrow() else -0.17),
            )  # fmt: skip
            if chosen and chosen["strategy"] == strategy:
                axes.axvspan(chosen["layer"] - 0.35, chosen["layer"] + 0.35, color=GREEN, alpha=0.15, linewidth=0)
                axes.annotate(
                    "chosen", (chosen["layer"], 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                    fontsize=8, color=GREEN, xytext=(0, 1), textcoords="offset points",
                )  # fmt: skip
        for axes in panels if is_narrow() else panels[:1]:
            percent(axes)
            axes.set_ylabel(change_of(measured))
    return figure


def dose_response(table: pd.DataFrame, measured: str, poles: Sequence[str]) -> Figure:
    """Plot effect against strength for the chosen strategy, its controls and references, and the other strategies.

    `table` has the columns kind ("baseline", "steered", "alternative", "prompted", and those of `CONTROL_MARKS`),
    strategy, strength, pole, effect, low, high and failed. The lower panels show the share of failed clips.
    """
    strategies = list(dict.fromkeys(table.loc[table["kind"].isin(["steered", "alternative"]), "strategy"]))
    with styled():
        if is_narrow():
            figure = canvas((SINGLE, 3.4 * len(strategies) + 1.2))
            rows = figure.subplots(2 * len(strategies), 1, height_ratios=[4, 1] * len(strategies))
            grid = rows.reshape(len(strategies), 2).T
            for axes in grid[0, 1:]:
                axes.sharey(grid[0, 0])
        else:
            figure = canvas((3.9 * len(strategies) + 1.9, 4.3))
            grid = figure.subplots(
                2, len(strategies), sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": [4, 1]}
            )
        for column, strategy in enumerate(strategies):
            upper, lower = grid[:, column]
            mine = table[(table["strategy"] == strategy) & table["kind"].isin(["steered", "alternative"])]
            layer = mine["layer"].iloc[0]
            base = table[table["kind"] == "baseline"].assign(strength=0.0)
            mine = pd.concat([mine, base]).sort_values("strength")
            _controls(upper, table[table["strategy"] == strategy])
            _references(upper, table[table["kind"] == "prompted"], poles)
            colour, marker = SEVERAL[column]
            error = errors(mine["effect"], mine["low"], mine["high"])
            upper.errorbar(
                mine["strength"], mine["effect"], yerr=error, color=colour, linewidth=1.6, elinewidth=1, capsize=3,
                zorder=4,
            )  # fmt: skip
            _points(
                upper,
                mine["strength"],
                mine["effect"],
                mine["failed"],
                colour,
                marker,
                1.0,
                f"steered {strategy}",
                size=6,
            )
            upper.axhline(0, color=BLACK, linewidth=0.8)
            place = "" if pd.isna(layer) else f", {described(strategy).where} block {int(layer)}"
            upper.set_title(f"{strategy}{place}")
            width = 0.5 * float(np.min(np.diff(np.unique(mine["strength"]))))
            lower.bar(mine["strength"], mine["failed"], width=width, color=colour)
            lower.axhline(MOST_FAILED, color=BLACK, linewidth=0.8, linestyle=":")
            lower.set_ylim(0, 1)
            lower.set_xlabel("strength [differences of means]")
        for upper, lower in grid.T if is_narrow() else grid.T[:1]:
            percent(upper)
            upper.set_ylabel(change_of(measured))
            lower.set_ylabel("failed")
            lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        handles: dict[str, Any] = {}
        for axes in grid[0]:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        where = "outside lower left" if is_narrow() else "outside right upper"
        figure.legend(handles.values(), handles.keys(), loc=where)
    return figure


def norms(table: pd.DataFrame) -> Figure:
    """Plot the norm of the direction at each block, in raw units and relative to the norm of the residual stream.

    `table` has the columns layer, norm and residual_norm. With the column times_shuffled (the norm divided by the
    median norm under shuffled labels), the line of chance is drawn as well.
    """
    with styled():
        figure = canvas((4.6, 2.9))
        axes = figure.add_subplot()
        axes.plot(table["layer"], table["norm"], color=BLUE, marker="o", label="norm of the direction")
        if "times_shuffled" in table:
            axes.plot(table["layer"], table["norm"] / table["times_shuffled"], color=GREY, linestyle=":",
                      label="shuffled labels (median)")  # fmt: skip
        axes.set_xlabel("block")
        axes.set_ylabel("norm [raw]")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        share = axes.twinx()
        share.spines["right"].set_visible(True)
        share.grid(False)
        share.plot(
            table["layer"], table["norm"] / table["residual_norm"], color=ORANGE, marker="s", linestyle="--",
            label="relative to the stream (right)",
        )  # fmt: skip
        share.set_ylabel("relative to the residual stream")
        share.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        share.set_ylim(bottom=0)
        figure.legend(loc="outside upper left")
    return figure


def strengths(table: pd.DataFrame, measured: str) -> Figure:
    """Plot effect against strength for a sweep, with one line per strategy and layer if the table has these columns."""
    with styled():
        figure = canvas((6.6, 3.8))
        axes = figure.add_subplot()
        for place, (name, mine) in enumerate(lines(table)):
            colour, marker = SEVERAL[place % len(SEVERAL)]
            error = errors(mine["effect"], mine["low"], mine["high"])
            axes.errorbar(mine["strength"], mine["effect"], yerr=error, color=colour, elinewidth=1, capsize=2)
            _points(axes, mine["strength"], mine["effect"], mine["failed"], colour, marker, 1.0, name)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xlabel("strength [differences of means]")
        axes.set_ylabel(change_of(measured))
        percent(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a named line for each group of conditions that differ only in strength, and leave out the others."""
    if "strength" not in table:
        table = table.assign(strength=np.arange(len(table), dtype=float))
    labels = [label for label in ("kind", "strategy", "layer", "draw") if label in table]
    mine = table[table["strength"].notna()]
    if not labels:
        yield "steered", mine.sort_values("strength")
        return
    for values, group in mine.groupby(labels, sort=False):
        named = [_name(label, value) for label, value in zip(labels, list(values), strict=True) if value == value]
        yield ", ".join(named), group.sort_values("strength")


def _name(label: str, value: Any) -> str:
    return f"block {int(value)}" if label == "layer" else f"{label} {value}" if label == "draw" else str(value)


def _points(
    axes: Axes, x: Any, y: Any, failed: Any, colour: str, marker: str, alpha: float, label: str, size: float = 5
) -> None:
    """Draw markers, which are hollow where more than a tenth of the clips failed."""
    lost = np.asarray(failed, dtype=float) > MOST_FAILED
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    look = {"color": colour, "marker": marker, "linestyle": "none", "alpha": alpha, "markersize": size, "zorder": 5}
    axes.plot(x[~lost], y[~lost], label=label, **look)
    axes.plot(x[lost], y[lost], **{**look, "markerfacecolor": "white"})


def _controls(axes: Axes, table: pd.DataFrame) -> None:
    for kind, (colour, marker, words) in CONTROL_MARKS.items():
        mine = table[table["kind"] == kind]
        if len(mine):
            axes.plot(
                mine["strength"], mine["effect"], color=colour, marker=marker, linestyle="none", markersize=5,
                alpha=0.9, zorder=3, label=words,
            )  # fmt: skip


def _references(axes: Axes, prompted: pd.DataFrame, poles: Sequence[str]) -> None:
    for pole, line in zip(poles, ("--", "-."), strict=True):
        mine = prompted[prompted["pole"] == pole]
        if len(mine):
            axes.axhline(
                float(mine["effect"].iloc[0]), color=GREEN, linestyle=line, linewidth=1.2,
                label=f"prompted for “{pole}”",
            )  # fmt: skip
