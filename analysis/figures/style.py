"""The shared style of figures, with colours, markers, names of measures, and settings for matplotlib and plotly.

The colours are Okabe and Ito's palette, which is safe for colour-blind readers. Markers and line styles encode the
same information as the colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis.figures.literal import AS_TYPED
from audiolens import measure

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8A8A8A"
DIVERGING = "PuOr_r"
"""The colour map for signed values, known to both matplotlib and plotly, and safe for colour-blind readers."""
POLES = ((RED, "o"), (BLUE, "s"))
"""Colour and marker of the positive pole, then of the negative pole."""
SEVERAL = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (RED, "v"), (SKY, "P"), (BLACK, "X"))
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "x": "x-thin-open",
    "+": "cross-thin-open",
    "d": "diamond-open",
    "1": "y-down-open",
}
"""Plotly's names for matplotlib's markers."""
NAMES: Mapping[str, str] = {
    "tempo": "tempo (beat)",
    "tempo_ioi": "tempo (inter-onset interval)",
    "tempo_octave": "tempo's octave",
    "onset_rate": "onset rate",
    "pulse_clarity": "pulse clarity",
    "brightness": "brightness (spectral centroid)",
    "ltas_centroid": "centroid of the average spectrum",
    "loudness": "loudness",
    "pitch": "register (pitch)",
    "mode": "mode",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    **AS_TYPED,
}


def name_of(measured: str) -> str:
    """Return the readable name of a measure."""
    return NAMES.get(measured, measured.replace("_", " "))


def axis_of(measured: str) -> str:
    """Return the readable name of a measure, with its unit."""
    unit = measure.UNITS.get(measured, "")
    return f"{name_of(measured)} [{unit}]" if unit else name_of(measured)


def change_of(measured: str) -> str:
    """Return the label of an axis that shows effects on a measure."""
    return f"change in {name_of(measured)}\nrelative to the unsteered clip"


@contextmanager
def styled() -> Iterator[None]:
    """Apply the shared style while a figure is drawn, without changing the caller's settings."""
    with mpl.rc_context(STYLE):
        yield


def looks(count: int) -> list[tuple[str, str]]:
    """Return the (colour, marker) pairs for `count` labels."""
    return list(POLES) if count == 2 else [SEVERAL[i % len(SEVERAL)] for i in range(count)]


def signed(value: float, _: int = 0) -> str:
    """Format a relative change on an axis as a signed percentage."""
    return f"{value:+.0%}".replace("-", "−") if round(value, 6) else "0"


def percent(axes: Axes) -> None:
    """Format the tick labels of the y axis as signed percentages."""
    axes.yaxis.set_major_formatter(FuncFormatter(signed))


def errors(value: Any, low: Any, high: Any) -> np.ndarray:
    """Return the distances from each value to the ends of its interval, as an array "side point".

    The distances are 0 if there is no interval.
    """
    value, low, high = (np.asarray(one, dtype=float) for one in (value, low, high))
    return np.nan_to_num(np.clip([value - low, high - value], 0, None))


def screen_errors(value: Any, low: Any, high: Any) -> dict[str, Any]:
    """Return the same distances as `errors`, as plotly error bars."""
    below, above = errors(value, low, high)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def plain(figure: go.Figure) -> go.Figure:
    """Apply the style of interactive figures to a figure."""
    return on_white(figure).update_layout(margin={"l": 70, "r": 20, "t": 50, "b": 60})


def on_white(figure: go.Figure) -> go.Figure:
    """Apply plotly's white template without its lines, which are transparent and, by default, 0 pixels wide."""
    figure.update_layout(template="simple_white")
    layout: Any = figure.layout
    layout.template.layout.shapedefaults = None
    return figure


def sliding(
    figure: go.Figure,
    layers: Sequence[int],
    titles: Sequence[str],
    axes: Sequence[dict[str, str]] = (),
    *,
    each: int = 1,
    gap: int = 40,
) -> go.Figure:
    """Add a slider over layers to a figure whose traces are ordered by layer, with `each` traces per layer.

    `axes` contains additional settings for each layer, such as "xaxis.title.text". `gap` is the height in pixels of the
    labels above the slider.
    """
    further = axes or [{} for _ in layers]
    steps = [
        {
            "method": "update",
            "label": str(layer),
            "args": [
                {"visible": [i // each == place for i in range(each * len(layers))]},
                {"title.text": titles[place], **further[place]},
            ],
        }
        for place, layer in enumerate(layers)
    ]
    figure.update_layout({key.replace(".", "_"): value for key, value in further[0].items()})
    slider = {"steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": gap}}
    return plain(figure.update_layout(title=titles[0], sliders=[slider]))
