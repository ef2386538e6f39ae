"""Draw mel spectrograms of one clip, or of clips with the same prompt and seed side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import canvas
from analysis.figures.style import styled

DEPTH_DB = 70.0
"""Range of the colour scale in dB below a clip's loudest point."""


def mel_levels(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the mel spectrogram of one clip, "band frame", in dB relative to its loudest point (-70 to 0)."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=np.asarray(samples, dtype=np.float32).reshape(-1, samples.shape[-1]).mean(0), sr=sample_rate, n_fft=1024,
        hop_length=256, n_mels=72, fmax=sample_rate / 2,
    )  # fmt: skip
    return librosa.power_to_db(np.maximum(power, 1e-10), ref=float(max(power.max(), 1e-10)), top_db=DEPTH_DB)


def one(samples: np.ndarray, sample_rate: int, title: str = "", axes: Axes | None = None) -> Figure | Axes:
    """Draw the mel spectrogram of one clip, in dB relative to its loudest point, into a new figure or into `axes`."""
    import librosa

    level = mel_levels(samples, sample_rate)
    seconds = samples.shape[-1] / sample_rate

    def draw(target: Axes) -> None:
        target.imshow(
            level,
            origin="lower",
            aspect="auto",
            cmap="viridis",
            vmin=-DEPTH_DB,
            vmax=0,
            extent=(0, seconds, 0, len(level)),
        )
        ticks = [hertz for hertz in (500, 1000, 2000, 4000, 8000) if hertz <= sample_rate / 2]
        edges = librosa.mel_frequencies(len(level) + 2, fmin=0.0, fmax=sample_rate / 2)
        target.set_yticks(np.interp(ticks, edges, np.arange(len(edges)) - 0.5), [f"{t / 1000:g}" for t in ticks])
        target.grid(False)
        target.set_title(title, fontsize=9)

    if axes is not None:
        draw(axes)
        return axes
    with styled():
        figure = canvas((3.4, 2.0))
        own = figure.add_subplot()
        draw(own)
        own.set_xlabel("time [s]")
        own.set_ylabel("frequency [kHz]")
    return figure


def paired(
    grid: Sequence[Sequence[np.ndarray]], sample_rate: int, rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Draw mel spectrograms of paired clips, with one row per (prompt, seed) and one column per condition.

    All panels share one scale in dB.
    """
    with styled():
        figure = canvas((2.5 * len(columns), 1.75 * len(rows) + 0.4))
        panels = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        for line, clips, panel_row in zip(rows, grid, panels, strict=True):
            for column, clip, axes in zip(columns, clips, panel_row, strict=True):
                one(clip, sample_rate, column if axes in panels[0] else "", axes)
            panel_row[0].set_ylabel(f"{line}\nfrequency [kHz]", fontsize=7)
        for axes in panels[-1]:
            axes.set_xlabel("time [s]", fontsize=8)
        image = panels[0, 0].images[0]
        figure.colorbar(image, ax=panels, shrink=0.7, label="level [dB relative to the loudest point]", pad=0.01)
    return figure
