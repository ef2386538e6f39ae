"""Sound files are read completely, at any rate, mono or stereo, or rejected with the reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiolens.errors import AudioLensError, InputError
from audiolens.sound import soundfiles

RATE = 22_050
WAVE = (0.1 * np.random.default_rng(0).standard_normal((RATE // 2, 2))).astype(np.float32)


def written(file: Path, kind: str = "WAV", subtype: str | None = None) -> Path:
    soundfile.write(file, WAVE, RATE, format=kind, subtype=subtype)
    return file


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", None), ("AIFF", "PCM_16")])
def test_a_whole_file_is_its_samples(tmp_path: Path, kind: str, subtype: str | None) -> None:
    samples, rate = soundfiles.read(written(tmp_path / "sound", kind, subtype))
    assert rate == RATE
    np.testing.assert_allclose(samples, WAVE.T, atol=0 if subtype == "FLOAT" else 2**-15)


def test_a_file_is_its_waveform_to_the_lens(lens: Any, stereo_lens: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "sound.wav", subtype="FLOAT")
    for one in (lens, stereo_lens):
        wave = (torch.from_numpy(WAVE.T.copy()), RATE)
        assert torch.equal(one.run_with_cache("calm", audio=file)[0], one.run_with_cache("calm", audio=wave)[0])
        drawn = [one.generate("calm", 0.8, seeds=1, audio_prompt=sound).codes for sound in (str(file), wave)]
        assert torch.equal(*drawn)
        assert torch.equal(drawn[0][:, :, :13], one.encode_audio(*wave))


def streamed(whole: bytes) -> bytes:
    """As a program writes it that could not go back to the header: its sizes are unknown."""
    return whole[:4] + b"\xff" * 4 + whole[8:40] + b"\xff" * 4 + whole[44:]


def test_a_file_that_was_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    file = written(tmp_path / "sound.wav", subtype="PCM_16")
    expected = soundfiles.read(file)[0]
    file.write_bytes(streamed(file.read_bytes()))
    np.testing.assert_array_equal(soundfiles.read(file)[0], expected)


BAD: dict[str, tuple[str, Any, str]] = {
    "empty": ("WAV", lambda whole: b"", "is empty"),
    "no sound": ("WAV", lambda whole: b"years of work", "not a sound file"),
    "a wav cut in half": ("WAV", lambda whole: whole[: len(whole) // 2], "cut short: its header states"),
    "a wav without its last samples": ("WAV", lambda whole: whole[:-400], "cut short"),
    "the header alone": ("WAV", lambda whole: whole[:44], "cut short|no samples"),
    "an aiff cut in half": ("AIFF", lambda whole: whole[: len(whole) // 2], "cut short"),
    "a flac cut in half": ("FLAC", lambda whole: whole[: len(whole) // 2], "or is incomplete|cut short"),
    "an ogg cut in half": ("OGG", lambda whole: whole[: len(whole) // 2], "no samples|cut short|or is incomplete"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_file_is_refused_and_nothing_runs(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    kind, broken, message = BAD[case]
    file = written(tmp_path / "sound", kind)
    file.write_bytes(broken(file.read_bytes()))
    monkeypatch.setattr(lens.model.audio_encoder, "encode", lambda *_: pytest.fail("the codec ran"))
    for call in (
        lambda: soundfiles.read(file),
        lambda: lens.run_with_cache("calm", audio=file),
        lambda: lens.generate("calm", 0.8, audio_prompt=str(file)),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Of every 16-bit value, both ends among them, nothing is lost; louder than full scale, nothing either."""
    exact = (np.array([[-32768, -32767, -1, 0, 1, 12345, 32767]]) / 32768).astype(np.float32)
    for kind in ("WAV", "FLAC"):
        soundfiles.write(tmp_path / kind, exact, RATE, kind)
        np.testing.assert_array_equal(soundfiles.read(tmp_path / kind)[0], exact)
        assert soundfile.info(tmp_path / kind).subtype == "PCM_16"
    soundfiles.write(tmp_path / "loud.wav", 30 * WAVE.T, RATE)
    np.testing.assert_array_equal(soundfiles.read(tmp_path / "loud.wav")[0], 30 * WAVE.T)


def test_sound_that_a_file_cannot_hold_is_refused_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = WAVE.T.copy()
    broken[0, 7] = np.nan
    for call in (
        lambda: soundfiles.write(tmp_path / "x.wav", broken, RATE),
        lambda: soundfiles.compressed(broken, RATE),
    ):
        with pytest.raises(InputError, match="NaN or infinite samples"):
            call()
    assert not list(tmp_path.iterdir())
    tone = 3 * np.sin(np.arange(RATE) / 10)[None]
    with pytest.warns(UserWarning, match="peaks at 3.00 times full scale, so it is clipped at 1"):
        soundfiles.write(tmp_path / "x.flac", tone, RATE, "FLAC")
    content, mime = soundfiles.compressed(tone, RATE)
    assert mime == "audio/ogg"
    played = soundfile.read(io.BytesIO(content))[0]
    assert np.abs(played).max() == pytest.approx(3, rel=0.1)
    monkeypatch.setattr(soundfile, "available_formats", lambda: ["FLAC"])
    with pytest.warns(UserWarning, match="is clipped at 1"):
        assert soundfiles.compressed(tone, RATE)[1] == "audio/flac"


def test_no_file_is_said(lens: Any, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.wav", "no such file"), (tmp_path, "is not a file")):
        with pytest.raises(InputError, match=message):
            lens.run_with_cache("calm", audio=path)
    with pytest.raises(AudioLensError, match="expected the path"):
        soundfiles.read(3)  # pyright: ignore[reportArgumentType]
