"""Draw how well latents match attributes, for print (matplotlib) and screen (plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.captions import captioned, screen_plain
from analysis.figures.literal import literally
from analysis.figures.style import BLACK, SEVERAL, SYMBOLS, styled

if TYPE_CHECKING:
    import pandas as pd

    from analysis.features.indexing import FeatureIndex

_SERIES = (("auc", "best latent"), ("matched_auc", "matched one to one"), ("several_auc", "several together"))


def paper(index: FeatureIndex) -> Figure:
    """Draw one line per attribute, with the AUC of its best latent, of its matched one and of several together."""
    table = _ordered(index)
    with styled():
        figure = canvas((5.6, 1.4 + 0.24 * len(table)))
        axes = figure.add_subplot()
        for number, (name, label) in enumerate(_SERIES):
            colour, marker = SEVERAL[number]
            axes.plot(
                table[name], range(len(table)), linestyle="none", color=colour, marker=marker, markersize=5,
                markerfacecolor="none" if number else colour, label=label,
            )  # fmt: skip
        axes.axvline(index.threshold, color=BLACK, linewidth=0.8, linestyle="--")
        axes.axvline(0.5, color=BLACK, linewidth=0.5)
        axes.set_yticks(range(len(table)), [*table["attribute"]], fontsize=8)
        axes.set_xlabel("AUC on the half of the clips that latents were not chosen on")
        figure.legend(loc="outside upper center", ncols=3)
        return captioned(figure, _caption(index))


@literally
def screen(index: FeatureIndex) -> go.Figure:
    """Draw the interactive version (plotly)."""
    table = _ordered(index)
    figure = go.Figure()
    for number, (name, label) in enumerate(_SERIES):
        colour, marker = SEVERAL[number]
        figure.add_scatter(
            x=table[name], y=table["attribute"], mode="markers", name=label,
            marker={"color": colour, "symbol": SYMBOLS[marker], "size": 9}, text=table["latent"],
            hovertemplate="%{y}: %{x:.3f} (best latent %{text})",
        )  # fmt: skip
    figure.add_vline(x=index.threshold, line_dash="dash", line_width=1)
    figure.update_xaxes(title="AUC on the half of the clips that latents were not chosen on")
    figure.update_layout(height=260 + 24 * len(table), legend={"orientation": "h", "y": 1.05})
    return screen_plain(figure, _caption(index))


def _ordered(index: FeatureIndex) -> pd.DataFrame:
    return index.attributes.sort_values("auc", ignore_index=True)


def _caption(index: FeatureIndex) -> str:
    return (
        f"How well single latents of a sparse autoencoder at {index.sae.name} rank {len(index.clips)} clips by known "
        f"attributes. The dashed line is AUC {index.threshold:g}. Several together: the sum of the best "
        f"{index.several} latents. Latents were chosen on one half of the clips, and the AUC is that of the other half."
    )
