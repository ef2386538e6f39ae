"""Read and check audio of any layout, and mix it down to mono clips, which are the input of every measure.

The other modules of `audiolens.measure` call this one. A `Clip` computes each spectrum and the onset envelope once, so
that tempo, onset rate and brightness together cost little more than one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from os import PathLike
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from audiolens.checks import real_number, refuse_masked, shown
from audiolens.errors import InputError, InputTypeError
from audiolens.measure.onsets import Envelope, envelope
from audiolens.sound import soundfiles
from audiolens.sound.soundfiles import LONGEST_SECONDS, MOST_CHANNELS, RATES_HZ, SoundPath, Span

T = TypeVar("T")
SILENCE_DBFS = -60.0
"""A clip whose root mean square is below this level counts as silent, and only its loudness is measured."""
SHORTEST_SECONDS = 0.1


@runtime_checkable
class Array(Protocol):
    """A numpy array or torch tensor: [sample], [channel, sample] or [row, channel, sample]."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


@runtime_checkable
class Generated(Protocol):
    """The fields of a `lens.generate` result that measures use."""

    @property
    def audio(self) -> Any: ...

    @property
    def sample_rate(self) -> int: ...


Audio = Array | SoundPath | Generated | Sequence[Array | SoundPath | Generated]
"""Audio to measure. Arrays need a `sample_rate`, whether alone or in a list."""


@dataclass(frozen=True)
class Clip:
    """One mono sound. Spectra are magnitudes [bin, frame] of Hann windows that lie entirely within the clip."""

    samples: Float[np.ndarray, " sample"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @cached_property
    def loudness_dbfs(self) -> float:
        """Root mean square level in dB relative to full scale; -inf for digital silence."""
        power = float(np.mean(np.square(self.samples, dtype=np.float64)))
        return 10 * float(np.log10(power)) if power > 0 else float("-inf")

    @property
    def silent(self) -> bool:
        return self.loudness_dbfs < SILENCE_DBFS

    def window(self, seconds: float) -> int:
        """Return a window length in samples: the power of two nearest to `seconds`, at most the length of the clip."""
        n = 2 ** round(np.log2(seconds * self.sample_rate))
        return min(n, 2 ** int(np.log2(len(self.samples))))

    def spectrum(self, n_fft: int, hop: int) -> Float[np.ndarray, "bin frame"]:
        import librosa

        return np.abs(librosa.stft(self.samples, n_fft=n_fft, hop_length=hop, center=False))

    def bins_hz(self, n_fft: int) -> Float[np.ndarray, " bin"]:
        return np.fft.rfftfreq(n_fft, 1 / self.sample_rate)

    @cached_property
    def timbre_spectrum(self) -> Float[np.ndarray, "bin frame"]:
        """Spectrum of 64 ms windows every 32 ms, for `brightness`, `ltas_centroid` and `rolloff`."""
        n_fft = self.window(0.064)
        return self.spectrum(n_fft, n_fft // 2)

    @cached_property
    def onset_envelope(self) -> Envelope:
        """Onset envelope from 32 ms windows every 8 ms, for all measures of rhythm."""
        hop = round(0.008 * self.sample_rate)
        return envelope(self.spectrum(self.window(0.032), hop), self.sample_rate, hop)

    @cached_property
    def pitch_spectrum(self) -> Float[np.ndarray, "bin frame"]:
        """Spectrum of 128 ms windows every 32 ms, for `pitch`, `pitch_class` and `mode`."""
        n_fft = self.window(0.128)
        return self.spectrum(n_fft, n_fft // 4)


def once(function: Callable[[Clip], T]) -> Callable[[Clip], T]:
    """Cache the result of `function` on the clip, for computations that several measures share."""

    @wraps(function)
    def kept(clip: Clip) -> T:
        name = function.__qualname__
        if name not in clip.__dict__:
            clip.__dict__[name] = function(clip)
        return clip.__dict__[name]

    return kept


def read(audio: Any, sample_rate: float | None = None, *, centred: bool = True) -> tuple[list[Clip], bool]:
    """Check `audio` and mix each row down to a mono `Clip`; also return whether `audio` has a row axis.

    Any DC offset is inaudible, so `centred` removes it. Signed 16- and 32-bit integers are PCM, scaled to [-1, 1);
    other integers raise an error.

    Args:
        audio: an array or tensor, the path of a sound file, what `lens.generate` returned, or a list of these; clips
            can differ in length.
        sample_rate: sample rate of arrays, in Hz; files and generations have their own.

    Raises:
        InputTypeError: if `audio` is not audio, or has a dtype that samples cannot have.
        InputError: if `audio` has the wrong shape, is too short or too long, is not finite, has an impossible sample
            rate, or is a file that cannot be read.
    """
    listed = isinstance(audio, list | tuple)
    parts = [_rows(part, sample_rate, centred) for part in (audio if listed else [audio])]
    if not parts:
        raise InputError("audio has no rows; give at least one clip")
    return [clip for clips, _ in parts for clip in clips], listed or parts[0][1]


def per_row(
    audio: Any, sample_rate: float | None, function: Callable[[Clip], float]
) -> float | Float[np.ndarray, " row"]:
    """Apply `function` to every row of `audio`; return an array if `audio` has a row axis, else one number."""
    clips, many = read(audio, sample_rate)
    values = [function(clip) for clip in clips]
    return np.array(values) if many else values[0]


def of_file(path: SoundPath, seconds: Span | None = None, *, centred: bool = True) -> Clip:
    """Read a sound file, or only the part (from, to) in seconds, as a clip; errors name the file."""
    samples, sample_rate = soundfiles.read(path, seconds)
    try:
        return _rows(samples, sample_rate, centred)[0][0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def is_path(audio: Any) -> TypeGuard[SoundPath]:
    return isinstance(audio, str | PathLike)


def _rows(audio: Any, sample_rate: float | None, centred: bool) -> tuple[list[Clip], bool]:
    """Return the clips of one array, file or generation, and whether the input has a row axis."""
    if is_path(audio):
        if sample_rate is not None:
            raise InputError(f"{audio} has its own sample rate; leave sample_rate out")
        return [of_file(audio, centred=centred)], False
    if hasattr(audio, "audio") and hasattr(audio, "sample_rate"):
        if audio.audio is None:
            raise InputError(
                "these clips were generated with decode=False; give lens.decode_codes(out.codes) and the sample rate"
            )
        if sample_rate not in (None, audio.sample_rate):
            raise InputError(
                f"generated clips have their own sample rate, {audio.sample_rate}, but sample_rate={sample_rate} was "
                "given: leave it out, and measure arrays separately"
            )
        return _rows(audio.audio, audio.sample_rate, centred)
    samples = as_float(audio)
    if sample_rate is None:
        raise InputError("audio is an array, which has no sample rate; give sample_rate in Hz, e.g. 16000")
    sample_rate = _checked_rate(sample_rate)
    if samples.ndim not in (1, 2, 3):
        raise InputError(
            f"audio has shape {samples.shape}; expected [sample], [channel, sample] or [row, channel, sample]"
        )
    rows = samples.reshape((1,) * (3 - samples.ndim) + samples.shape)
    if not len(rows):
        raise InputError("audio has no rows; give at least one clip")
    _, n_channels, n_samples = rows.shape
    if not 1 <= n_channels <= MOST_CHANNELS:
        raise InputError(
            f"audio of shape {samples.shape} has {n_channels} channels, expected one or two: mix more channels down, "
            "give mono rows a channel axis (audio[:, None]), or transpose [sample, channel] (audio.T)"
        )
    if n_samples < SHORTEST_SECONDS * sample_rate:
        raise InputError(
            f"audio has {n_samples} samples ({n_samples / sample_rate:.3f} s at {sample_rate} Hz); "
            f"a measure needs at least {SHORTEST_SECONDS} s"
        )
    if n_samples > LONGEST_SECONDS * sample_rate:
        raise InputError(
            f"audio lasts {n_samples / sample_rate / 60:.0f} minutes, too long to have a single tempo or brightness; "
            f"measure at most {LONGEST_SECONDS / 60:.0f} minutes at a time"
        )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))
    if len(broken):
        where = f" in rows {broken.tolist()}" if samples.ndim == 3 else ""
        raise InputError(f"audio has NaN or infinite samples{where}; drop or repair them before measuring")
    rate = round(sample_rate)
    mono = [row.mean(axis=0) for row in rows]
    return [Clip(_centred(row) if centred else row, rate) for row in mono], samples.ndim == 3


def _centred(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
    """Remove the DC offset, which is inaudible but would be measured as level and as the lowest frequency."""
    return np.ascontiguousarray(samples - samples.mean(dtype=np.float64).astype(samples.dtype))


def _checked_rate(sample_rate: Any) -> float:
    try:
        rate = real_number(sample_rate)
    except TypeError:
        raise InputTypeError(
            f"sample_rate is {shown(sample_rate)}; give the samples per second as a number, e.g. 16000"
        ) from None
    low, high = RATES_HZ
    if not low <= rate <= high:
        raise InputError(f"sample_rate is {sample_rate}, expected {low} to {high} Hz; give the audio's own rate")
    return rate


def as_float(audio: Any, name: str = "audio") -> np.ndarray:
    """Return the samples of an array or tensor in float32, with 16- and 32-bit PCM scaled to [-1, 1).

    Raises:
        InputTypeError: if the input is of any other kind, such as other integers or a masked array.
    """
    if hasattr(audio, "detach"):
        # numpy has no bfloat16, and a tensor that requires gradients cannot be converted.
        tensor: Any = audio
        tensor = tensor.detach().cpu()
        audio = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(audio, np.ndarray):
        raise InputTypeError(
            f"{name} is a {type(audio).__name__}; give a numpy array or torch tensor of samples, or a sound file's path"
        )
    refuse_masked(name, audio)
    audio = audio.astype(audio.dtype.newbyteorder("="), copy=False)
    if audio.dtype in (np.int16, np.int32):
        return audio.astype(np.float32) / -float(np.iinfo(audio.dtype).min)
    if not np.issubdtype(audio.dtype, np.floating):
        raise InputTypeError(
            f"{name} has dtype {audio.dtype}; give floats in [-1, 1], or PCM as int16 or int32 (decode codes first)"
        )
    return np.asarray(audio, dtype=np.float32)
