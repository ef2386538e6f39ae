"""Draw attention weights by word and time, attention weights by lag in beats, and the effect of ablating a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, heat, screen_heat, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, GREY, SEVERAL, styled
from audiolens.checks import checked_count, shown
from audiolens.errors import InputError, shortened

if TYPE_CHECKING:
    from analysis.attention.ablation import HeadAblation
    from analysis.attention.lags import LagAttention
    from analysis.attention.words import TextAttention

Head = tuple[int, int]


def text_paper(result: TextAttention, row: int, heads: Sequence[Head] | None) -> Figure:
    """Plot attention weights by token and time for one row, with one panel per head."""
    chosen = _asked(result, heads) or _leading(result.selective(), result.layers, result.heads, 6)
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    tokens = result.tokens[_checked_row(result, row)]
    with styled():
        figure = canvas((3.4 * columns + 0.8, (0.16 * len(tokens) + 1.1) * lines + 0.7))
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        image: Any = None
        for (layer, head), axes in zip(chosen, panels.ravel(), strict=False):
            weights = _of(result, layer, head)[row, :, : len(tokens)].T
            image = heat(axes, weights, extent=(0, weights.shape[1] / result.frame_rate), limit=1.0, signed=False)
            axes.set_yticks(range(len(tokens)), [token.lstrip("▁Ġ") for token in tokens], fontsize=7)
            axes.set_title(f"block {layer} head {head}", fontsize=9)
        for axes in panels.ravel()[len(chosen) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("time [s]")
        for axes in panels[:, 0]:
            axes.set_ylabel("token")
        figure.colorbar(image, ax=panels, shrink=0.7, label="attention weight")
        return captioned(figure, _text_caption(result, row))


@literally
def text_screen(result: TextAttention, row: int) -> go.Figure:
    """Plot attention weights by token and time for one row, with a slider over heads, most selective first."""
    count = min(24, len(result.layers) * len(result.heads))
    chosen = _leading(result.selective(), result.layers, result.heads, count)
    names = [token.lstrip("▁Ġ") for token in result.tokens[_checked_row(result, row)]]
    figure, steps = go.Figure(), []
    for index, (layer, head) in enumerate(chosen):
        weights = _of(result, layer, head)[row, :, : len(names)].T
        seconds = np.arange(weights.shape[1]) / result.frame_rate
        figure.add_heatmap(
            z=weights, x=seconds, y=list(range(len(names))), zmin=0, zmax=1, colorscale="Cividis",
            colorbar_title="weight", visible=index == 0,
            hovertemplate="%{x:.2f} s: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        visible = [other == index for other in range(count)]
        title = f"block {layer} head {head}"
        steps.append({"method": "update", "label": title, "args": [{"visible": visible}, {"title.text": title}]})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, title_text="token")
    figure.update_layout(
        title=steps[0]["label"], xaxis_title="time [s]", sliders=[{"steps": steps, "pad": {"t": 90}}],
    )  # fmt: skip
    return screen_plain(figure, _text_caption(result, row))


def lag_paper(result: LagAttention, heads: Sequence[Head] | None) -> Figure:
    """Plot scores by layer and head, and profiles over lag in beats, as means over clips."""
    found = result.means
    leading = _leading(np.nan_to_num(found.value, nan=-1.0), result.layers, result.heads, 4)
    chosen = _asked(result, heads) or leading
    with styled():
        figure = canvas((9.4, 3.9))
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
        image = heat(left, found.value, x=result.heads, y=result.layers)
        for (line, column), periodic in np.ndenumerate(result.periodic):
            if periodic:
                dark = abs(found.value[line, column]) > 0.6 * np.nanmax(np.abs(found.value))
                shade = "white" if dark else "black"
                left.text(column, line, "*", ha="center", va="center", color=shade, fontsize=11)
        left.set_xlabel("head")
        left.set_ylabel("block")
        figure.colorbar(image, ax=left, shrink=0.85, label="score, (on − off) / (on + off)")
        grid = np.linspace(0.25, 3.0, 100)
        for (layer, head), (colour, marker) in zip(chosen, SEVERAL, strict=False):
            profile = _in_beats(result, layer, head, grid)
            right.plot(grid, profile, color=colour, marker=marker, markevery=12, label=f"block {layer} head {head}")
        for beat in (1, 2, 3):
            right.axvline(beat, color=GREY, linewidth=0.8, linestyle=":")
        right.axhline(1, color=BLACK, linewidth=0.8)
        right.set_xlabel("lag [beats]")
        right.set_ylabel("weight, relative to its mean over these lags")
        right.legend()
        return captioned(figure, _lag_caption(result))


@literally
def lag_screen(result: LagAttention) -> go.Figure:
    """Plot scores by layer and head."""
    found = result.means
    extra = np.stack([found.low, found.high, result.control, result.p], axis=-1)
    hover = (
        "block %{y} head %{x}: %{z:+.3f} [%{customdata[0]:+.3f}, %{customdata[1]:+.3f}]<br>other clips' beats "
        "%{customdata[2]:+.3f}, p = %{customdata[3]:.3g}<extra></extra>"
    )
    heads, blocks = ([str(one) for one in axis] for axis in (result.heads, result.layers))
    figure = go.Figure(screen_heat(found.value, heads, blocks, "score", customdata=extra, hovertemplate=hover))
    marks = np.where(result.periodic, "*", "")
    figure.update_traces(text=marks, texttemplate="%{text}")
    figure.update_layout(xaxis_title="head", yaxis_title="block")
    return screen_plain(figure, _lag_scores(result))


def ablation_paper(result: HeadAblation) -> Figure:
    """Plot the change in log-likelihood by layer and head."""
    found = result.means
    with styled():
        figure = canvas((1.9 + 0.55 * len(result.heads), 1.6 + 0.33 * len(result.layers)))
        axes = figure.add_subplot()
        image = heat(axes, found.value, x=result.heads, y=result.layers, numbers=True)
        axes.set_xlabel("head")
        axes.set_ylabel("block")
        axes.set_title(f"{result.site} × {result.factor:g}", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.85, label="change [nats per code]")
        return captioned(figure, _ablation_caption(result))


@literally
def ablation_screen(result: HeadAblation) -> go.Figure:
    """Plot the change in log-likelihood by layer and head, for the screen."""
    found = result.means
    extra = np.stack([found.low, found.high], axis=-1)
    hover = (
        "block %{y} head %{x}: %{z:+.4g} [%{customdata[0]:+.4g}, %{customdata[1]:+.4g}] nats per code<extra></extra>"
    )  # fmt: skip
    heads, blocks = ([str(one) for one in axis] for axis in (result.heads, result.layers))
    figure = go.Figure(screen_heat(found.value, heads, blocks, "nats per code", customdata=extra, hovertemplate=hover))
    figure.update_layout(xaxis_title="head", yaxis_title="block", title=f"{result.site} × {result.factor:g}")
    return screen_plain(figure, _ablation_caption(result))


def _leading(values: np.ndarray, layers: Sequence[int], heads: Sequence[int], count: int) -> list[Head]:
    order = np.argsort(-values, axis=None)[:count]
    return [(layers[index // len(heads)], heads[index % len(heads)]) for index in order]


def _asked(result: TextAttention | LagAttention, heads: Sequence[Head] | None) -> list[Head]:
    """Return the requested heads, after checking that the result contains each (layer, head)."""
    if heads is None:
        return []
    for one in heads:
        if not isinstance(one, tuple | list) or len(one) != 2:
            raise InputError(f"heads={shown(heads)}: expected (layer, head) pairs.")
        if one[0] not in result.layers or one[1] not in result.heads:
            raise InputError(
                f"heads: {tuple(one)} was not read; there are layers {shortened(map(str, result.layers))} and heads "
                f"{shortened(map(str, result.heads))}."
            )
    return [(layer, head) for layer, head in heads]


def _checked_row(result: TextAttention, row: int) -> int:
    count = len(result.prompts)
    if checked_count("row", row, 0) >= count:
        raise InputError(f"row={row}: there are rows 0 to {count - 1}.")
    return row


def _of(result: TextAttention, layer: int, head: int) -> np.ndarray:
    return result.weights[result.layers.index(layer), result.heads.index(head)]


def _in_beats(result: LagAttention, layer: int, head: int, grid: np.ndarray) -> np.ndarray:
    """Divide each clip's profile by its mean, and return the mean over clips by lag in beats.

    The mean is NaN at lags that fewer than two clips reach.
    """
    profiles = result.profiles[result.layers.index(layer), result.heads.index(head)]
    lines = []
    for profile, beat in zip(profiles, result.beat_seconds, strict=True):
        if np.isfinite(beat):
            positions = grid * beat * result.frame_rate
            line = np.interp(positions, np.arange(len(profile)), profile, right=np.nan)
            lines.append(line / np.nanmean(line))
    counts = np.isfinite(lines).sum(0)
    return np.where(counts >= 2, np.nansum(lines, axis=0) / np.maximum(counts, 1), np.nan)


def _text_caption(result: TextAttention, row: int) -> str:
    return (
        f"Attention weight from each step to each token of “{result.prompts[row]}”. The weights do not show what a "
        "head copies from a token."
    )


def _lag_caption(result: LagAttention) -> str:
    right = "the weight of the highest-scoring heads by lag, in each clip's own beats."
    return f"Left: {_lag_scores(result)} Right: {right}"


def _lag_scores(result: LagAttention) -> str:
    clips = int(np.isfinite(result.beat_seconds).sum())
    return (
        f"Self-attention by lag in {clips} clips, as the weight at whole beats back (on) compared with the weight half "
        "a beat to either side (off). A star marks heads whose interval is above 0 and whose p is at most .05 against "
        "beats shuffled between clips, corrected over all heads."
    )


def _ablation_caption(result: HeadAblation) -> str:
    first, end = result.window.seconds
    return (
        f"Change in the log-likelihood of the codes at {first:g}-{end:g} s when one head is scaled by "
        f"{result.factor:g} (mean over {len(result.prompts)} clips and all codebooks). The unchanged model's "
        f"log-likelihood is {result.intact.mean():.3g} nats per code."
    )
