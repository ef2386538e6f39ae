"""Sound files: opened by libsndfile (WAV, FLAC, OGG, MP3, AIFF, AU, W64), and refused where they are not whole.

libsndfile hands out what is there of a file that was cut short, silently: what the file says of itself is compared
with what it holds, and a format that does not say enough for that is refused. All that a header can show is checked
before a sample is read: an hour of sound is never read into memory.
The other way, clips are written, and compressed for a page or a notebook to carry them inside: what is no sound is
refused, and nothing is clipped without a word. The same clip is always the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int16

from audiolens.errors import AudioLensWarning, InputError, InputTypeError
from audiolens.files.atomic import as_path, put, refused
from audiolens.model.tokens import callers_level
from audiolens.sound import mp3, ogg

if TYPE_CHECKING:
    import soundfile

SoundPath = str | PathLike[str]
Span = tuple[float, float]

LONGEST_SECONDS = 600.0
"""A measure is one number for a clip: what is longer is measured in parts."""
MOST_CHANNELS = 2
RATES_HZ = (4_000, 384_000)
MOST_SAMPLES = 57_600_000
"""Of all channels: ten minutes of stereo at 48 kHz, 230 MB as floats. A small file may promise far more."""
_WHOLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "MP3")
"""Formats by which a file that was cut can be told from a whole one, by libsndfile or here."""
_PLAIN = (b"RIFF", b"RF64", b"riff", b"FORM", b".snd")
"""How files begin whose samples lie one after the other, so that their size takes no time."""
MOST_COMPRESSED_BYTES = 2**29
"""Of any other file: a decoder looks through all of it for where it ends."""
_STREAMED = 0x7FFFFF00
"""Sizes from here up stand for "unknown" in the header of a sound that was written as it came."""
_SERIAL = 1
"""Of every Ogg stream that is written: the same clip is the same bytes."""
_MISSED_SHARE = 0.05
"""An MP3's length is an estimate: only what falls short of it by more was cut short."""


def read(path: SoundPath, seconds: Span | None = None) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """The samples of a file, floats in [-1, 1], or of its span (from, to) in seconds, and its sample rate in hertz.

    Raises:
        InputTypeError: if it is no path.
        InputError: no such file, not a sound, empty, cut off, of more than two channels, or over ten minutes long.
    """
    if not isinstance(path, str | PathLike):
        raise InputTypeError(f"{path!r}: expected the path of a sound file.")
    file = Path(path).expanduser()
    _refuse_no_file(file)
    return _read(file, fspath(file), seconds)


def of_bytes(content: bytes, file: Path) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """The same of the bytes of a file, whose name is for messages.

    Raises:
        InputError: as `read`.
    """
    return _read(file, io.BytesIO(content), None)


def _read(file: Path, source: Any, seconds: Span | None) -> tuple[Float[np.ndarray, "channel sample"], int]:
    import soundfile

    try:
        with soundfile.SoundFile(source) as sound:
            start, n_frames = _part(file, sound, seconds)
            if sound.format == "OGG":
                ogg.refuse_cut(file)
            missing = mp3.missing_frames(file) if sound.format == "MP3" else None
            sound.seek(start)
            samples = sound.read(n_frames, dtype="float32", always_2d=True)
            if missing or len(samples) < (1 - _MISSED_SHARE if sound.format == "MP3" else 1) * n_frames:
                raise InputError(
                    f"{file} was cut short: its header promises {n_frames / sound.samplerate:.1f} s, and "
                    f"{len(samples) / sound.samplerate:.1f} s can be read."
                )
            if sound.format == "FLAC" and n_frames == sound.frames:
                _refuse_other_flac(file, source, sound)
            return samples.T, sound.samplerate
    except soundfile.LibsndfileError as error:
        why = f"{error.error_string}".rstrip(".")
        raise InputError(f"{file} is not a sound file that can be read, or not a whole one ({why}).") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from None


def _refuse_other_flac(file: Path, source: Any, sound: soundfile.SoundFile) -> None:
    """Compare the samples of a whole FLAC with their hash in its header, which libsndfile leaves alone."""
    told = _flac_hash(file, source)
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(sound.subtype, 0)
    if not any(told) or not width:
        return
    sound.seek(0)
    found = hashlib.md5(usedforsecurity=False)
    for block in sound.blocks(2**16, dtype="int32", always_2d=True):
        # Left in 32 bits; FLAC hashes as many bytes as a sample has.
        found.update(np.ascontiguousarray(block.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes())
    if found.digest() != told:
        raise InputError(f"{file} is damaged: its samples are not those that were written (by the hash in its header).")


def _flac_hash(file: Path, source: Any) -> bytes:
    """The MD5 in a FLAC's first block; nothing where a tag comes before it."""
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:42]
    else:
        with file.open("rb") as opened:
            head = opened.read(42)
    return head[26:42] if head.startswith(b"fLaC") else b""


def _refuse_no_file(file: Path) -> None:
    try:
        if not file.exists():
            raise InputError(f"{file}: no such file.")
        if not file.is_file():
            raise InputError(f"{file} is no file: give the sound files in it ({file}/*.wav).")
        size = file.stat().st_size
        if not size:
            raise InputError(f"{file} is empty (0 bytes).")
        if size > MOST_COMPRESSED_BYTES and _head(file) not in _PLAIN:
            raise InputError(
                f"{file} has {size:,} bytes, expected at most {MOST_COMPRESSED_BYTES:,}: cut it into parts."
            )
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from None


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def write(
    file: SoundPath | io.BytesIO,
    samples: Float[np.ndarray, "channel sample"],
    sample_rate: int,
    kind: Literal["WAV", "FLAC"] = "WAV",
) -> None:
    """Write a clip in 16 bits; a WAV whose samples go beyond [-1, 1] in 32-bit floats, which keep them.

    FLAC holds whole numbers alone: there such samples are clipped, with a warning. An existing file is replaced whole.

    Raises:
        InputError: for NaN or infinite samples, or a file that cannot be written.
    """
    import soundfile

    peak = _checked_peak(samples)
    if not isinstance(file, io.BytesIO):
        content = io.BytesIO()
        write(content, samples, sample_rate, kind)
        path = as_path(file)
        with refused(path):
            put(path, content.getvalue())
        return
    if kind == "WAV" and peak > 1:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.T.astype(np.float32), sample_rate, format=kind, subtype="FLOAT")
        _put(file, _undated(buffer.getvalue()))
    else:
        soundfile.write(file, _in_16_bits(samples, peak).T, sample_rate, format=kind, subtype="PCM_16")


def compressed(samples: Float[np.ndarray, "channel sample"], sample_rate: int) -> tuple[bytes, str]:
    """A clip as the bytes of a file and its MIME type: Ogg Vorbis, or FLAC where this libsndfile cannot write that.

    Ogg keeps samples beyond [-1, 1], which a player may clip; FLAC as in `write`.

    Raises:
        InputError: for NaN or infinite samples.
    """
    import soundfile

    peak, buffer = _checked_peak(samples), io.BytesIO()
    if "OGG" in soundfile.available_formats() and "VORBIS" in soundfile.available_subtypes("OGG"):
        soundfile.write(buffer, samples.T, sample_rate, format="OGG", subtype="VORBIS")
        return ogg.with_serial(buffer.getvalue(), _SERIAL), "audio/ogg"
    if "FLAC" in soundfile.available_formats():
        soundfile.write(buffer, _in_16_bits(samples, peak).T, sample_rate, format="FLAC", subtype="PCM_16")
        return buffer.getvalue(), "audio/flac"
    raise RuntimeError("libsndfile can write neither Ogg nor FLAC")


def _undated(wav: bytes) -> bytes:
    """A WAV of floats without the time of day, which libsndfile writes next to the peak of each channel."""
    place = wav.index(b"PEAK") + 12
    return wav[:place] + bytes(4) + wav[place + 4 :]


def _put(file: SoundPath | io.BytesIO, content: bytes) -> None:
    if isinstance(file, io.BytesIO):
        file.write(content)
    else:
        Path(file).write_bytes(content)


def _checked_peak(samples: Any) -> float:
    """The largest |sample|."""
    if not np.isfinite(samples).all():
        raise InputError("the sound holds NaN or infinite samples: no file can hold those; drop the clip or repair it.")
    return float(np.abs(samples).max(initial=0.0))


def _in_16_bits(samples: Float[np.ndarray, "channel sample"], peak: float) -> Int16[np.ndarray, "channel sample"]:
    """As libsndfile reads them: 1 is 32768, so that what was read from 16 bits is written as it was."""
    if peak > 1:
        warnings.warn(
            f"a clip goes to {peak:.2f} of full scale, and is clipped at 1 in its file.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return np.round(np.asarray(samples, dtype=np.float64) * 32768).clip(-32768, 32767).astype(np.int16)


def _part(file: Path, sound: soundfile.SoundFile, seconds: Span | None) -> tuple[int, int]:
    """The first frame to read and how many; all that the header says is checked before a sample is read."""
    # Not above: what measures sound needs no torch.
    from audiolens.model.timeline import checked_span

    rate, n_frames = sound.samplerate, sound.frames
    if sound.channels > MOST_CHANNELS:
        raise InputError(
            f"{file} has {sound.channels} channels: expected one or two. Mix it down first, for how loud each should "
            "be is not ours to say (ffmpeg -i IN -ac 2 OUT)."
        )
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise InputError(f"{file} says {rate} Hz, expected {RATES_HZ[0]} to {RATES_HZ[1]}: convert it to its own rate.")
    if sound.format not in _WHOLE:
        raise InputError(
            f"{file}: a file of format {sound.format} that was cut short looks like a whole one. Convert it to WAV or "
            "FLAC (ffmpeg -i IN OUT.flac)."
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
    if (last - first) * sound.channels > MOST_SAMPLES:
        raise InputError(
            f"{file}: {(last - first) / rate:.0f} s of {sound.channels} channels at {rate} Hz are more than "
            f"{MOST_SAMPLES} samples; measure parts of it (seconds=(0, 60), --seconds 0:60)."
        )
    return first, last - first
