"""Read sound files with libsndfile (WAV, FLAC, OGG, MP3, AIFF, AU, W64), reject incomplete ones, and write clips.

libsndfile silently returns the remaining samples of a file that was cut short. The length in the header is therefore
compared with the content, and formats that do not record the length are rejected. The whole header is checked before
any samples are read, so that an hour of sound is never read into memory.

Clips can also be compressed, to embed them in a page or a notebook. Non-finite samples are rejected, and clipping
causes a warning. Writing the same clip always gives the same bytes.
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

from audiolens.checks import shown
from audiolens.errors import AudioLensWarning, InputError, InputTypeError
from audiolens.files.atomic import as_path, put, refused
from audiolens.model.spans import checked_span
from audiolens.model.tokens import callers_level
from audiolens.sound import mp3, ogg

if TYPE_CHECKING:
    import soundfile

SoundPath = str | PathLike[str]
Span = tuple[float, float]

LONGEST_SECONDS = 600.0
"""The longest sound that is read. Longer sound must be measured in parts, because a measure is one number per clip."""
MOST_CHANNELS = 2
RATES_HZ = (4_000, 384_000)
MOST_SAMPLES = 57_600_000
"""The largest number of samples in all channels together: ten minutes of stereo at 48 kHz, 230 MB as floats. The limit
is needed because the header of a small file can state far more samples."""
_WHOLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "MP3")
"""Formats in which libsndfile or this module can recognise a truncated file."""
_PLAIN = (b"RIFF", b"RF64", b"riff", b"FORM", b".snd")
"""The first bytes of the formats with uncompressed samples, whose length can be computed without decoding."""
MOST_COMPRESSED_BYTES = 2**29
"""The size in bytes of the largest file in a compressed format, which must be decoded to find the end of the sound."""
_STREAMED = 0x7FFFFF00
"""The smallest size in a header that means "unknown". Such a size is written if the sound was streamed to the file."""
_SERIAL = 1
"""The serial number of every Ogg stream that is written, so that the same clip always gives the same bytes."""
_MISSED_SHARE = 0.05
"""The fraction of an MP3's stated length that can be missing without an error. The stated length is an estimate."""


def read(path: SoundPath, seconds: Span | None = None) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """Read the samples of a file as floats in [-1, 1], and its sample rate in hertz.

    `seconds` restricts the samples to a time interval (from, to).

    Raises:
        InputTypeError: if `path` is not a path.
        InputError: if the file does not exist, is not a sound file, is empty, was cut short, has more than two
            channels, or is longer than ten minutes.
    """
    if not isinstance(path, str | PathLike):
        raise InputTypeError(f"{shown(path)}: expected the path of a sound file.")
    file = Path(path).expanduser()
    _refuse_no_file(file)
    return _read(file, fspath(file), seconds)


def of_bytes(content: bytes, file: Path) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """Read the samples and the sample rate from the bytes of a sound file, like `read`; messages name it `file`.

    Raises:
        InputError: for the same reasons as `read`.
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
                    f"{file} was cut short: its header states {n_frames / sound.samplerate:.1f} s, but only "
                    f"{len(samples) / sound.samplerate:.1f} s can be read."
                )
            if sound.format == "FLAC" and n_frames == sound.frames:
                _refuse_other_flac(file, source, sound)
            return samples.T, sound.samplerate
    except soundfile.LibsndfileError as error:
        why = f"{error.error_string}".rstrip(".")
        raise InputError(f"{file} is not a sound file that can be read, or is incomplete ({why}).") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from None


def _refuse_other_flac(file: Path, source: Any, sound: soundfile.SoundFile) -> None:
    """Reject a FLAC file whose samples do not match the hash in its header, which libsndfile does not check."""
    expected = _flac_hash(file, source)
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(sound.subtype, 0)
    if not any(expected) or not width:
        return
    sound.seek(0)
    found = hashlib.md5(usedforsecurity=False)
    for block in sound.blocks(2**16, dtype="int32", always_2d=True):
        # Samples are left-aligned in 32 bits, but FLAC hashes only as many bytes as a stored sample has.
        found.update(np.ascontiguousarray(block.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes())
    if found.digest() != expected:
        raise InputError(f"{file} is damaged: its samples do not match the hash in its header.")


def _flac_hash(file: Path, source: Any) -> bytes:
    """Read the MD5 hash in the first block of a FLAC file, or return empty bytes if a tag precedes that block."""
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
            raise InputError(f"{file} is not a file: give the sound files in it ({file}/*.wav).")
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
    """Write a clip with 16-bit samples, or with 32-bit floats if it is a WAV file with samples beyond [-1, 1].

    FLAC can store only whole numbers, so samples beyond [-1, 1] are clipped in FLAC files, with a warning. An existing
    file is replaced atomically.

    Raises:
        InputError: if samples are NaN or infinite, or if the file cannot be written.
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
    """Compress a clip to the bytes of an Ogg Vorbis file, and return the bytes with their MIME type.

    The format is FLAC if the installed libsndfile cannot write Ogg. Ogg preserves samples beyond [-1, 1], but a player
    might clip them. In a FLAC file they are clipped, as in `write`.

    Raises:
        InputError: if samples are NaN or infinite.
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
    """Set to zero the time of day that libsndfile writes next to the channel peaks of a float WAV file."""
    offset = wav.index(b"PEAK") + 12
    return wav[:offset] + bytes(4) + wav[offset + 4 :]


def _put(file: SoundPath | io.BytesIO, content: bytes) -> None:
    if isinstance(file, io.BytesIO):
        file.write(content)
    else:
        Path(file).write_bytes(content)


def _checked_peak(samples: Any) -> float:
    """Return the largest absolute sample, after checking that all samples are finite."""
    if not np.isfinite(samples).all():
        raise InputError(
            "the sound contains NaN or infinite samples, which cannot be written to a file: drop or repair the clip."
        )
    return float(np.abs(samples).max(initial=0.0))


def _in_16_bits(samples: Float[np.ndarray, "channel sample"], peak: float) -> Int16[np.ndarray, "channel sample"]:
    """Convert samples to 16 bits on libsndfile's scale (1 is 32768), so that 16-bit files are rewritten unchanged."""
    if peak > 1:
        warnings.warn(
            f"a clip peaks at {peak:.2f} times full scale, so it is clipped at 1 in its file.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return np.round(np.asarray(samples, dtype=np.float64) * 32768).clip(-32768, 32767).astype(np.int16)


def _part(file: Path, sound: soundfile.SoundFile, seconds: Span | None) -> tuple[int, int]:
    """Return the first frame to read and the number of frames, after checking the whole header."""
    rate, n_frames = sound.samplerate, sound.frames
    if sound.channels > MOST_CHANNELS:
        raise InputError(
            f"{file} has {sound.channels} channels: expected one or two. Mix it down first, at the levels "
            "that you choose (ffmpeg -i IN -ac 2 OUT)."
        )
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise InputError(
            f"{file} has a sample rate of {rate} Hz: expected {RATES_HZ[0]} to {RATES_HZ[1]}. Resample it "
            "first (ffmpeg -i IN -ar 44100 OUT)."
        )
    if sound.format not in _WHOLE:
        raise InputError(
            f"{file}: a truncated file of format {sound.format} looks like a complete one. Convert it to WAV or FLAC "
            "(ffmpeg -i IN OUT.flac)."
        )
    if not n_frames:
        raise InputError(f"{file} contains no samples.")
    for promised, held in re.findall(r": (\d+) \(should be (\d+)\)", sound.extra_info):
        if int(held) < int(promised) < _STREAMED:
            raise InputError(
                f"{file} was cut short: its header states {promised} bytes of sound, but it contains {held}."
            )
    if seconds is None:
        first, last = 0, n_frames
    else:
        first, last = (round(second * rate) for second in checked_span(seconds))
        if last > n_frames:
            raise InputError(f"{file} lasts {n_frames / rate:.1f} s: seconds={seconds} extends beyond its end.")
    if last - first > LONGEST_SECONDS * rate:
        raise InputError(
            f"{file}: {(last - first) / rate / 60:.0f} minutes are too long to have a single tempo or brightness; "
            f"measure at most {LONGEST_SECONDS / 60:.0f} minutes at a time (seconds=(0, 60), --seconds 0:60)."
        )
    if (last - first) * sound.channels > MOST_SAMPLES:
        raise InputError(
            f"{file}: {(last - first) / rate:.0f} s of {sound.channels} channels at {rate} Hz are more than "
            f"{MOST_SAMPLES} samples; measure it in parts (seconds=(0, 60), --seconds 0:60)."
        )
    return first, last - first
