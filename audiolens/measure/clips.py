"""What every measure listens to: audio of any layout, checked at the door, as mono clips that share their spectra.

Called by the other modules of `audiolens.measure`. A `Clip` computes each spectrum and the onset envelope once, so that
tempo, onset rate and brightness together cost little more than one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from audiolens.measure.onsets import Envelope, envelope

SILENCE_DBFS = -60.0
"""A clip quieter than this (root mean square) is silent: nothing about it but its loudness is measured."""
SHORTEST_SECONDS = 0.1
MOST_CHANNELS = 8
RATES_HZ = (4_000, 384_000)


@runtime_checkable
class Audio(Protocol):
    """A numpy array or torch tensor: [sample], [channel, sample] or [row, channel, sample]."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Clip:
    """One mono sound. Spectra are magnitudes [bin, frame] of Hann windows that lie wholly inside the clip."""

    samples: Float[np.ndarray, " sample"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @cached_property
    def loudness_dbfs(self) -> float:
        """Root mean square in dB relative to full scale; -inf for digital silence."""
        power = float(np.mean(np.square(self.samples, dtype=np.float64)))
        return 10 * float(np.log10(power)) if power > 0 else float("-inf")

    @property
    def silent(self) -> bool:
        return self.loudness_dbfs < SILENCE_DBFS

    def window(self, seconds: float) -> int:
        """The power of two nearest to `seconds` in samples (but no longer than the clip)."""
        n = 2 ** round(np.log2(seconds * self.sample_rate))
        return min(n, 2 ** int(np.log2(len(self.samples))))

    def spectrum(self, n_fft: int, hop: int) -> Float[np.ndarray, "bin frame"]:
        import librosa

        return np.abs(librosa.stft(self.samples, n_fft=n_fft, hop_length=hop, center=False))

    def bins_hz(self, n_fft: int) -> Float[np.ndarray, " bin"]:
        return np.fft.rfftfreq(n_fft, 1 / self.sample_rate)

    @cached_property
    def timbre_spectrum(self) -> Float[np.ndarray, "bin frame"]:
        """64 ms windows every 32 ms: `brightness`."""
        n_fft = self.window(0.064)
        return self.spectrum(n_fft, n_fft // 2)

    @cached_property
    def onset_envelope(self) -> Envelope:
        """32 ms windows every 8 ms: everything of `rhythm`."""
        hop = round(0.008 * self.sample_rate)
        return envelope(self.spectrum(self.window(0.032), hop), self.sample_rate, hop)

    @cached_property
    def pitch_spectrum(self) -> Float[np.ndarray, "bin frame"]:
        """128 ms windows every 32 ms: `pitch` and `mode`."""
        n_fft = self.window(0.128)
        return self.spectrum(n_fft, n_fft // 4)


def read(audio: Audio, sample_rate: float) -> tuple[list[Clip], bool]:
    """Check `audio` and mix each row down to a mono `Clip`; the flag says whether there is a row axis.

    Signed 16- and 32-bit integers are PCM and scaled to [-1, 1); other integers are refused.

    Raises:
        TypeError: not an array or tensor, or of a type that no sound has.
        ValueError: of the wrong shape, too short, not finite, or with an impossible sample rate.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real):
        raise TypeError(f"sample_rate is {sample_rate!r}; give the samples per second as a number, e.g. 16000")
    if not RATES_HZ[0] <= sample_rate <= RATES_HZ[1]:
        low, high = RATES_HZ
        raise ValueError(f"sample_rate is {sample_rate}, expected {low} to {high} Hz; give the audio's own rate")
    samples = _as_float(audio)
    if samples.ndim not in (1, 2, 3):
        raise ValueError(
            f"audio has shape {samples.shape}; expected [sample], [channel, sample] or [row, channel, sample]"
        )
    rows = samples.reshape((1,) * (3 - samples.ndim) + samples.shape)
    if not len(rows):
        raise ValueError("audio has no rows; give at least one clip")
    _, n_channels, n_samples = rows.shape
    if not 1 <= n_channels <= MOST_CHANNELS:
        raise ValueError(
            f"audio of shape {samples.shape} has {n_channels} channels, expected 1 to {MOST_CHANNELS}; "
            "mono rows need a channel axis (audio[:, None]), and [sample, channel] files a transpose (audio.T)"
        )
    if n_samples < SHORTEST_SECONDS * sample_rate:
        raise ValueError(
            f"audio has {n_samples} samples ({n_samples / sample_rate:.3f} s at {sample_rate} Hz); "
            f"a measure needs at least {SHORTEST_SECONDS} s"
        )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))
    if len(broken):
        where = f" in rows {broken.tolist()}" if samples.ndim == 3 else ""
        raise ValueError(f"audio holds NaN or infinite samples{where}; drop or repair them before measuring")
    rate = round(sample_rate)
    return [Clip(np.ascontiguousarray(row.mean(axis=0)), rate) for row in rows], samples.ndim == 3


def per_row(audio: Audio, sample_rate: float, function: Callable[[Clip], float]) -> float | Float[np.ndarray, " row"]:
    """`function` of every row of `audio`: an array if there is a row axis, one number otherwise."""
    clips, many = read(audio, sample_rate)
    values = [function(clip) for clip in clips]
    return np.array(values) if many else values[0]


def each(audio: Any, sample_rate: float) -> Iterator[Clip]:
    """Every clip of an array [row, channel, sample], or of a list whose clips may differ in length."""
    for part in audio if isinstance(audio, list | tuple) else [audio]:
        yield from read(part, sample_rate)[0]


def _as_float(audio: Audio) -> np.ndarray:
    if hasattr(audio, "detach"):
        # numpy has no bfloat16, and a tensor that needs gradients will not convert
        tensor: Any = audio
        tensor = tensor.detach().cpu()
        audio = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(audio, np.ndarray):
        raise TypeError(f"audio is a {type(audio).__name__}; give a numpy array or torch tensor of samples")
    if audio.dtype in (np.int16, np.int32):
        return audio.astype(np.float32) / -float(np.iinfo(audio.dtype).min)
    if not np.issubdtype(audio.dtype, np.floating):
        raise TypeError(
            f"audio has dtype {audio.dtype}; give floats in [-1, 1], or PCM as int16 or int32 (codes are decoded first)"
        )
    return audio.astype(np.float32, copy=False)
