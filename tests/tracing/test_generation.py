"""Notebook players of generated clips embed their sound in compressed form."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolens.errors import InputError
from audiolens.tracing.generation import Generation

RATE = 16_000
PITCHES_HZ = (220.0, 330.0, 550.0)


@pytest.fixture
def clips() -> Generation:
    """Three seconds of a tone a row."""
    time = torch.arange(3 * RATE) / RATE
    audio = torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * time) for pitch in PITCHES_HZ])[:, None]
    codes = torch.zeros(3, 4, 75, dtype=torch.long)
    return Generation(codes, audio, RATE, 25.0, ("a <b> tune", None, "a tune"), (0, 1, 2))


def sounds(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:([\w/]+);base64,([^"]+)" type="([\w/]+)"', html)
    assert all(mime == told == "audio/ogg" for mime, _, told in found)
    return [soundfile.read(io.BytesIO(base64.b64decode(content)))[0] for _, content, _ in found]


def loudest_hz(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax() / len(sound) * RATE)


def test_every_row_plays_under_its_prompt_and_is_its_own_sound(clips: Generation) -> None:
    html = clips.listen().data
    played = sounds(html)
    assert [len(sound) for sound in played] == [3 * RATE] * 3
    np.testing.assert_allclose([loudest_hz(sound) for sound in played], PITCHES_HZ, atol=1)
    assert "a &lt;b&gt; tune<br>" in html
    assert "(no prompt)<br>" in html


def test_a_player_is_a_quarter_of_its_wav_at_most(clips: Generation) -> None:
    assert len(clips.listen(0)._repr_html_()) < 3 * RATE * 2 / 4


def test_one_row_is_a_bare_player(clips: Generation) -> None:
    (played,) = sounds(clips.listen(-1)._repr_html_())
    assert loudest_hz(played) == pytest.approx(PITCHES_HZ[2], abs=1)


def test_several_rows_in_the_order_asked_for_under_other_labels(clips: Generation) -> None:
    html = clips.listen([2, 0], labels=["high", "low"]).data
    np.testing.assert_allclose([loudest_hz(sound) for sound in sounds(html)], [PITCHES_HZ[2], PITCHES_HZ[0]], atol=1)
    assert html.index("high<br>") < html.index("low<br>")
    assert "a tune" not in html


def test_a_saved_clip_is_its_sound_however_loud(clips: Generation, tmp_path: Path) -> None:
    audio = clips.audio.clone()  # type: ignore[union-attr]
    audio[1] *= 10
    folder = replace(clips, audio=audio).save(tmp_path / "clips")
    quiet, loud, _ = (soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.wav")))
    np.testing.assert_allclose(quiet, audio[0, 0], atol=0.51 / 32768)
    np.testing.assert_array_equal(loud, audio[1, 0])


def test_clips_with_nan_are_not_saved_and_their_rows_named(clips: Generation, tmp_path: Path) -> None:
    audio = clips.audio.clone()  # type: ignore[union-attr]
    audio[1, 0, 5] = torch.nan
    broken = replace(clips, audio=audio)
    with pytest.raises(InputError, match=r"the audio of rows \[1\] has NaN"):
        broken.save(tmp_path / "clips")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="NaN"):
        broken.listen()


def test_rows_and_labels_that_are_not_there_are_refused(clips: Generation) -> None:
    with pytest.raises(InputError, match="row 3: there are rows 0 to 2"):
        clips.listen(3)
    with pytest.raises(InputError, match="1 labels for 2 clips"):
        clips.listen([0, 1], labels=["one"])
