"""Measure timbre and level: spectral centroid (per frame and of the whole clip), rolloff and loudness."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from audiolens.door import guarded
from audiolens.measure.clips import Audio, Clip, once, per_row

GATE_DB = 40.0
"""Frames at least this far below the clip's loudest frame count as pauses. They contain only the noise floor."""


ROLLOFF_SHARE = 0.85


@guarded
def brightness(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the spectral centroid in Hz: the magnitude-weighted mean frequency, averaged over all frames except
    pauses.

    This is the measure of timbre in Facchiano et al. (2025) (librosa's `spectral_centroid`), without pauses. The result
    is NaN for silence. The sample rate limits the highest frequency, so compare only clips with the same sample rate.
    For example, the brightness of white noise is a quarter of the sample rate.
    """
    return per_row(audio, sample_rate, centroid_hz)


@guarded
def ltas_centroid(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the centroid in Hz of the clip's long-term average spectrum (LTAS; the root mean square over frames).

    `brightness` gives every sounding frame the same weight, so a faster or slower decay changes it even if the notes
    are as bright as before. In the LTAS, loud frames have more weight. The two measures agree on a steady sound. The
    result is NaN for silence.
    """
    return per_row(audio, sample_rate, ltas_centroid_hz)


@guarded
def rolloff(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the spectral rolloff in Hz: the frequency below which 85% of the magnitude lies, averaged over frames.

    This is librosa's `spectral_rolloff`, without pauses. It measures the upper end of the spectrum, whereas
    `brightness` measures its centre. The result is NaN for silence. The resolution is one bin of the spectrum (about 16
    Hz).
    """
    return per_row(audio, sample_rate, rolloff_hz)


@guarded
def loudness(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the root mean square level in dB relative to full scale (-3 for a full-scale sine); -inf for digital
    silence.

    Channels are averaged first, as for every measure, so channels in antiphase cancel. Any DC offset is removed. No
    perceptual weighting is applied, so the unit is not LUFS.
    """
    return per_row(audio, sample_rate, level_dbfs)


def centroid_hz(clip: Clip) -> float:
    """Return the `brightness` of one clip."""
    if clip.silent:
        return float("nan")
    sounding, bins_hz = _sounding(clip)
    return float(np.mean(bins_hz @ sounding / sounding.sum(axis=0)))


def ltas_centroid_hz(clip: Clip) -> float:
    """Return the `ltas_centroid` of one clip."""
    if clip.silent:
        return float("nan")
    magnitude = clip.timbre_spectrum
    average = np.sqrt(np.square(magnitude).mean(axis=1))
    return float(clip.bins_hz(2 * (len(magnitude) - 1)) @ average / average.sum())


def rolloff_hz(clip: Clip) -> float:
    """Return the `rolloff` of one clip."""
    if clip.silent:
        return float("nan")
    sounding, bins_hz = _sounding(clip)
    below = np.cumsum(sounding, axis=0)
    return float(np.mean(bins_hz[(below < ROLLOFF_SHARE * below[-1]).sum(axis=0)]))


def level_dbfs(clip: Clip) -> float:
    """Return the `loudness` of one clip."""
    return clip.loudness_dbfs


@once
def _sounding(clip: Clip) -> tuple[Float[np.ndarray, "bin frame"], Float[np.ndarray, " bin"]]:
    """Return the spectra of the frames that are not pauses, and the frequencies of their bins."""
    magnitude = clip.timbre_spectrum
    level = np.sqrt(np.square(magnitude).sum(axis=0))
    return magnitude[:, level > level.max() * 10 ** (-GATE_DB / 20)], clip.bins_hz(2 * (len(magnitude) - 1))
