"""Measure rhythm: tempo, onset rate and pulse clarity.

Tempo and note density are different: a slow piece can have many notes. `onset_rate` counts all onsets; `tempo` measures
the period of the pulse ("beat") or the median interval between accents ("ioi"). All of these measures use the clip's
onset envelope.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.measure.beats import beat_this_tempo
from audiolens.measure.clips import Audio, Clip, once, per_row, read
from audiolens.measure.onsets import peaks_seconds, vertex

SLOWEST_BPM, FASTEST_BPM = 40.0, 240.0
ACCENT_SHARE = 0.5
"""An accent reaches at least this fraction of the height of its clip's strong onsets."""
FEWEST_ONSETS = 4
OCTAVES = (1 / 3, 1 / 2, 2.0, 3.0)
OCTAVE_TOLERANCE = 0.04
LEAST_CLARITY = 0.3
"""The lowest pulse clarity at which a clip has a beat.

Clicks at random times have a pulse clarity of about 0.2, and étude's synthesised music has 0.5 to 1.
"""

TempoMethod = Literal["beat", "ioi", "beat_this"]


@guarded
def tempo(
    audio: Audio, sample_rate: float | None = None, method: TempoMethod = "beat"
) -> float | Float[np.ndarray, " row"]:
    """Return the tempo in beats per minute, in [40, 240], without a prior that favours any tempo.

    Args:
        audio: [sample], [channel, sample] or [row, channel, sample] (channels are averaged), a sound file, a
            generation, or a list of these.
        sample_rate: sample rate of arrays, in Hz.
        method: `"beat"` finds the highest peak in the autocorrelation of the onset envelope, as in
            `librosa.feature.tempo` with a uniform prior, with the period interpolated between frames. `"ioi"` is 60
            over the median interval between accents (onsets in most frequency bands), and can be outside [40, 240].
            `"beat_this"` is 60 over the median interval between the beats of Beat This (ISMIR 2024), the tracker used
            by Facchiano et al. (2025). It needs `pip install 'audiolens[beats]'`.

    Returns:
        BPM per row; NaN for silence, for fewer than four onsets (or beats) and, for "beat", if the envelope is not
        periodic, as in noise.

    Listeners disagree about whether to halve or double the beat, and "beat" can also report half or double the tempo
    (64 BPM for 20 s of clicks at 128 BPM). `tempo_octave` is the runner-up, and `tempo_ambiguity` shows how close the
    two tempi are. `table` contains all three values.
    """
    methods = {"beat": beat_tempo, "ioi": ioi_tempo, "beat_this": beat_this_tempo}
    if method not in methods:
        raise InputError(f"method is {shown(method)}; expected 'beat', 'ioi' or 'beat_this'")
    return per_row(audio, sample_rate, methods[method])


@guarded
def tempo_ambiguity(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the pulse clarity of the best tempo an octave (or a twelfth) away, relative to that of `tempo`, from 0 to
    1.

    The value is the pulse clarity of the strongest rival tempo divided by the pulse clarity of `tempo`. Rivals are
    half, double, a third and three times the tempo ("beat"), to within 4%, in [40, 240] BPM; `tempo_candidates` lists
    them. If the value is near 1, the octave is arbitrary, and a jump by an octave under steering is not a change of
    pace. The result is 0 if the envelope has no peak at any rival, and NaN if the tempo is NaN.
    """
    return per_row(audio, sample_rate, ambiguity)


@guarded
def tempo_octave(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the runner-up tempo in BPM: half, double, a third or three times `tempo` ("beat").

    `tempo_ambiguity` compares the two tempi. The result is NaN if the envelope has no peak at any of the four rivals,
    or if the tempo is NaN.
    """
    return per_row(audio, sample_rate, octave_tempo)


@guarded
def onset_rate(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return the onsets per second over all instruments; 0 for a sound without onsets, NaN for silence."""
    return per_row(audio, sample_rate, rate_of_onsets)


@guarded
def pulse_clarity(audio: Audio, sample_rate: float | None = None) -> float | Float[np.ndarray, " row"]:
    """Return how regular the pulse is, 0 to 1: the autocorrelation of the onset envelope at the beat's period.

    The measure is based on Lartillot et al. (ISMIR 2008). The result is 0 for a sound with fewer than four onsets, and
    NaN for silence.
    """
    return per_row(audio, sample_rate, clarity_of_pulse)


@guarded
def tempo_candidates(audio: Audio, sample_rate: float | None = None, n: int = 3) -> list[tuple[float, float]]:
    """Return the `n` most likely tempi of one clip as (BPM, pulse clarity), best first, to show octave ambiguity."""
    clips, many = read(audio, sample_rate)
    if many and len(clips) > 1:
        raise InputError(f"audio has {len(clips)} rows; tempo_candidates takes one clip at a time")
    return _periods(clips[0])[:n]


def beat_tempo(clip: Clip) -> float:
    """Return `tempo(..., method="beat")` of one clip."""
    periods = _periods(clip)
    if not periods or periods[0][1] < LEAST_CLARITY:
        return float("nan")
    return periods[0][0]


def ambiguity(clip: Clip) -> float:
    """Return the `tempo_ambiguity` of one clip."""
    if np.isnan(beat_tempo(clip)):
        return float("nan")
    _, strength = _rival(clip)
    return strength / _periods(clip)[0][1]


def octave_tempo(clip: Clip) -> float:
    """Return the `tempo_octave` of one clip."""
    return _rival(clip)[0]


def _rival(clip: Clip) -> tuple[float, float]:
    """Return (BPM, height) of the strongest peak an octave or a twelfth from `beat_tempo`, else (NaN, 0)."""
    bpm = beat_tempo(clip)
    rivals = [
        (other, strength)
        for other, strength in _periods(clip)
        if any(abs(other / (ratio * bpm) - 1) < OCTAVE_TOLERANCE for ratio in OCTAVES)
    ]
    return max(rivals, key=lambda rival: rival[1], default=(float("nan"), 0.0))


def ioi_tempo(clip: Clip) -> float:
    """Return `tempo(..., method="ioi")` of one clip."""
    if clip.silent:
        return float("nan")
    envelope = clip.onset_envelope
    accents = peaks_seconds(envelope.median, envelope.frame_rate, ACCENT_SHARE)
    if len(accents) < FEWEST_ONSETS:
        # A sound in few bands (a flute, a sine) has onsets, but no onset in most bands at once.
        accents = peaks_seconds(envelope.mean, envelope.frame_rate, ACCENT_SHARE)
    if len(accents) < FEWEST_ONSETS:
        return float("nan")
    return 60 / float(np.median(np.diff(accents)))


def rate_of_onsets(clip: Clip) -> float:
    """Return the `onset_rate` of one clip."""
    return float("nan") if clip.silent else len(onsets_seconds(clip)) / clip.seconds


def clarity_of_pulse(clip: Clip) -> float:
    """Return the `pulse_clarity` of one clip."""
    if clip.silent:
        return float("nan")
    periods = _periods(clip)
    return periods[0][1] if periods else 0.0


@once
def onsets_seconds(clip: Clip) -> Float[np.ndarray, " onset"]:
    """Return the onset times of notes and drum strokes in seconds; empty for silence."""
    if clip.silent:
        return np.zeros(0)
    envelope = clip.onset_envelope
    return peaks_seconds(envelope.mean, envelope.frame_rate)


@once
def _periods(clip: Clip) -> list[tuple[float, float]]:
    """Return the peaks of the envelope's autocorrelation in the tempo range as (BPM, height), highest first."""
    import librosa
    from scipy.signal import find_peaks

    if clip.silent or len(onsets_seconds(clip)) < FEWEST_ONSETS:
        return []
    envelope = clip.onset_envelope
    # The window slightly favours short periods, as in librosa's tempogram, because a bar repeats as exactly as a beat.
    strength = (envelope.mean - envelope.mean.mean()) * np.hanning(len(envelope.mean))
    likeness = librosa.autocorrelate(strength)
    likeness = likeness / likeness[0]
    lags = find_peaks(likeness)[0]
    before, at, after = likeness[lags - 1], likeness[lags], likeness[lags + 1]
    # Interpolate heights too. Otherwise a period of whole frames would score higher than an octave of it that falls
    # between frames.
    between = vertex(before, at, after)
    heights = at - 0.25 * (before - after) * between
    bpm = 60 * envelope.frame_rate / (lags + between)
    inside = (bpm >= SLOWEST_BPM) & (bpm <= FASTEST_BPM)
    candidates = zip(bpm[inside].tolist(), heights[inside].tolist(), strict=True)
    return sorted(candidates, key=lambda candidate: -candidate[1])
