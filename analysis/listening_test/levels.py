"""The sounds of a listening test: matched levels, low-passed anchors, and attention checks with an obvious answer.

Loudness is that of ITU-R BS.1770-4, as pyloudnorm computes it. Level differences would otherwise decide the answers,
because louder clips sound brighter and better.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float
from scipy import signal

from audiolens.errors import InputError

TARGET_LUFS = -23.0
"""Loudness of the clips (EBU R 128). The clips of a trial are all quieter if one of them would exceed `PEAK`."""
PEAK = 10 ** (-1 / 20)
"""The largest sample of a clip: 1 dB below full scale."""
SHORTEST_SECONDS = 0.4
"""The length of one block, the shortest sound whose loudness is defined."""
PACKAGES = ("pyloudnorm", "choix")
_RATIO = 2.0
"""How much faster one clip of an attention check is than the other."""
_ORDER = 8

Sound = Float[np.ndarray, "channel sample"]


def refuse_missing() -> None:
    """Raise an error if a package of `audiolens[listening]` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"listening tests need {' and '.join(missing)}, not installed here: pip install 'audiolens[listening]'."
        )


def loudness(samples: Sound, sample_rate: int) -> float:
    """Return the integrated loudness in LUFS; minus infinity for silence.

    Raises:
        InputError: if the clip is shorter than one block (0.4 s).
    """
    from pyloudnorm import Meter

    if samples.shape[-1] < SHORTEST_SECONDS * sample_rate:
        raise InputError(
            f"a clip of {samples.shape[-1] / sample_rate:.2f} s: expected at least {SHORTEST_SECONDS} s, the shortest "
            "sound that has a loudness."
        )
    return float(Meter(sample_rate).integrated_loudness(samples.T.astype(np.float64)))


def matched(clips: Sequence[Sound], sample_rate: int) -> list[Sound] | None:
    """Scale clips to the same loudness, without clipping any of them; `None` if one of them is silent.

    The clips also get the same length, that of the shortest, so that the sizes of their files do not differ.
    """
    length = min(clip.shape[-1] for clip in clips)
    cut = [clip[:, :length] for clip in clips]
    levels = np.array([loudness(clip, sample_rate) for clip in cut])
    if not np.isfinite(levels).all():
        return None
    headroom = levels + 20 * np.log10([PEAK / np.abs(clip).max() for clip in cut])
    target = min(TARGET_LUFS, float(headroom.min()))
    return [(clip * 10 ** ((target - level) / 20)).astype(np.float32) for clip, level in zip(cut, levels, strict=True)]


def low_passed(samples: Sound, sample_rate: int, cutoff_hz: float) -> Sound:
    """Return a clip without its frequencies above a cutoff (Butterworth, applied forwards and backwards)."""
    filtered = signal.sosfiltfilt(signal.butter(_ORDER, cutoff_hz, fs=sample_rate, output="sos"), samples, axis=-1)
    return filtered.astype(np.float32)


def removed_share(samples: Sound, filtered: Sound) -> float:
    """Return the share of a clip's energy that a filter removed."""
    return float(1 - (filtered.astype(np.float64) ** 2).sum() / (samples.astype(np.float64) ** 2).sum())


def much_and_little(samples: Sound) -> tuple[Sound, Sound]:
    """Return a clip played faster and slower, by a factor of 2 between them, repeated or cut to the clip's length.

    As the pitch moves with the speed, the first one is also brighter, higher and busier than the second.
    """
    fast, slow = (_resampled(samples, factor) for factor in (_RATIO**0.5, _RATIO**-0.5))
    return fast, slow


def clean_and_noisy(samples: Sound, seed: int) -> tuple[Sound, Sound]:
    """Return a clip as it is, and under white noise of the same power."""
    noise = np.random.default_rng(seed).normal(size=samples.shape)
    return samples, (samples + noise * np.sqrt((samples.astype(np.float64) ** 2).mean())).astype(np.float32)


def dithered(samples: Sound) -> Sound:
    """Return a clip with the noise of one 16-bit step, so that no two files of the same sound have the same bytes."""
    return (samples + np.random.default_rng().triangular(-1, 0, 1, samples.shape) / 2**15).astype(np.float32)


def pink_noise(seconds: float, sample_rate: int) -> Sound:
    """Return noise with equal power per octave, by which listeners set their volume."""
    n = round(seconds * sample_rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(size=n))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, n)[None].astype(np.float32)


def _resampled(samples: Sound, factor: float) -> Sound:
    n = samples.shape[-1]
    played: np.ndarray = signal.resample(samples, round(n / factor), axis=-1)  # pyright: ignore[reportAssignmentType]
    repeats = -(-n // played.shape[-1])
    return np.tile(played, (1, repeats))[:, :n].astype(np.float32)
