"""What the page draws of a clip: its waveform and its mel spectrogram, as small numbers."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis.figures.spectrograms import DEPTH_DB, mel_levels

COLUMNS = 320
"""The number of columns in which the waveform and the spectrogram are sent."""


def waveform(samples: Float[np.ndarray, "channel sample"]) -> dict[str, list[float]]:
    """Return the lowest and the highest sample of every column."""
    parts = np.array_split(samples.mean(0), min(COLUMNS, samples.shape[-1]))
    return {
        "low": [round(float(part.min()), 3) for part in parts],
        "high": [round(float(part.max()), 3) for part in parts],
    }


def spectrogram(samples: Float[np.ndarray, "channel sample"], sample_rate: int) -> dict[str, Any]:
    """Return the mel spectrogram in bytes, row by row from the highest band, where 255 is the loudest point."""
    levels = mel_levels(samples, sample_rate)
    columns = np.linspace(0, levels.shape[1] - 1, min(COLUMNS, levels.shape[1])).round().astype(int)
    shades = np.clip(1 + levels[::-1, columns] / DEPTH_DB, 0, 1) * 255
    content = base64.b64encode(shades.round().astype(np.uint8).tobytes()).decode()
    return {"width": len(columns), "height": len(levels), "bytes": content, "top_hz": sample_rate / 2}
