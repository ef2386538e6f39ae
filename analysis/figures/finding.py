"""Draw the finding of a study: the effect towards both poles, prompt by prompt, above what its controls do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.figures.canvas import DOUBLE, SINGLE, canvas, is_narrow
from analysis.figures.plots import CONTROL_MARKS
from analysis.figures.style import BLACK, GREEN, POLES, change_of, errors, signed, styled


def finding(
    outcomes: Sequence[Mapping[str, Any]],
    prompts: pd.DataFrame,
    controls: pd.DataFrame,
    measured: str,
    names: Sequence[str],
) -> Figure:
    """Draw one row of prompts and one row of controls for each pole, the negative pole above.

    Args:
        outcomes: `Outcome.as_dict` of the positive and of the negative pole.
        prompts: `effect` of each prompt, with the `strength` of the steering (`by_prompt`).
        controls: `positive` and `negative` effects of each control, and its `kind` (`Study.controls`).
        names: what steering does towards either pole, such as "faster" and "slower".
    """
    with styled():
        figure = canvas((SINGLE, 3.6) if is_narrow() else (DOUBLE, 2.4))
        axes = figure.add_subplot()
        ticks: list[tuple[float, str]] = []
        for outcome, name, sign, look in zip(outcomes, names, (1, -1), POLES, strict=True):
            top = 0.0 if sign < 0 else 2.2
            mine = prompts[prompts["strength"] == outcome["strength"]]
            _steered(axes, outcome, mine["effect"].to_numpy(), top, look)
            _others(axes, controls, "positive" if sign > 0 else "negative", top + 1)
            if np.isfinite(outcome["ranked"]):
                axes.plot(outcome["ranked"], top + 1, marker="o", markersize=9, markerfacecolor="none",
                          markeredgecolor=look[0], linestyle="none", label="this direction, same clips")  # fmt: skip
            ticks += [(top, name), (top + 1, "controls")]
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        axes.set_ylim(3.8, -0.6)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(signed))
        label = change_of(measured)
        # One line of a long name would be wider than one column.
        axes.set_xlabel(label.replace(" (", "\n(") if is_narrow() else label.replace("\n", " "))
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        where = "outside lower left" if is_narrow() else "outside right upper"
        figure.legend(handles.values(), handles.keys(), loc=where, markerscale=0.7)
    return figure


def _steered(axes: Axes, outcome: Mapping[str, Any], effects: np.ndarray, place: float, look: tuple[str, str]) -> None:
    """Draw every prompt's effect, the median with its interval, and the effect of asking in words."""
    colour, marker = look
    # Prompts with similar effects are moved apart, in an order that does not depend on their effects.
    apart = 0.32 * (np.arange(len(effects)) % 5 - 2) / 2
    axes.plot(effects, place + apart, marker=".", markersize=5, linestyle="none", color=colour, alpha=0.45,
              label="one prompt, steered")  # fmt: skip
    bar = errors(outcome["effect"], outcome["low"], outcome["high"]).reshape(2, 1)
    axes.errorbar(outcome["effect"], place, xerr=bar, color=colour, marker=marker, markersize=7, capsize=4,
                  elinewidth=1.8, linestyle="none", zorder=5)  # fmt: skip
    axes.plot([], [], color=BLACK, marker="s", markersize=6, linestyle="none", label="median, with interval")
    if np.isfinite(outcome["prompted"]):
        axes.plot(outcome["prompted"], place, marker="|", markersize=20, markeredgewidth=2, color=GREEN,
                  linestyle="none", label="asked for in words")  # fmt: skip


def _others(axes: Axes, controls: pd.DataFrame, side: str, place: float) -> None:
    for kind, (colour, marker, words) in CONTROL_MARKS.items():
        mine = controls.loc[controls["kind"] == kind, side]
        if len(mine):
            apart = 0.25 * (np.arange(len(mine)) % 5 - 2) / 2
            axes.plot(mine, place + apart, color=colour, marker=marker, markersize=4.5, linestyle="none", alpha=0.9,
                      label=words)  # fmt: skip
