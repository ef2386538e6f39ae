"""Untrusted sound files are rejected when truncated anywhere, and their headers are not trusted."""

import io
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolens.errors import InputError
from audiolens.sound import mp3 as _mp3
from audiolens.sound import ogg, soundfiles

RATE = 16_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 1))).astype(np.float32)
WHOLE = {
    "wav": ("WAV", "PCM_16"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "floats": ("WAVEX", "FLOAT"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
SILENT_ABOUT_CUTS = ["NIST", "VOC", "AVR", "IRCAM", "MAT4", "MAT5", "PAF", "PVF", "WVE", "MPC2K", "CAF", "SVX", "HTK"]


def encoded(kind: str, subtype: str | None = None, wave: np.ndarray = NOISE, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def pages(content: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    return [b"OggS" + part for part in content.split(b"OggS")[1:]]


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    content, file = encoded(*WHOLE[name]), tmp_path / "sound"
    file.write_bytes(content)
    assert soundfiles.read(file)[0].shape[1] >= len(NOISE)
    within = [len(content) * part // 40 for part in range(1, 40)]
    between = [len(content) - sum(map(len, pages(content)[-n:])) for n in range(1, len(pages(content)))]
    for size in [*within, *between, *range(len(content) - 20, len(content))]:
        file.write_bytes(content[:size])
        with pytest.raises(InputError, match="sound"):
            soundfiles.read(file)


@pytest.mark.parametrize("kind", SILENT_ABOUT_CUTS)
def test_formats_in_which_a_cut_cannot_be_seen_are_refused(tmp_path: Path, kind: str) -> None:
    rate = 8000 if kind == "WVE" else RATE
    (tmp_path / "sound").write_bytes(encoded(kind, rate=rate))
    with pytest.raises(InputError, match=f"format {kind} looks like a complete one. Convert it"):
        soundfiles.read(tmp_path / "sound")


def flipped(page: bytes) -> bytes:
    return page[:-1] + bytes([page[-1] ^ 1])


OGG: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a page is missing": (lambda pages: [*pages[:2], *pages[3:]], "is damaged: the Ogg page at byte"),
    "a page is there twice": (lambda pages: [*pages[:3], *pages[2:]], "is damaged: the Ogg page at byte"),
    "a bit of it changed": (lambda pages: [*pages[:2], flipped(pages[2]), *pages[3:]], "is damaged: the Ogg page"),
    "something else is in it": (lambda pages: [*pages[:2], b"x" * 99, *pages[2:]], "no Ogg page begins at byte"),
    "another stream follows": (lambda pages: 2 * pages, "contains several Ogg streams"),
}


@pytest.mark.parametrize("case", OGG)
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_is_not_the_one_written_is_refused(tmp_path: Path, subtype: str, case: str) -> None:
    change, message = OGG[case]
    (tmp_path / "sound.ogg").write_bytes(b"".join(change(pages(encoded("OGG", subtype, np.tile(NOISE, (4, 1)))))))
    with pytest.raises(InputError, match=message):
        soundfiles.read(tmp_path / "sound.ogg")


def test_what_follows_the_last_page_is_no_sound(tmp_path: Path) -> None:
    content = encoded("OGG", "VORBIS")
    (tmp_path / "sound.ogg").write_bytes(content + b"TAG" + bytes(125))
    (tmp_path / "bare.ogg").write_bytes(content)
    found, expected = (soundfiles.read(tmp_path / name)[0] for name in ("sound.ogg", "bare.ogg"))
    np.testing.assert_array_equal(found, expected)


def promising(rate: int, channels: int, n_frames: int) -> bytes:
    """The bytes of a FLAC whose header claims `n_frames` frames."""
    content = bytearray(encoded("FLAC", "PCM_16", np.zeros((RATE, channels), np.float32), RATE))
    fields = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | n_frames
    content[18:26] = struct.pack(">Q", fields)
    return bytes(content)


@pytest.mark.parametrize(
    ("rate", "channels", "seconds", "message"),
    [
        (655_350, 2, 600, "has a sample rate of 655350 Hz: expected 4000 to 384000"),
        (384_000, 2, 590, "590 s of 2 channels at 384000 Hz are more than 57600000 samples"),
        (1, 1, 600, "a sample rate of 1 Hz"),
        (48_000, 8, 10, "has 8 channels"),
        (48_000, 2, 10**5, "minutes"),
    ],
)
def test_no_sample_is_read_of_what_a_header_should_not_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, channels: int, seconds: int, message: str
) -> None:
    (tmp_path / "sound.flac").write_bytes(promising(rate, channels, rate * seconds))
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("samples were read"))
    with pytest.raises(InputError, match=message):
        soundfiles.read(tmp_path / "sound.flac")


def test_a_few_samples_fewer_than_promised_are_a_cut_file(tmp_path: Path) -> None:
    """Only an MP3 may be short by a few samples, because its length is an estimate."""
    (tmp_path / "sound.flac").write_bytes(promising(RATE, 1, RATE + 10))
    with pytest.raises(InputError, match="cut short|or is incomplete"):
        soundfiles.read(tmp_path / "sound.flac")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(InputError, match=r"cannot be read|no such file"):
            soundfiles.read(tmp_path / name)


def test_the_same_clip_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile writes the time of day into the serial number of an Ogg and the peak chunk of a float WAV."""
    found = []
    for moment in range(2):
        time.sleep(1.1 * moment)
        soundfiles.write(tmp_path / "loud.wav", 20 * NOISE.T, RATE)
        found.append(((tmp_path / "loud.wav").read_bytes(), soundfiles.compressed(NOISE.T, RATE)))
    assert found[0] == found[1]


def test_an_ogg_of_a_fixed_serial_is_the_same_sound(tmp_path: Path) -> None:
    """The checksums are correct: libsndfile and the completeness check accept the file."""
    plain = encoded("OGG", "VORBIS")
    (tmp_path / "plain.ogg").write_bytes(plain)
    (tmp_path / "fixed.ogg").write_bytes(ogg.with_serial(plain, 7))
    assert [page[14:18] for page in pages((tmp_path / "fixed.ogg").read_bytes())] == len(pages(plain)) * [b"\7\0\0\0"]
    found, expected = (soundfiles.read(tmp_path / name)[0] for name in ("fixed.ogg", "plain.ogg"))
    np.testing.assert_array_equal(found, expected)


def mp3(seconds: float = 4) -> bytes:
    return encoded("MP3", "MPEG_LAYER_III", np.tile(NOISE, (4, 1))[: round(seconds * RATE)])


def test_an_mp3_cut_in_its_last_twentieth_is_refused(tmp_path: Path) -> None:
    content, file = mp3(), tmp_path / "sound.mp3"
    for whole in (content, content + b"TAG" + bytes(125), b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + content):
        file.write_bytes(whole)
        assert soundfiles.read(file)[0].shape[1] == 4 * RATE
    for cut in (1, 50, 300, 600, len(content) // 30):
        file.write_bytes(content[:-cut])
        with pytest.raises(InputError, match="was cut short"):
            soundfiles.read(file)


def test_an_mp3_without_a_count_is_refused_where_it_ends_inside_a_frame(tmp_path: Path) -> None:
    content = mp3()
    first = _mp3._first(content)
    assert first is not None
    bare = content[first.size :]
    frames = list(_mp3._frames(bare, _mp3._first(bare)))  # pyright: ignore[reportArgumentType]
    assert frames[-1].start + frames[-1].size == len(bare)
    assert not _mp3.is_cut(bare)
    assert _mp3.is_cut(bare[:-1])
    # Undetectable: the file ends where a frame ends.
    assert not _mp3.is_cut(bare[: frames[-1].start])


@pytest.mark.parametrize("name", ["flac", "vorbis"])
def test_a_compressed_file_of_endless_size_is_refused_before_it_is_looked_through(tmp_path: Path, name: str) -> None:
    with open(tmp_path / "sound", "wb") as file:
        file.write(encoded(*WHOLE[name]))
        file.truncate(8 * 2**30)
    started = time.perf_counter()
    with pytest.raises(InputError, match="8,589,934,592 bytes, expected at most"):
        soundfiles.read(tmp_path / "sound")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_a_flac_of_other_samples_than_its_hash_is_refused(tmp_path: Path, subtype: str) -> None:
    content, file = encoded("FLAC", subtype), tmp_path / "sound.flac"
    file.write_bytes(content)
    whole = soundfiles.read(file)[0]
    assert whole.shape == (1, len(NOISE))
    other = bytearray(content)
    other[26] ^= 1
    file.write_bytes(other)
    with pytest.raises(InputError, match="is damaged: its samples do not match the hash"):
        soundfiles.read(file)
    other[26:42] = bytes(16)
    file.write_bytes(other)
    np.testing.assert_array_equal(soundfiles.read(file)[0], whole)


def test_a_flac_that_promises_fewer_samples_than_it_holds_is_refused(tmp_path: Path) -> None:
    content = bytearray(encoded("FLAC", "PCM_16"))
    content[22:26] = struct.pack(">I", len(NOISE) - 100)
    (tmp_path / "sound.flac").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        soundfiles.read(tmp_path / "sound.flac")
