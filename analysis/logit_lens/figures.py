"""Draw what each block predicts, by codebook, and what it would play."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from plotly.subplots import make_subplots

from analysis.figures import spectrograms
from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import GREY, SEVERAL, SYMBOLS, axis_of, screen_errors, styled
from analysis.resampling import COVERAGE

if TYPE_CHECKING:
    from analysis.logit_lens.audible import Audible
    from analysis.logit_lens.reading import LogitLensResult

_LINE = 24
"""Number of characters per line of a prompt that is printed next to its clips."""
PANELS = {
    "rank": "rank of the given code",
    "probability": "probability of the given code",
    "kl": "KL from the last block [nats]",
}


def paper(result: LogitLensResult) -> Figure:
    """Draw the rank, probability and divergence over blocks, with one line per codebook."""
    table = result.to_frame()
    with styled():
        figure = canvas((9.6, 3.5))
        for axes, (name, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
            for codebook, mine in table.groupby("codebook"):
                colour, marker = SEVERAL[int(str(codebook)) % len(SEVERAL)]
                axes.plot(mine["layer"], mine[name], color=colour, marker=marker, label=f"codebook {codebook}")
                axes.fill_between(
                    mine["layer"], mine[f"{name}_low"], mine[f"{name}_high"], color=colour, alpha=0.2, linewidth=0
                )  # fmt: skip
            axes.set_xlabel("block")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "rank":
                axes.set_yscale("log")
                # Ranks often stay within one decade, so ticks between powers of ten are labelled too.
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(NullFormatter())
                control = table.groupby("layer")["control_rank"].mean()
                axes.plot(control.index, control, color=GREY, linestyle="--", label="code of another clip")
            else:
                axes.set_ylim(bottom=0)
            if name == "probability":
                axes.axhline(1 / result.vocab_size, color=GREY, linestyle=":", label="uniform guess")
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6)
        return captioned(figure, caption(result))


@literally
def screen(result: LogitLensResult) -> go.Figure:
    """Draw the interactive version (plotly), with three panels side by side."""
    table = result.to_frame()
    figure = make_subplots(cols=3, subplot_titles=list(PANELS.values()))
    for column, name in enumerate(PANELS, 1):
        for codebook, mine in table.groupby("codebook"):
            colour, marker = SEVERAL[int(str(codebook)) % len(SEVERAL)]
            figure.add_scatter(
                x=mine["layer"], y=mine[name], row=1, col=column, mode="lines+markers", line_color=colour,
                marker_symbol=SYMBOLS[marker], name=f"codebook {codebook}", showlegend=column == 1,
                legendgroup=str(codebook),
                error_y=screen_errors(mine[name], mine[f"{name}_low"], mine[f"{name}_high"]),
            )  # fmt: skip
    control = table.groupby("layer")["control_rank"].mean()
    ends = [table["layer"].min(), table["layer"].max()]
    for column, x, y, dash, name in (
        (1, control.index, control, "dash", "code of another clip"),
        (2, ends, [1 / result.vocab_size] * 2, "dot", "uniform guess"),
    ):
        line = {"color": GREY, "dash": dash}
        figure.add_scatter(x=x, y=y, row=1, col=column, mode="lines", line=line, name=name)
    figure.update_xaxes(title_text="block")
    figure.update_yaxes(type="log", row=1, col=1)
    return screen_plain(figure, caption(result))


def caption(result: LogitLensResult) -> str:
    n = len({str(prompt) for prompt in result.prompts})
    return (
        "The residual stream after each block, decoded by the final norm and each codebook's head. Lines are means "
        f"over {len(result.prompts)} clips of {result.ranks.shape[-1] / result.frame_rate:g} s (geometric for ranks), "
        f"and bands are {COVERAGE} intervals over {n} prompts. The dashed line is the rank of another clip's code at "
        "the same position."
    )


def audible_paper(result: Audible, rows: int = 2) -> Figure:
    """Draw spectrograms of the first clips, with one column per block and the given clip in the last column."""
    columns = {**{f"block {layer}": clips for layer, clips in result.clips.items()}, "given": result.given}
    shown = range(min(rows, len(result.given)))
    sounds = [
        [clips.audio[row].float().cpu().numpy() for clips in columns.values() if clips.audio is not None]
        for row in shown
    ]
    names = ["\n".join(wrap(str(result.given.prompts[row]), _LINE)) for row in shown]
    figure = spectrograms.paired(sounds, result.given.sample_rate, names, list(columns))
    return captioned(
        figure,
        "What each block would play: its prediction of every frame from the given clip's history, decoded to "
        "sound. Levels are relative to each clip's loudest point.",
    )


@literally
def audible_screen(result: Audible) -> go.Figure:
    """Draw the measures of the decoded sound over blocks, as medians over clips.

    A dashed line shows the median of the given clips.
    """
    table = result.to_frame()
    measures = [name for name in table.columns if name not in ("layer", "row", "prompt", "same")]
    figure = make_subplots(cols=1 + len(measures), subplot_titles=["share of given codes", *map(axis_of, measures)])
    middle = table.groupby("layer")[["same", *measures]].median()
    for column, name in enumerate(["same", *measures], 1):
        colour, marker = SEVERAL[column - 1]
        figure.add_scatter(
            x=middle.index[1:], y=middle[name].iloc[1:], row=1, col=column, mode="lines+markers", line_color=colour,
            marker_symbol=SYMBOLS[marker], name=name,
        )  # fmt: skip
        if name != "same":
            where: Any = {"row": 1, "col": column}
            figure.add_hline(y=middle[name].iloc[0], line_dash="dash", line_color=GREY, **where)
    figure.update_xaxes(title_text="block")
    return screen_plain(figure, "Measures of what each block would play (median over clips). Dashed: the given clips.")
