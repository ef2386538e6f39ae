"""Draw the results of listening tests, for print (matplotlib) and screen (plotly): one row per comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned
from analysis.figures.literal import in_template, literally
from analysis.figures.style import BLACK, BLUE, GREY, errors, plain, screen_errors, styled

if TYPE_CHECKING:
    from analysis.listening_test.preference import Preference
    from analysis.listening_test.ratings import Ratings


@dataclass(frozen=True)
class _Panel:
    """The rows of one panel, from top to bottom, with the values of single prompts."""

    title: str
    labels: list[str]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    prompts: list[tuple[list[str], np.ndarray]]


def shares_paper(result: Preference) -> Any:
    """Draw the share of answers per question and comparison; the line is chance."""
    return captioned(_paper(_shares(result), "share of answers [%]", 50.0), _words(result, "the share of answers"))


@literally
def shares_screen(result: Preference) -> go.Figure:
    """Draw the same panels for the screen; hovering over a dot shows its prompt."""
    return _screen(_shares(result), "share of answers [%]", 50.0)


def ratings_paper(result: Ratings) -> Any:
    """Draw the mean rating per condition."""
    return captioned(_paper(_rated(result), "rating (0 bad, 100 excellent)", None), _words(result, "the mean rating"))


@literally
def ratings_screen(result: Ratings) -> go.Figure:
    """Draw the same panel for the screen; hovering over a dot shows its prompt."""
    return _screen(_rated(result), "rating (0 bad, 100 excellent)", None)


def _shares(result: Preference) -> list[_Panel]:
    single = result.by_prompt()
    panels = []
    for question, rows in result.table.groupby("question", sort=False):
        own = single[single["question"] == question]
        labels = [f"{row['clip']}\nrather than {row['against']}" for row in rows.to_dict("records")]
        prompts = []
        for clip, against in zip(rows["clip"], rows["against"], strict=True):
            mine = own[(own["clip"] == clip) & (own["against"] == against)]
            prompts.append((list(mine["prompt"]), 100 * mine["share"].to_numpy(float)))
        share, low, high = (100 * rows[name].to_numpy(float) for name in ("share", "low", "high"))
        panels.append(_Panel(result.questions[str(question)], labels, share, low, high, prompts))
    return panels


def _rated(result: Ratings) -> list[_Panel]:
    single, prompts = result.by_prompt(), []
    for name in result.table["condition"]:
        mine = single[single["condition"] == name]
        prompts.append((list(mine["prompt"]), mine["mean"].to_numpy(float)))
    mean, low, high = (result.table[name].to_numpy(float) for name in ("mean", "low", "high"))
    return [_Panel("How good does each clip sound?", list(result.table["condition"]), mean, low, high, prompts)]


def _paper(panels: list[_Panel], label: str, chance: float | None) -> Any:
    with styled():
        figure = canvas((1.6 + 3.6 * len(panels), 1.5 + 0.62 * max(len(one.labels) for one in panels)))
        drawn = figure.subplots(1, len(panels), sharey=True) if len(panels) > 1 else [figure.add_subplot()]
        for axes, panel in zip(drawn, panels, strict=True):
            places = np.arange(len(panel.labels))[::-1]
            for place, (_, dots) in zip(places, panel.prompts, strict=True):
                axes.plot(dots, np.full(len(dots), place) - 0.24, "|", color=GREY, markersize=7)
            around = errors(panel.values, panel.low, panel.high)
            axes.errorbar(panel.values, places, xerr=around, fmt="o", color=BLUE, capsize=3, markersize=6)
            if chance is not None:
                axes.axvline(chance, color=BLACK, linewidth=0.8, linestyle=":")
            axes.set_yticks(places, panel.labels)
            axes.set_ylim(-0.6, len(places) - 0.4)
            axes.set_xlim(-3, 103)
            axes.set_xlabel(label)
            axes.set_title(panel.title, loc="left")
        return figure


def _screen(panels: list[_Panel], label: str, chance: float | None) -> go.Figure:
    figure = make_subplots(
        rows=len(panels), cols=1, subplot_titles=[one.title for one in panels], vertical_spacing=0.3 / len(panels)
    )
    for row, panel in enumerate(panels, start=1):
        labels = [one.replace("\n", "<br>") for one in panel.labels]
        for name, (prompts, dots) in zip(labels, panel.prompts, strict=True):
            figure.add_scatter(
                x=dots, y=[name] * len(dots), mode="markers", customdata=[[one] for one in prompts],
                marker={"symbol": "line-ns-open", "size": 10, "color": GREY}, showlegend=False,
                hovertemplate="%{customdata[0]}: %{x:.0f}<extra></extra>", row=row, col=1,
            )  # fmt: skip
        around = {**screen_errors(panel.values, panel.low, panel.high), "color": BLUE}
        figure.add_scatter(
            x=panel.values, y=labels, mode="markers", error_x=around, marker={"color": BLUE, "size": 9},
            showlegend=False, hovertemplate=f"{in_template('mean')}: %{{x:.1f}}<extra></extra>", row=row, col=1,
        )  # fmt: skip
        if chance is not None:
            figure.add_vline(x=chance, line_color=BLACK, line_width=1, line_dash="dot", row=row, col=1)  # pyright: ignore[reportArgumentType]
        figure.update_yaxes(range=[len(labels) - 0.5, -0.5], automargin=True, row=row, col=1)
        figure.update_xaxes(range=[-3, 103], row=row, col=1)
    figure.update_xaxes(title_text=label, row=len(panels), col=1)
    height = 130 + sum(80 + 56 * len(one.labels) for one in panels)
    return plain(figure).update_layout(height=height)


def _words(result: Preference | Ratings, what: str) -> str:
    used, all_of = int(result.listeners["used"].sum()), len(result.listeners)
    prompts = int(pd.Series(result.table["prompts"]).max())
    return (
        f"Circles: {what}, with the {result.confidence:.0%} interval for other listeners and other prompts. Bars: "
        "single prompts. "
        f"{result.concept} on {result.model}, strength ±{result.strength:g}; {used} of {all_of} listeners passed the "
        f"screening, {prompts} prompts."
    )
