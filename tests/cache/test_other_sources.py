"""Values from different sources stay separate: sample rates of clips, models of caches, lengths of readings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from analysis import pca, probing
from audiolens.errors import InputError
from audiolens.measure.frechet import codec_features

RATE = 16_000
TIMES = np.arange(RATE) / RATE


def playing(hertz: float, rate: int = RATE) -> al.Generation:
    """A generation that is a steady tone."""
    tone = torch.from_numpy(np.sin(2 * np.pi * hertz * np.arange(rate) / rate)).float()[None, None] / 2
    return al.Generation(torch.zeros(1, 4, 25, dtype=torch.long), tone, rate, 25.0, ("calm",), (0,))


def test_a_generation_is_measured_at_its_own_rate() -> None:
    clip = playing(440.0)
    assert al.measure.brightness(clip)[0] == pytest.approx(440, rel=0.01)
    assert al.measure.brightness(clip, RATE)[0] == pytest.approx(440, rel=0.01)
    for audio in (clip, [clip, np.sin(2 * np.pi * 440 * TIMES)]):
        with pytest.raises(InputError, match="have their own sample rate, 16000, but sample_rate=44100 was given"):
            al.measure.table(audio, 44_100, ["brightness"])


def test_features_of_a_generation_are_those_of_its_sound_at_its_rate(lens: Any) -> None:
    clip = playing(440.0, 32_000)
    alone = codec_features(lens, (clip.audio, 32_000), window_seconds=0.2)
    assert np.allclose(codec_features(lens, clip, window_seconds=0.2), alone)


def test_a_cache_is_read_out_by_its_own_model(lens: Any, melody_lens: Any, tmp_path: Path) -> None:
    logits, cache = lens.run_with_cache("calm")
    loaded = al.ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    assert torch.allclose(loaded.logit_lens(lens)[-1], logits, atol=1e-5)
    with pytest.raises(InputError, match="this cache was recorded from .* but the lens is on"):
        loaded.logit_lens(melody_lens)


def test_a_probe_of_a_cache_says_how_the_cache_was_read(lens: Any, stereo_lens: Any) -> None:
    things = ["piano", "guitar", "drums", "song", "jazz", "music"]
    prompts = [f"{speed} {thing}" for thing in things for speed in ("fast", "slow")]
    labels = ["fast", "slow"] * 6
    codes = torch.randint(0, 32, (12, 4, 6), generator=torch.Generator().manual_seed(0))
    _, cache = lens.run_with_cache(prompts, codes, reduce="mean", branch="null", guidance_scale=3.0)
    found = probing.probe(lens, cache, labels, position="last", n_shuffles=20, folds=2)
    directions = found.directions("slow")
    assert (directions.meta.position, directions.meta.branch) == ("mean", "null")
    with pytest.raises(InputError, match="the cache was recorded from .*, but the lens has"):
        probing.probe(stereo_lens, cache, labels)


def test_heads_are_no_steps_and_padding_is_no_activation(lens: Any, melody_lens: Any) -> None:
    prompts, labels = ["fast piano", "slow drums", "fast guitar", "slow song"], ["fast", "slow"] * 2
    codes = torch.randint(0, 32, (4, 4, 6), generator=torch.Generator().manual_seed(0))
    _, heads = lens.run_with_cache(prompts, codes, sites=["attn.z"], reduce="mean")
    with pytest.raises(InputError, match="attn.z has the axes row head d_head"):
        pca.trajectories(heads, labels, site="attn.z")
    uneven = ["fast piano", "slow piano and the drums", "fast guitar", "slow song with the jazz"]
    _, padded = melody_lens.run_with_cache(uneven, codes, prefix=True)
    with pytest.raises(InputError, match="the rows' prefixes differ in length"):
        pca.trajectories(padded, labels)


def test_a_sum_of_directions_does_not_depend_on_which_stands_first(lens: Any) -> None:
    poles = ["fast piano", "fast song"], ["slow piano", "slow song"]
    first = al.difference_in_means(lens, *poles, seconds=0.2, position="first")
    mean = al.difference_in_means(lens, *poles, seconds=0.2, position="mean")
    one, other = (al.steer(d, layer=1, unit="residual")[0] for d in (first + mean, mean + first))
    assert not torch.allclose(first.residual_norms, mean.residual_norms, rtol=1e-3)
    assert torch.allclose(one.strength * one.vector, other.strength * other.vector)
