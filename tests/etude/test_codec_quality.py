"""SI-SDR and the mel distance on sounds for which their values are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from audiolens.etude.training import codec
from audiolens.etude.training.codec_quality import codec_quality, mel_distance_db, si_sdr_db, through
from audiolens.etude.training.recipes import BASE


@pytest.fixture(scope="module")
def sound() -> torch.Tensor:
    return 0.1 * torch.randn(3, 1, 32_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("level_db", [-20.0, -8.0, 0.0])
def test_si_sdr_is_the_level_of_added_noise_whatever_the_gain(sound: torch.Tensor, level_db: float) -> None:
    noise = 0.1 * torch.randn(sound.shape, generator=torch.Generator().manual_seed(1))
    decoded = 0.3 * (sound + noise * 10 ** (level_db / 20)) + 0.05
    assert torch.allclose(si_sdr_db(sound, decoded), torch.full((3,), -level_db), atol=0.15)


def test_the_mel_distance_of_a_quieter_copy_is_its_gain(sound: torch.Tensor) -> None:
    assert mel_distance_db(sound, sound).abs().max() == 0
    assert torch.allclose(mel_distance_db(sound, sound * 10 ** (-6 / 20)), torch.full((3,), 6.0), atol=1e-3)


def test_the_mel_distance_is_librosas(sound: torch.Tensor) -> None:
    other = 0.5 * sound.roll(77, -1) + 0.02 * torch.sin(torch.arange(32_000) * 0.3)

    def levels(audio: torch.Tensor, floor: float) -> np.ndarray:
        power = librosa.feature.melspectrogram(
            y=audio[0].numpy(), sr=16_000, n_fft=1024, hop_length=256, n_mels=64, norm=None, pad_mode="reflect"
        )
        return np.maximum(power, floor)

    found = mel_distance_db(sound[:1], other[:1], 30.0)
    floor = levels(sound[0], 0.0).max() / 1000
    expected = np.abs(10 * np.log10(levels(sound[0], floor) / levels(other[0], floor))).mean()
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_a_codec_is_measured_after_its_quantiser() -> None:
    torch.manual_seed(0)
    fresh = codec.build(8)
    quality = codec_quality(fresh, BASE.material.music, 1.28, n=2)
    assert quality.n == 2
    assert quality.si_sdr_db < 0
    audio = 0.1 * torch.randn(1, 1, 6_400)
    with torch.no_grad():
        expected = fresh(audio).audio_values
    assert torch.allclose(through(fresh, audio), expected, atol=1e-6)


def test_the_last_phase_changes_no_code(tmp_path: Path) -> None:
    clips = (3000 * np.random.default_rng(0).standard_normal((3, 10_240))).astype(np.int16)
    schedule = codec.TrainingSchedule(
        autoencoder=1, joint=2, decoder=0, bands_from=0, batch_size=2, segment_frames=8, mel=1.0,
        decoder_waveform=2.0, decoder_rate=1e-3,
        waveform_per_clip=True, bfloat16=True,
    )  # fmt: skip
    path = tmp_path / "codec.safetensors"
    before = codec.train(clips, path, schedule, n_codebooks=8)
    state = {key: value.clone() for key, value in before.state_dict().items()}
    losses: list[dict[str, float]] = []
    after = codec.train(
        clips, path, replace(schedule, decoder=2), lambda *a: losses.append(a[2]), report_every=1, n_codebooks=8
    )
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, state[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)
    assert all("mel" in step for step in losses)
