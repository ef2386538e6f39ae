"""Brightness, rolloff and loudness: what is heard of a clip's colour and level."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from audiolens.door import guarded
from audiolens.measure.clips import Audio, Clip, once, per_row

GATE_DB = 40.0
"""Frames this far below the clip's loudest are pauses, whose colour is that of the noise floor."""


ROLLOFF_SHARE = 0.85


@guarded
def brightness(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Spectral centroid in Hz: the mean over sounding frames of the magnitude-weighted mean frequency.

    The paper's measure of timbre (librosa's `spectral_centroid`), but pauses do not count. NaN for silence. Sounds of
    different sample rates reach differently high: compare clips of one rate. White noise has a quarter of the rate.
    """
    return per_row(audio, sample_rate, centroid_hz)


@guarded
def rolloff(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Spectral rolloff in Hz: the frequency below which 85% of the magnitude lies, the mean over sounding frames.

    librosa's `spectral_rolloff`, but pauses do not count. How far up the sound reaches; `brightness` is its middle.
    NaN for silence. Resolved to a bin of the spectrum (about 16 Hz).
    """
    return per_row(audio, sample_rate, rolloff_hz)


@guarded
def loudness(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Root mean square in dB relative to full scale (a full-scale sine has -3); -inf for digital silence.

    Channels are averaged first, as for every measure: opposite channels cancel. A constant offset does not count. Not
    weighted for the ear (no LUFS).
    """
    return per_row(audio, sample_rate, level_dbfs)


def centroid_hz(clip: Clip) -> float:
    """`brightness` of one clip."""
    if clip.silent:
        return float("nan")
    sounding, bins_hz = _sounding(clip)
    return float(np.mean(bins_hz @ sounding / sounding.sum(axis=0)))


def rolloff_hz(clip: Clip) -> float:
    """`rolloff` of one clip."""
    if clip.silent:
        return float("nan")
    sounding, bins_hz = _sounding(clip)
    below = np.cumsum(sounding, axis=0)
    return float(np.mean(bins_hz[(below < ROLLOFF_SHARE * below[-1]).sum(axis=0)]))


def level_dbfs(clip: Clip) -> float:
    """`loudness` of one clip."""
    return clip.loudness_dbfs


@once
def _sounding(clip: Clip) -> tuple[Float[np.ndarray, "bin frame"], Float[np.ndarray, " bin"]]:
    """The spectra of the frames that are no pauses, and the frequencies of their bins."""
    magnitude = clip.timbre_spectrum
    level = np.sqrt(np.square(magnitude).sum(axis=0))
    return magnitude[:, level > level.max() * 10 ** (-GATE_DB / 20)], clip.bins_hz(2 * (len(magnitude) - 1))
