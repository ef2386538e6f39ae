"""The onset envelope and its peaks: when notes and drum strokes begin.

The envelope is the spectral flux on mel bands in dB, as in Böck and Widmer (DAFx 2013). Its scale is absolute (the rise
in dB, averaged over bands), so that onsets can be separated from the random fluctuations of noise. `clips`, `rhythm`
and `pitch` import from this module, so it must not import them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FLUX_LAG = 2
N_MELS = 40
HIGHEST_HZ = 8_000.0
"""The upper frequency limit of the envelope, so that files at all rates from 16 kHz up are measured in the same way."""
DYNAMIC_RANGE_DB = 60.0
RISE_DB = 3.0
"""The smallest mean rise over all bands that counts as an onset; white noise fluctuates by 1 to 2.6 dB."""
CLOSEST_SECONDS = 0.05


@dataclass(frozen=True)
class Envelope:
    """Onset strength over time: `mean` over mel bands shows any onset, `median` only onsets in most bands (accents)."""

    mean: Float[np.ndarray, " frame"]
    median: Float[np.ndarray, " frame"]
    frame_rate: float


def envelope(magnitude: Float[np.ndarray, "bin frame"], sample_rate: int, hop: int) -> Envelope:
    """Return the mean and median rise of the bands over two frames, ignoring levels 60 dB below the clip's maximum."""
    import librosa

    highest_hz = min(HIGHEST_HZ, sample_rate / 2)
    bands = librosa.feature.melspectrogram(S=magnitude**2, sr=sample_rate, n_mels=N_MELS, fmax=highest_hz)
    level_db = librosa.power_to_db(bands, ref=np.max, top_db=DYNAMIC_RANGE_DB)
    rise_db = np.maximum(level_db[:, FLUX_LAG:] - level_db[:, :-FLUX_LAG], 0.0)
    return Envelope(rise_db.mean(axis=0), np.median(rise_db, axis=0), sample_rate / hop)


def peaks_seconds(
    strength: Float[np.ndarray, " frame"], frame_rate: float, share: float = 0.0
) -> Float[np.ndarray, " onset"]:
    """Return the times in seconds of peaks that reach both `RISE_DB` and `share` times the height of strong peaks."""
    from scipy.signal import find_peaks

    distance = max(round(CLOSEST_SECONDS * frame_rate), 1)
    found, shape = find_peaks(strength, height=RISE_DB, prominence=RISE_DB * 2 / 3, distance=distance)
    if len(found) and share:
        heights = shape["peak_heights"]
        found = found[heights >= share * np.quantile(heights, 0.9)]
    return (found + vertex(strength[found - 1], strength[found], strength[found + 1])) / frame_rate


def vertex(
    before: Float[np.ndarray, " peak"], at: Float[np.ndarray, " peak"], after: Float[np.ndarray, " peak"]
) -> Float[np.ndarray, " peak"]:
    """Return the offset, within half a step, of the vertex of a parabola through three neighbouring values."""
    bend = before - 2 * at + after
    return np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0).clip(-0.5, 0.5)
