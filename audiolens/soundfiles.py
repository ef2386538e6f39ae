"""Sound files: opened by libsndfile (WAV, FLAC, OGG, MP3, AIFF and more), and refused where they are not whole.

libsndfile hands out what is there of a file that was cut short, silently: what the file says of itself is compared
with what it holds. What is wrong is told from the header where it can be: an hour of sound is never read into memory.
The other way, clips are compressed for a page or a notebook to carry them inside.
"""

from __future__ import annotations

import io
import re
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from audiolens.errors import InputError, InputTypeError

if TYPE_CHECKING:
    import soundfile

SoundPath = str | PathLike[str]
Span = tuple[float, float]

LONGEST_SECONDS = 600.0
"""A measure is one number for a clip: what is longer is measured in parts."""
MOST_CHANNELS = 2
_STREAMED = 0x7FFFFF00
"""Sizes from here up stand for "unknown" in the header of a sound that was written as it came."""
_MISSED_SHARE = 0.05
"""An MP3's length is an estimate: only what falls short of it by more was cut short."""


def read(path: SoundPath, seconds: Span | None = None) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """The samples of a file, floats in [-1, 1], or of its span (from, to) in seconds, and its sample rate in hertz.

    Raises:
        InputTypeError: if it is no path.
        InputError: no such file, not a sound, empty, cut off, of more than two channels, or over ten minutes long.
    """
    import soundfile

    if not isinstance(path, str | PathLike):
        raise InputTypeError(f"{path!r}: expected the path of a sound file.")
    file = Path(path).expanduser()
    if not file.exists():
        raise InputError(f"{file}: no such file.")
    if not file.is_file():
        raise InputError(f"{file} is no file: give the sound files in it ({file}/*.wav).")
    if not file.stat().st_size:
        raise InputError(f"{file} is empty (0 bytes).")
    try:
        with soundfile.SoundFile(fspath(file)) as sound:
            start, n_frames = _part(file, sound, seconds)
            sound.seek(start)
            samples = sound.read(n_frames, dtype="float32", always_2d=True)
            if len(samples) < (1 - _MISSED_SHARE) * n_frames:
                raise InputError(
                    f"{file} was cut short: its header promises {n_frames / sound.samplerate:.1f} s, and "
                    f"{len(samples) / sound.samplerate:.1f} s can be read."
                )
            return samples.T, sound.samplerate
    except soundfile.LibsndfileError as error:
        why = f"{error.error_string}".rstrip(".")
        raise InputError(f"{file} is not a sound file that can be read, or not a whole one ({why}).") from None


def compressed(samples: Float[np.ndarray, "channel sample"], sample_rate: int) -> tuple[bytes, str]:
    """A clip as the bytes of a file and its MIME type: Ogg Vorbis, or FLAC where this libsndfile cannot write that.

    Samples beyond [-1, 1] are clipped.
    """
    import soundfile

    clip = np.clip(samples.T, -1, 1)
    for kind, subtype, mime in (("OGG", "VORBIS", "audio/ogg"), ("FLAC", "PCM_16", "audio/flac")):
        if kind not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(kind):
            continue
        buffer = io.BytesIO()
        soundfile.write(buffer, clip, sample_rate, format=kind, subtype=subtype)
        return buffer.getvalue(), mime
    raise RuntimeError("libsndfile can write neither Ogg nor FLAC")


def _part(file: Path, sound: soundfile.SoundFile, seconds: Span | None) -> tuple[int, int]:
    """The first frame to read and how many, checked against the header."""
    # Not above: what measures sound needs no torch.
    from audiolens.timeline import checked_span

    rate, n_frames = sound.samplerate, sound.frames
    if sound.channels > MOST_CHANNELS:
        raise InputError(
            f"{file} has {sound.channels} channels: expected one or two. Mix it down first, for how loud each should "
            "be is not ours to say (ffmpeg -i IN -ac 2 OUT)."
        )
    if not n_frames:
        raise InputError(f"{file} holds no samples.")
    for told, held in re.findall(r": (\d+) \(should be (\d+)\)", sound.extra_info):
        if int(held) < int(told) < _STREAMED:
            raise InputError(f"{file} was cut short: its header promises {told} bytes of sound, and it holds {held}.")
    if seconds is None:
        first, last = 0, n_frames
    else:
        first, last = (round(second * rate) for second in checked_span(seconds))
        if last > n_frames:
            raise InputError(f"{file} lasts {n_frames / rate:.1f} s: seconds={seconds} goes beyond it.")
    if last - first > LONGEST_SECONDS * rate:
        raise InputError(
            f"{file}: {(last - first) / rate / 60:.0f} minutes are no clip, and no one tempo or brightness is theirs; "
            f"measure parts of at most {LONGEST_SECONDS / 60:.0f} minutes (seconds=(0, 60), --seconds 0:60)."
        )
    return first, last - first
