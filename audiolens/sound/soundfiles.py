"""Read sound files with libsndfile (WAV, FLAC, OGG, MP3, AIFF, AU, W64), reject incomplete ones, and write clips.

libsndfile silently returns the remaining samples of a file that was cut short. The length in the header is therefore
compared with the content, and formats that do not record the length are rejected. The whole header is checked before a
sample is read, so that an hour of sound is never read into memory.

Clips can also be compressed for embedding in a page or a notebook. Non-finite samples are rejected, and clipping
triggers a warning. The same clip always gives the same bytes.
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
from audiolens.model.tokens import callers_level
from audiolens.sound import mp3, ogg

if TYPE_CHECKING:
    import soundfile

SoundPath = str | PathLike[str]
Span = tuple[float, float]

LONGEST_SECONDS = 600.0
"""The longest sound that is read. A measure is one number per clip, so longer sound must be measured in parts."""
MOST_CHANNELS = 2
RATES_HZ = (4_000, 384_000)
MOST_SAMPLES = 57_600_000
"""The largest number of samples in all channels together: ten minutes of stereo at 48 kHz, 230 MB as floats. The header
of a small file may state far more."""
_WHOLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "MP3")
"""Formats in which a truncated file can be recognised, by libsndfile or by this module."""
_PLAIN = (b"RIFF", b"RF64", b"riff", b"FORM", b".snd")
"""The first bytes of files with uncompressed samples, whose length can be computed without decoding."""
MOST_COMPRESSED_BYTES = 2**29
"""The largest file in any other format, because a decoder must read all of it to find its end."""
_STREAMED = 0x7FFFFF00
"""In the header of a sound that was streamed to the file, sizes of at least this value mean "unknown"."""
_SERIAL = 1
"""The serial number of every Ogg stream that is written, so that the same clip always gives the same bytes."""
_MISSED_SHARE = 0.05
"""The stated length of an MP3 is an estimate: a file counts as cut short only if it lacks more than this share."""


def read(path: SoundPath, seconds: Span | None = None) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """The samples of a file, or of a span (from, to) in seconds, as floats in [-1, 1], and its sample rate in hertz.

    Raises:
        InputTypeError: if `path` is not a path.
        InputError: if there is no such file, or if it is not a sound file, is empty, was cut short, has more than two
            channels, or is longer than ten minutes.
    """
    if not isinstance(path, str | PathLike):
        raise InputTypeError(f"{shown(path)}: expected the path of a sound file.")
    file = Path(path).expanduser()
    _refuse_no_file(file)
    return _read(file, fspath(file), seconds)


def of_bytes(content: bytes, file: Path) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """Do the same as `read` for the bytes of a file; `file` is its name in messages.

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
    """Compare the samples of a whole FLAC file with the hash in its header, which libsndfile does not check."""
    expected = _flac_hash(file, source)
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(sound.subtype, 0)
    if not any(expected) or not width:
        return
    sound.seek(0)
    found = hashlib.md5(usedforsecurity=False)
    for block in sound.blocks(2**16, dtype="int32", always_2d=True):
        # Samples are left-aligned in 32 bits; FLAC hashes only as many bytes as a sample has.
        found.update(np.ascontiguousarray(block.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes())
    if found.digest() != expected:
        raise InputError(f"{file} is damaged: its samples do not match the hash in its header.")


def _flac_hash(file: Path, source: Any) -> bytes:
    """The MD5 hash in the first block of a FLAC file, or empty bytes if a tag precedes that block."""
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
    """Write a clip with 16-bit samples, or with 32-bit floats if it is a WAV with samples beyond [-1, 1].

    FLAC can store only whole numbers, so samples beyond [-1, 1] are clipped there, with a warning. An existing file is
    replaced atomically.

    Raises:
        InputError: for NaN or infinite samples, or if the file cannot be written.
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
    """A clip as the bytes of a file, with its MIME type: Ogg Vorbis, or FLAC if this libsndfile cannot write Ogg.

    Ogg preserves samples beyond [-1, 1], but a player may clip them. FLAC clips them, as in `write`.

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
    """A float WAV with its time stamp set to zero; libsndfile writes the time of day next to the channel peaks."""
    offset = wav.index(b"PEAK") + 12
    return wav[:offset] + bytes(4) + wav[offset + 4 :]


def _put(file: SoundPath | io.BytesIO, content: bytes) -> None:
    if isinstance(file, io.BytesIO):
        file.write(content)
    else:
        Path(file).write_bytes(content)


def _checked_peak(samples: Any) -> float:
    """The largest absolute sample, after checking that all samples are finite."""
    if not np.isfinite(samples).all():
        raise InputError(
            "the sound contains NaN or infinite samples, which cannot be written to a file: drop or repair the clip."
        )
    return float(np.abs(samples).max(initial=0.0))


def _in_16_bits(samples: Float[np.ndarray, "channel sample"], peak: float) -> Int16[np.ndarray, "channel sample"]:
    """16-bit samples on libsndfile's scale, where 1 is 32768, so that a 16-bit file is written back unchanged."""
    if peak > 1:
        warnings.warn(
            f"a clip peaks at {peak:.2f} of full scale, and is clipped at 1 in its file.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return np.round(np.asarray(samples, dtype=np.float64) * 32768).clip(-32768, 32767).astype(np.int16)


def _part(file: Path, sound: soundfile.SoundFile, seconds: Span | None) -> tuple[int, int]:
    """The first frame to read and the number of frames. The whole header is checked before a sample is read."""
    # The import is local, because measuring sound must not need torch.
    from audiolens.model.timeline import checked_span

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
            raise InputError(f"{file} lasts {n_frames / rate:.1f} s: seconds={seconds} extends beyond it.")
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
