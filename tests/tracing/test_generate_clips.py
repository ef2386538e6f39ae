"""Continuations of given sound match transformers and depend only on their own seed."""

import warnings
from typing import Any

import pytest
import soundfile
import torch

import audiolens as al
from analysis.cli import _plainly_warned
from audiolens.errors import AudioLensWarning, InputError

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6
FRAMES, GIVEN, TAIL = 15, 5, 3


def wave(channels: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, channels, GIVEN * 640, generator=torch.Generator().manual_seed(0)) * 0.3


def bare(lens: Any, sound: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """The continuation of the same sound by transformers alone."""
    inputs = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    return lens.model.generate(**inputs, input_values=sound, max_new_tokens=FRAMES + TAIL - GIVEN, **kwargs)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("sites", [(), "resid_post"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_greedy_continuation_is_transformers_own_to_the_bit(lens, stereo_lens, channels, sites, guidance_scale):
    one, sound = lens if channels == 1 else stereo_lens, wave(channels)
    expected = bare(one, sound, do_sample=False, guidance_scale=guidance_scale)
    given = {"guidance_scale": guidance_scale, "temperature": 0, "sites": sites}
    out = one.generate(PROMPTS, SECONDS, audio_prompt=(sound, 16000), **given)
    codes = one.encode_audio(sound, 16000)
    assert out.codes.shape[-1] == FRAMES
    assert torch.equal(out.codes[..., :GIVEN], codes)
    assert torch.equal(out.audio, expected)
    coded = one.generate(PROMPTS, SECONDS, audio_prompt=codes, use_cache=False, **given)
    assert torch.equal(coded.codes, out.codes)
    assert out.settings["audio_prompt_seconds"] == GIVEN / 25


def test_a_sampled_continuation_is_transformers_own_to_the_bit(lens):
    torch.manual_seed(3)
    expected = bare(lens, wave(1), do_sample=True, top_k=20, guidance_scale=3.0)
    torch.manual_seed(3)
    assert torch.equal(lens.generate(PROMPTS, SECONDS, audio_prompt=(wave(1), 16000), top_k=20).audio, expected)


def test_a_continuation_is_drawn_from_its_own_seed_and_sound_in_any_batch(lens):
    codes = lens.encode_audio(wave(1), 16000)
    out = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], audio_prompt=codes, exact=True)
    for row in range(3):
        alone = lens.generate(
            PROMPTS[row], SECONDS, seeds=[row + 1], audio_prompt=codes[row : row + 1], exact=True, decode=False
        )
        assert torch.equal(alone.codes[0], out.codes[row])
    halves = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], audio_prompt=codes, batch_size=2, decode=False)
    # Each against a run of its own shape: another meets other kernels.
    for rows in (slice(0, 2), slice(2, 3)):
        seeds = [1, 2, 3][rows]
        part = lens.generate(PROMPTS[rows], SECONDS, seeds=seeds, audio_prompt=codes[rows], decode=False)
        assert torch.equal(halves.codes[rows], part.codes)


def test_one_sound_of_any_rate_and_channels_serves_every_row(lens):
    sound = wave(2, rows=1)[0]
    out = lens.generate(PROMPTS, SECONDS, seeds=1, audio_prompt=(sound, 22050), decode=False)
    codes = lens.encode_audio(sound, 22050)
    assert torch.equal(out.codes[..., : codes.shape[-1]], codes.expand(3, -1, -1))
    assert torch.equal(out.codes, lens.generate(PROMPTS, SECONDS, seeds=1, audio_prompt=codes, decode=False).codes)


def test_what_is_recorded_and_changed_counts_its_time_from_the_prompt_s_beginning(lens):
    add = al.Add(torch.ones(48), layers=1, strength=3.0, seconds=(0.08, 0.4))
    given = {"sites": ["resid_post", "attn.z"], "interventions": add}
    out = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], audio_prompt=(wave(1), 16000), **given)
    _, cache = lens.run_with_cache(PROMPTS, out.codes, guidance_scale=3.0, **given)
    assert list(out.cache) == list(cache)
    for name in cache:
        torch.testing.assert_close(out.cache[name], cache[name], rtol=1e-4, atol=1e-5)
    less = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], audio_prompt=(wave(1), 16000), reduce="mean", **given)
    expected = out.cache["resid_post", 2][:, :FRAMES].mean(1)
    torch.testing.assert_close(less.cache["resid_post", 2], expected, rtol=1e-4, atol=1e-5)


def test_each_row_goes_on_from_its_own_sound(lens, tmp_path):
    sounds = wave(1)
    given = {"seeds": [1, 2, 3], "decode": False}
    expected = lens.generate(PROMPTS, SECONDS, audio_prompt=lens.encode_audio(sounds, 16000), **given).codes
    assert not torch.equal(expected[0], expected[1])
    for start in (
        (sounds, 16000),
        [(sound, 16000) for sound in sounds],
        [[sound[0].numpy(), 16000] for sound in sounds],
    ):
        assert torch.equal(lens.generate(PROMPTS, SECONDS, audio_prompt=start, **given).codes, expected)
    files = [tmp_path / f"{row}.wav" for row in range(3)]
    for file, sound in zip(files, sounds, strict=True):
        soundfile.write(file, sound.T.numpy(), 16000, subtype="FLOAT")
    assert torch.equal(lens.generate(PROMPTS, SECONDS, audio_prompt=files, **given).codes, expected)
    alone = lens.generate(PROMPTS, SECONDS, audio_prompt=[(sounds[0], 16000)], **given).codes
    assert torch.equal(alone, lens.generate(PROMPTS, SECONDS, audio_prompt=(sounds[0], 16000), **given).codes)


def test_a_clip_longer_than_the_model_is_set_up_for_is_said(lens, monkeypatch):
    given = {"seeds": 1, "decode": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lens.generate("calm", 2.0, **given)
        monkeypatch.setattr(lens.model.generation_config, "max_length", 33)
        lens.generate("calm", 1.3, **given)
    with pytest.warns(AudioLensWarning, match=r"seconds=1.4: .* is set up for clips of up to 1.32 s") as caught:
        lens.generate("calm", 1.4, **given)
    assert [one.filename for one in caught] == [__file__]


def test_the_command_line_says_a_warning_in_a_line_and_once(lens, monkeypatch, capsys):
    monkeypatch.setattr(lens.model.generation_config, "max_length", 33)
    with _plainly_warned():
        for _ in range(2):
            lens.generate("calm", 1.4, seeds=1, decode=False)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("audiolens: seconds=1.4: ")


def test_rows_that_may_be_channels_are_refused(lens, monkeypatch):
    monkeypatch.setattr("audiolens.tracing.model_calls.generate", lambda *_, **__: pytest.fail("the model ran"))
    sounds = wave(1, 2)[:, 0]
    with pytest.raises(
        InputError, match=r"\(2, \d+\) for 2 prompts may be channels or one sound per row.*\(2, 1, .*\(1, 2, "
    ):
        lens.generate(PROMPTS[:2], SECONDS, audio_prompt=(sounds, 16000))
    with pytest.raises(InputError, match=r"\(3, \d+\) for 3 prompts.*\(3, 1, \d+\) for one sound per row\.$"):
        lens.generate(PROMPTS, SECONDS, audio_prompt=(wave(1)[:, 0].numpy(), 16000))
    for listed in ([*sounds.numpy()], sounds.tolist(), (*sounds.numpy(),)):
        with pytest.raises(InputError, match=r"\(2, \d+\) for 2 prompts may be channels or one sound per row"):
            lens.generate(PROMPTS[:2], SECONDS, audio_prompt=(listed, 16000))
    with pytest.raises(InputError, match="sounds of 0.2 s, 0.12 s"):
        lens.generate(PROMPTS[:2], SECONDS, audio_prompt=[(sounds[0], 16000), (sounds[1, :1920], 16000)])
    with pytest.raises(al.errors.AudioLensError, match=r"audio_prompt\[1\]=list: expected"):
        lens.generate(PROMPTS[:2], SECONDS, audio_prompt=[(sounds[0], 16000), [sounds[1]]])
    with pytest.raises(InputError, match="2 rows of codes for 3 prompts"):
        lens.generate(PROMPTS, SECONDS, audio_prompt=[(sounds[0], 16000), (sounds[1], 16000)])


@pytest.mark.parametrize(
    ("audio_prompt", "message"),
    [
        (torch.zeros(3200), "needs its sample rate: give .waveform, sample_rate"),
        ("a file.wav", "no such file"),
        (torch.zeros(1, 4, 15, dtype=torch.long), "raise seconds="),
        (torch.zeros(2, 4, 5, dtype=torch.long), "2 rows"),
        (torch.zeros(1, 3, 5, dtype=torch.long), "4 codebooks"),
        (torch.full((1, 4, 5), 32), "0 to 31"),
        ((torch.zeros(0), 16000), "empty"),
        ((torch.zeros(100), 0), "sample_rate"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(lens, monkeypatch, audio_prompt, message):
    monkeypatch.setattr("audiolens.tracing.model_calls.generate", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(al.errors.AudioLensError, match=message):
        lens.generate(PROMPTS, SECONDS, audio_prompt=audio_prompt)
