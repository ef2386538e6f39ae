"""Draw probe scores for print and screen, by block with shuffled labels and baselines, or as a map of heads."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas, wants_caption
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, errors, on_white, screen_errors, styled
from analysis.probing.result import UNGROUPED
from analysis.resampling import COVERAGE

if TYPE_CHECKING:
    from analysis.probing.result import ProbeResult

_BASELINE_LOOKS = {"mel": (ORANGE, "--"), "codec": (GREEN, "-.")}
_DASHES = {"--": "dash", "-.": "dashdot"}


def paper(result: ProbeResult) -> Figure:
    """Draw scores with intervals by block or head, with the range of shuffled labels and the sound baselines."""
    return _heads(result) if _is_map(result) else _blocks(result)


@literally
def screen(result: ProbeResult) -> go.Figure:
    """Draw the interactive version (plotly). Hovering shows the numbers."""
    figure = _heads_on_screen(result) if _is_map(result) else _blocks_on_screen(result)
    return on_white(figure).update_layout(title=_title(result), margin={"l": 70, "r": 20, "t": 60, "b": 60})


def caption(result: ProbeResult) -> str:
    """Return what the figure shows, in a sentence or two."""
    rows, groups = len(result.labels), len(np.unique(result.groups))
    what = f"{result.metric} of {result.probe.kind} probes of {result.name} at {_site(result)}"
    return (
        f"{what}, with {len(np.unique(result.folds))}-fold cross-validation over {groups} groups ({rows} rows) and "
        f"{COVERAGE} intervals over groups. Grey: range over {result.shuffled.shape[1]} shuffles of the labels."
        + ("" if result.grouped else f" {UNGROUPED.capitalize()}.")
    )


def _blocks(result: ProbeResult) -> Figure:
    table = result.to_frame()
    mine = table[table["kind"] == "model"]
    names = _names(result)
    x = np.arange(len(mine))
    with styled():
        figure = canvas((max(4.8, 1.6 + 0.42 * len(mine)), 3.9))
        axes = figure.add_subplot()
        low, high = mine["shuffled_low"].to_numpy(float), mine["shuffled_high"].to_numpy(float)
        axes.fill_between(x, low, high, color=GREY, alpha=0.3, linewidth=0, label="shuffled labels", step=None)
        if len(x) == 1:
            axes.vlines(x, low, high, color=GREY, linewidth=8, alpha=0.5)
        axes.axhline(result.chance, color=BLACK, linewidth=0.8, linestyle=":", label=f"chance, {result.chance:.2g}")
        for name, other in result.baselines.items():
            colour, line = _BASELINE_LOOKS[name]
            axes.axhspan(other.interval.low, other.interval.high, color=colour, alpha=0.13, linewidth=0)
            axes.axhline(other.score, color=colour, linestyle=line, linewidth=1.3, label=f"{name}, no model")
        score = mine["score"].to_numpy(float)
        error = errors(score, mine["low"], mine["high"])
        axes.errorbar(
            x, score, yerr=error, color=BLUE, marker="o", markersize=4.5, linewidth=1.4, elinewidth=1, capsize=2.5,
            zorder=4, label=f"{_site(result)}, {result.probe.kind} probe",
        )  # fmt: skip
        axes.set_xticks(x, names, rotation=0 if max(map(len, names)) < 4 else 40, ha="center")
        axes.set_xlabel("block" if all(probed.layer is not None for probed in result.sites) else "site")
        axes.set_ylabel(_axis(result))
        if result.classes:
            axes.set_ylim(min(0.0 if len(result.classes) > 2 else 0.3, float(low.min()) - 0.02), 1.03)
        if wants_caption():
            axes.set_title("\n".join(wrap(caption(result), 26 * int(figure.get_figwidth()))), fontsize=6.5, loc="left")
        figure.suptitle(_title(result), fontsize=10)
        figure.legend(loc="outside lower center", ncols=2 if len(mine) < 10 else 3)
    return figure


def _heads(result: ProbeResult) -> Figure:
    layers, heads, scores, marks = _grid(result)
    with styled():
        figure = canvas((2.2 + 0.45 * len(heads), 1.7 + 0.36 * len(layers)))
        axes = figure.add_subplot()
        axes.grid(False)
        top = 1.0 if result.classes else max(float(np.nanmax(scores)), 0.1)
        image = axes.imshow(scores, cmap="viridis", vmin=result.chance, vmax=top, origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(scores):
            if np.isfinite(value):
                shade = "black" if (value - result.chance) > 0.6 * (top - result.chance) else "white"
                text = f"{value:.2f}{'*' if marks[row, column] else ''}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)
        axes.set_xticks(range(len(heads)), [str(head) for head in heads])
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("head")
        axes.set_ylabel("block")
        figure.colorbar(image, ax=axes, label=_axis(result))
        axes.set_title(f"{_title(result)}\n* above the best head of every shuffle", fontsize=9)
    return figure


def _blocks_on_screen(result: ProbeResult) -> go.Figure:
    table = result.to_frame()
    mine, names = table[table["kind"] == "model"], _names(result)
    figure = go.Figure()
    low, high = mine["shuffled_low"].tolist(), mine["shuffled_high"].tolist()
    figure.add_scatter(
        x=[*names, *names[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor="rgba(138,138,138,0.3)",
        line_width=0, mode="lines", name="shuffled labels", hoverinfo="skip",
    )  # fmt: skip
    for name, other in result.baselines.items():
        colour, line = _BASELINE_LOOKS[name]
        i = other.interval
        figure.add_scatter(
            x=names, y=[other.score] * len(names), mode="lines", name=f"{name}, no model",
            line={"color": colour, "dash": _DASHES[line]},
            hovertemplate=f"{name}: {other.score:.3f} [{i.low:.3f}, {i.high:.3f}]<extra></extra>",
        )  # fmt: skip
    score = mine["score"].to_numpy(float)
    figure.add_scatter(
        x=names,
        y=score,
        error_y=screen_errors(score, mine["low"], mine["high"]),
        customdata=np.stack([mine["shuffled"], mine["p"], mine["auc"].fillna(np.nan)], axis=1),
        hovertemplate="%{x}: %{y:.3f}, shuffled %{customdata[0]:.3f}, p %{customdata[1]:.3f}, "
        "AUC %{customdata[2]:.3f}<extra></extra>",
        mode="lines+markers",
        line_color=BLUE,
        name=f"{_site(result)}, {result.probe.kind} probe",
    )
    figure.add_hline(y=result.chance, line_dash="dot", line_color=BLACK, annotation_text="chance")
    block = all(probed.layer is not None for probed in result.sites)
    return figure.update_layout(
        xaxis={"title": "block" if block else "site", "type": "category"}, yaxis_title=_axis(result)
    )


def _heads_on_screen(result: ProbeResult) -> go.Figure:
    layers, heads, scores, marks = _grid(result)
    figure = go.Figure(
        go.Heatmap(
            z=scores, x=[str(head) for head in heads], y=[str(layer) for layer in layers], zmin=result.chance,
            colorscale="Viridis", colorbar_title=result.metric, text=np.where(marks, "*", ""), texttemplate="%{text}",
            hovertemplate="block %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    return figure.update_layout(xaxis_title="head (* above the best head of every shuffle)", yaxis_title="block")


def _is_map(result: ProbeResult) -> bool:
    return all(probed.layer is not None and probed.head is not None for probed in result.sites)


def _grid(result: ProbeResult) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    layers = sorted({probed.layer for probed in result.sites if probed.layer is not None})
    heads = sorted({probed.head for probed in result.sites if probed.head is not None})
    scores = np.full((len(layers), len(heads)), np.nan)
    marks = np.zeros(scores.shape, dtype=bool)
    lowest = 1 / (result.shuffled.shape[1] + 1)
    for probed, score, p in zip(result.sites, result.scores, result.p, strict=True):
        assert probed.layer is not None
        assert probed.head is not None
        cell = layers.index(probed.layer), heads.index(probed.head)
        scores[cell], marks[cell] = score, p <= lowest + 1e-9
    return layers, heads, scores, marks


def _names(result: ProbeResult) -> list[str]:
    return [
        probed.site if probed.layer is None else f"{probed.layer}" + ("" if probed.head is None else f".{probed.head}")
        for probed in result.sites
    ]


def _site(result: ProbeResult) -> str:
    return result.sites[0].site


def _axis(result: ProbeResult) -> str:
    if result.classes:
        return f"{result.metric} ({len(result.classes)} classes)"
    return f"R² of {result.name}" + (f" ({result.unit})" if result.unit else "") + ", out of fold"


def _title(result: ProbeResult) -> str:
    classes = "" if not result.classes or len(result.classes) > 6 else f": {', '.join(result.classes)}"
    return f"{result.name}{classes} ({len(result.labels)} rows)"
