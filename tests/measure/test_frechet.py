"""Fréchet distance: the closed form for two Gaussians, the properties of a distance, and the codec's features."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from audiolens import measure
from audiolens.errors import InputError, InputTypeError
from audiolens.etude.synth import SAMPLE_RATE, labelled_clips
from audiolens.measure.frechet import between
from audiolens.sound.codec import features


def with_moments(mean: np.ndarray, cov: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Points whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((n, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(cov).T


def covariance(width: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((width, width))
    return root @ root.T + 0.1 * np.eye(width)


def test_two_gaussians_have_the_distance_of_the_closed_form():
    mean_a, mean_b = np.zeros(5), np.arange(5.0)
    cov_a, cov_b = covariance(5, 1), covariance(5, 2)
    expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    a, b = with_moments(mean_a, cov_a, 60, 3), with_moments(mean_b, cov_b, 60, 4)
    assert between(a, b) == pytest.approx(expected, rel=1e-9)


def test_independent_dimensions_add_up_by_hand():
    a = with_moments(np.array([0.0, 1.0]), np.diag([4.0, 1.0]), 30, 0)
    b = with_moments(np.array([3.0, 1.0]), np.diag([1.0, 9.0]), 30, 1)
    # (0-3)^2 + (1-1)^2 + (2-1)^2 + (1-3)^2
    assert between(a, b) == pytest.approx(9 + 0 + 1 + 4)


def test_many_samples_of_two_known_gaussians_come_close():
    rng = np.random.default_rng(0)
    mean, cov_a, cov_b = np.array([1.0, -1.0, 0.5]), covariance(3, 5), covariance(3, 6)
    a, b = (rng.multivariate_normal(m, c, 40_000) for m, c in ((np.zeros(3), cov_a), (mean, cov_b)))
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert between(a, b) == pytest.approx(expected, rel=0.03)


def test_it_is_a_distance():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((80, 6)), 1 + rng.standard_normal((80, 6)) @ covariance(6, 3)
    assert between(a, b) == pytest.approx(between(b, a))
    assert between(a, a) == pytest.approx(0, abs=1e-9)
    assert between(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    # A dead dimension, and features that lie in a plane, have a distance too.
    flat = np.concatenate([a, np.zeros((80, 1)), a[:, :1]], axis=1)
    assert between(flat, flat) == pytest.approx(0, abs=1e-6)
    assert between(flat, flat + 2) == pytest.approx(8 * 4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((40, 4)), np.ones((50, 4)), "need the same number"),
        (np.ones((20, 4)), np.ones((20, 4)), "needs more than 20"),
        (np.ones((40, 4)), np.ones((40, 5)), "4 and 5 dimensions"),
        (np.ones((40, 4)), np.full((40, 4), np.nan), "features of b have NaN"),
    ],
)
def test_what_would_be_bias_is_refused(a: np.ndarray, b: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        between(a, b)


def test_fewer_features_are_biased_upwards_and_pass_only_where_asked():
    rng = np.random.default_rng(2)
    few, many = (between(*rng.standard_normal((2, n, 20)), least=1) for n in (30, 3000))
    assert few > 10 * many


@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    """Six clips of the synthesiser, three seconds each."""
    return torch.from_numpy(np.stack([clip.audio for clip in labelled_clips(6, seed=7, seconds=3.0)])[:, None])


def test_features_are_the_encoders_own_pooled_over_windows(lens: Any, stereo_lens: Any, waves: torch.Tensor):
    found = measure.codec_features(lens, waves[:3, :, :40_000], batch_size=2)
    with torch.no_grad():
        frames = lens.model.audio_encoder.encoder(waves[:3, :, :40_000])
    assert frames.shape == (3, 16, 63)
    expected = [frames[clip, :, 25 * part : 25 * part + 25].mean(-1) for clip in range(3) for part in range(2)]
    np.testing.assert_allclose(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
    whole = measure.codec_features(lens, waves[:3], window_seconds=None)
    assert whole.shape == (3, 16)
    sides = torch.cat([waves[:1], waves[1:2]], dim=1)
    with torch.no_grad():
        encoder = stereo_lens.model.audio_encoder.encoder
        mean = (encoder(waves[:1]) + encoder(waves[1:2])).mean(-1) / 2
    found = measure.codec_features(stereo_lens, sides, window_seconds=None)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)


def test_features_are_those_the_codes_are_quantised_from(lens: Any, waves: torch.Tensor):
    codec = lens.model.audio_encoder
    frames = features(waves[:2], SAMPLE_RATE, lens.model, lens.config)
    with torch.no_grad():
        codes = codec.quantizer.encode(frames, codec.config.target_bandwidths[0]).transpose(0, 1)
    assert torch.equal(codes, lens.encode_audio(waves[:2], SAMPLE_RATE))


def test_distance_grows_with_added_noise(lens: Any, waves: torch.Tensor):
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0))
    own = measure.codec_features(lens, waves, window_seconds=0.2)
    distances = [
        measure.frechet_distance(lens, own, waves + level * noise, window_seconds=0.2)
        for level in (0.0, 0.01, 0.05, 0.2)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-9)
    assert distances == sorted(distances)
    assert distances[1] > 100 * abs(distances[0])


def test_clips_come_as_generation_codes_sound_or_features(lens: Any):
    out = lens.generate("calm song", seconds=1.0, seeds=list(range(6)))
    ways = [out, out.codes, out.audio, (out.audio, out.sample_rate), measure.codec_features(lens, out)]
    found = [measure.codec_features(lens, way) for way in ways]
    assert found[0].shape == (6, 16)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_pooled_or_is_no_sound_is_refused(lens: Any, waves: torch.Tensor):
    with pytest.raises(InputError, match="clips last 0.52 s"):
        measure.codec_features(lens, waves[:2, :, :8_000])
    with pytest.raises(InputTypeError, match="row channel sample"):
        measure.codec_features(lens, waves[0])
    with pytest.raises(InputTypeError, match="str"):
        measure.frechet_distance(lens, "clips", waves)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NaN"):
        measure.codec_features(lens, waves[:2] * float("nan"))
    with pytest.raises(InputError, match="needs more than 80"):
        measure.frechet_distance(lens, waves[:3], waves[3:])
