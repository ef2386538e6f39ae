"""Measure register, key and mode of polyphonic music from its spectrum, without transcription."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from audiolens.door import guarded
from audiolens.measure.clips import Audio, Clip, once, per_row
from audiolens.measure.onsets import vertex

LOWEST_HZ, HIGHEST_HZ = 140.0, 1_200.0
"""The range of a melody: above the bass, and below frequencies dominated by harmonics."""
CHROMA_HZ = (100.0, 1_000.0)
"""The range used for pitch classes. Above it, fifth harmonics would add a major third even in a minor key."""
MODE_HZ = (100.0, 600.0)
"""The range used for the mode, narrower than `CHROMA_HZ` because of the same harmonics. With partials up to 1000 Hz,
clips steered to minor were measured as neutral, although their spectra and a key network show minor thirds
(docs/ears.md)."""
AUDIBLE_SHARE, MODE_SHARE = 0.01, 0.03
"""Peaks below this fraction of the strongest partial are ignored, because a codec leaves faint tones between notes."""
KEY_HZ = (50.0, 400.0)
"""The range in which bass and chords determine the tonic, below most of the melody and the harmonics."""
LEAST_TONALITY_DB = 14.0
"""A sound has pitch if its strongest partial exceeds its surroundings by this much (music: 20 to 50 dB, noise: 9)."""
FEWEST_CLASSES = 3
LEAST_SHARE = 0.025
"""A pitch class counts as played if it has more than this share of the energy. The clicks of short notes leave 2% in a
neighbouring class, and in 95% of étude's synthesised clips the third of the key has at least 3.6%."""
LEAST_KEY_MARGIN = 0.05
"""The smallest margin by which the best tonic's correlation must exceed the second best's.

With this value, a ninth of étude's synthesised clips have no key.
"""
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
"""Key profiles, which rate how well each semitone above the tonic fits the key (Krumhansl and Kessler 1982)."""


@guarded
def pitch(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the register in Hz: the energy-weighted median over frames of the strongest partial from 140 to 1200 Hz.

    The value follows the register of the melody (with a rank correlation of about .95 on étude's synthesised clips,
    regardless of their brightness). It is not a transcription: in a chord it follows the loudest partial. The result is
    NaN for silence, for noise, and for a sound without partials from 140 to 1200 Hz.
    """
    return per_row(audio, sample_rate, register_hz)


@guarded
def pitch_class(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the tonic of the key in semitones above C, 0 to 11.

    The key is the major or minor key that best fits the notes below 400 Hz, by the profiles of Krumhansl and Kessler,
    as in `mode`. If a sound has a single pitch class, that class is its tonic. A few seconds rarely determine a key:
    the tonic is correct for 82% of étude's synthesised clips (chance 17%). The result is NaN if two tonics fit almost
    equally well, and for silence, noise, and sounds with two pitch classes. The values lie on a circle, so do not
    average them.
    """
    return per_row(audio, sample_rate, key_tonic)


@guarded
def mode(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the mode of the key as a score from -2 (minor) to 2 (major).

    The value is the chroma's best correlation with a major profile minus its best correlation with a minor profile. The
    correlations use Krumhansl and Kessler's profiles on all twelve tonics and the partials from 100 to 600 Hz. A few
    seconds rarely determine the mode, so interpret the sign of the mean over many clips, not the sign of a single clip.
    The result is NaN for silence, noise, and fewer than three pitch classes (in total, or from 100 to 600 Hz).
    """
    return per_row(audio, sample_rate, major_minor)


def key_tonic(clip: Clip) -> float:
    """Return the `pitch_class` of one clip."""
    profile = _clear_chroma(clip)
    if profile is None:
        return float("nan")
    played = _played(clip)
    if len(played) == 1:
        return float(played[0])
    low = chroma(clip, KEY_HZ)
    if len(played) < FEWEST_CLASSES or _n_classes(low) < FEWEST_CLASSES:
        return float("nan")
    fit = np.maximum(_keys(low, MAJOR), _keys(low, MINOR))
    second, first = np.sort(fit)[-2:]
    return float(np.argmax(fit)) if first - second >= LEAST_KEY_MARGIN else float("nan")


def register_hz(clip: Clip) -> float:
    """Return the `pitch` of one clip."""
    if clip.silent:
        return float("nan")
    partials = _strongest_partials(clip, LOWEST_HZ, HIGHEST_HZ)
    if partials.tonality_db < LEAST_TONALITY_DB:
        return float("nan")
    order = np.argsort(partials.frequency_hz)
    energy = np.cumsum(partials.power[order])
    return float(partials.frequency_hz[order][np.searchsorted(energy, energy[-1] / 2)])


def major_minor(clip: Clip) -> float:
    """Return the `mode` of one clip."""
    if _clear_chroma(clip) is None or len(_played(clip)) < FEWEST_CLASSES:
        return float("nan")
    profile = chroma(clip, MODE_HZ, audible=MODE_SHARE)
    if _n_classes(profile) < FEWEST_CLASSES:
        return float("nan")
    return float(_keys(profile, MAJOR).max() - _keys(profile, MINOR).max())


@once
def _clear_chroma(clip: Clip) -> Float[np.ndarray, "12"] | None:
    """Return the `chroma` of a clip that has pitch; `None` for silence and noise."""
    if clip.silent or _strongest_partials(clip, *CHROMA_HZ).tonality_db < LEAST_TONALITY_DB:
        return None
    return chroma(clip)


def chroma(
    clip: Clip, band_hz: tuple[float, float] = CHROMA_HZ, power: float = 0.2, audible: float = AUDIBLE_SHARE
) -> Float[np.ndarray, "12"]:
    """Return the strength of each pitch class (0 = C): the sum of its peaks' magnitudes in a band, raised to a power.

    With the default power, a fifth root, the sum reflects how many notes there are rather than how loud they are, so
    that bass and chords do not mask the third of the key.
    """
    magnitude = clip.pitch_spectrum
    heard = np.where(magnitude > magnitude.max() * audible, magnitude, 0.0)
    inner = heard[1:-1]
    bins, frames = np.nonzero((inner > heard[2:]) & (inner >= heard[:-2]))
    bins = bins + 1
    bin_hz = clip.sample_rate / (2 * (len(magnitude) - 1))
    peaks_hz = (bins + _offset(magnitude, bins, frames)) * bin_hz
    inside = (peaks_hz >= band_hz[0]) & (peaks_hz <= band_hz[1])
    classes = np.round(12 * np.log2(peaks_hz[inside] / 440) + 9).astype(int) % 12
    # Without peaks, bincount returns integers.
    return np.bincount(classes, weights=magnitude[bins, frames][inside] ** power, minlength=12).astype(float)


def _played(clip: Clip) -> Int[np.ndarray, " class"]:
    """Return the pitch classes with more than `LEAST_SHARE` of the energy."""
    energy = chroma(clip, power=2.0)
    return np.flatnonzero(energy > LEAST_SHARE * energy.sum())


def _n_classes(profile: Float[np.ndarray, "12"]) -> int:
    return int((profile > 0.05 * profile.max()).sum())


def _keys(profile: Float[np.ndarray, "12"], key: Float[np.ndarray, "12"]) -> Float[np.ndarray, "12"]:
    """Return the correlation of a chroma with a key's profile on each tonic."""
    return np.array([np.corrcoef(profile, np.roll(key, tonic))[0, 1] for tonic in range(12)])


def _offset(magnitude: np.ndarray, bins: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return the offset of each peak from its bin: the vertex of a parabola through three log magnitudes."""
    before, at, after = (np.log(magnitude[bins + step, frames] + 1e-9) for step in (-1, 0, 1))
    return vertex(before, at, after)


@dataclass(frozen=True)
class _Partials:
    """The strongest partial of each frame, and how far these partials exceed the spectrum around them.

    `tonality_db` is the weighted mean over frames of the partial's level above the spectrum within half an octave on
    either side.
    """

    frequency_hz: Float[np.ndarray, " frame"]
    power: Float[np.ndarray, " frame"]
    tonality_db: float


def _strongest_partials(clip: Clip, lowest_hz: float, highest_hz: float) -> _Partials:
    magnitude = clip.pitch_spectrum
    bins_hz = clip.bins_hz(2 * (len(magnitude) - 1))
    band = np.flatnonzero((bins_hz >= lowest_hz) & (bins_hz <= min(highest_hz, bins_hz[-2])))
    frames = np.arange(magnitude.shape[1])
    bins = band[magnitude[band].argmax(axis=0)]
    power = magnitude[bins, frames] ** 2
    # At the edge of the band, the strongest bin may be on the slope of a peak outside the band, so it gets no weight.
    on_top = (magnitude[bins, frames] >= magnitude[bins - 1, frames]) & (
        magnitude[bins, frames] >= magnitude[bins + 1, frames]
    )
    power = np.where(on_top, power, 0.0)
    if power.sum() <= 1e-6 * np.square(magnitude).sum():
        return _Partials(bins_hz[bins], power, float("-inf"))
    around = np.round(bins * 2 ** np.linspace(-0.5, 0.5, 25)[:, None]).astype(int).clip(1, len(bins_hz) - 1)
    floor = np.median(magnitude[around, frames] ** 2, axis=0)
    stands_out_db = 10 * np.log10((power + 1e-20) / (floor + 1e-20))
    frequency_hz = (bins + _offset(magnitude, bins, frames)) * bins_hz[1]
    return _Partials(frequency_hz, power, float(np.average(stands_out_db, weights=power)))
