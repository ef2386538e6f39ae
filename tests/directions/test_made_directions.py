"""Directions from clips that the model makes: sorted by a measure, or trained by gradient descent."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import audiolens as al
from audiolens.directions.by_measure import Sorting
from audiolens.directions.gradient import Clips, Training
from audiolens.errors import InputError

FAST = ["a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums", "a bright fast song"]
SLOW = [prompt.replace("fast", "slow") for prompt in FAST]
NEUTRAL = ["a song", "piano", "the jazz with drums", "guitar and drums"]
QUICK: dict[str, Any] = {"seconds": 0.6, "progress": False}


# By measure


@pytest.mark.parametrize("fit", ["quantile", "ridge"])
def test_clips_are_sorted_by_what_is_measured_in_them(lens: Any, fit: str) -> None:
    d = al.estimate(
        lens, prompts=NEUTRAL, method="by_measure", measure="loudness", fit=fit, clips_per_prompt=3, layers=[1],
        batch_size=5, label="loudness", **QUICK,
    )  # fmt: skip
    rows = [prompt for prompt in NEUTRAL for _ in range(3)]
    out = lens.generate(rows, 0.6, seeds=list(range(12)), sites="resid_post", layers=[1], reduce="mean")
    loud = al.measure.loudness(out.audio, out.sample_rate)
    order = np.argsort(loud)
    vectors = out.cache.stack("resid_post")[0].float()
    assert d.samples is not None
    assert d.samples.measured is not None
    if fit == "quantile":
        expected = vectors[order[-3:].copy()].mean(0) - vectors[order[:3].copy()].mean(0)
        torch.testing.assert_close(d[1], expected, rtol=1e-3, atol=1e-3)
        assert d.meta.n_prompts == (3, 3)
        assert sorted(d.samples.prompts) == sorted(rows[row] for row in [*order[:3], *order[-3:]])  # type: ignore[type-var]
    else:
        assert len(d.samples.prompts) == 12
        # Read apart from the same samples, it is the same regression.
        again = al.estimate(samples=d.samples, method="ridge", labels=d.samples.measured)
        torch.testing.assert_close(again.vectors, d.vectors)
    torch.testing.assert_close(d.samples.measured.sort().values[-3:], torch.from_numpy(loud[order[-3:]]).float())
    assert (d.meta.estimator, d.meta.label, d.meta.source) == ("by measure", "loudness", "generation")
    assert d.meta.options["measure"] == "loudness"
    assert d.meta.seeds == tuple(range(12))
    assert al.steer(d, layer=1, strength=0.5)


def test_clips_without_a_value_are_left_out_and_counted() -> None:
    values = np.array([3.0, np.nan, 1.0, 2.0, 4.0, np.nan, 5.0, 0.0])
    kept, positive = Sorting.checked("tempo", "quantile", 0.34).kept(values)
    assert kept[positive].tolist() == [4, 6]
    assert sorted(kept[~positive].tolist()) == [2, 7]
    kept, positive = Sorting.checked("tempo", "ridge", 0.25).kept(values)
    assert sorted(kept.tolist()) == [0, 2, 3, 4, 6, 7]
    assert sorted(kept[positive].tolist()) == [0, 4, 6]
    with pytest.raises(InputError, match="3 of 8 clips have a tempo"):
        Sorting.checked("tempo", "quantile", 0.25).kept(np.array([1.0, 2, 3, *[np.nan] * 5]))
    with pytest.raises(InputError, match="have the same tempo"):
        Sorting.checked("tempo", "quantile", 0.5).kept(np.ones(8))


def test_by_measure_is_checked_before_anything_is_generated(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lens), "generate", lambda *_, **__: pytest.fail("generated"))
    for match, given in (
        ("needs a measure, such as", {"measure": None}),
        ("Did you mean 'tempo", {"measure": "tempoo"}),
        ("fit='median'", {"fit": "median"}),
        ("quantile=0.7: expected at most 0.5", {"quantile": 0.7}),
        ("no prompts", {"prompts": []}),
        ("2 seeds for 4 clips", {"seeds": [1, 2]}),
        ("position='first' is read before", {"position": "first"}),
        ("has no poles", {"positive": FAST}),
        ("clips_per_prompt=0", {"clips_per_prompt": 0}),
    ):
        with pytest.raises(InputError, match=match):
            al.estimate(lens, **{"method": "by_measure", "prompts": NEUTRAL, "measure": "tempo", **QUICK, **given})


# By gradient


POSITIVE = [*NEUTRAL, "a bright song", "loud piano", "soft guitar", "the dark song"]
NEGATIVE = [
    "calm song", "calm piano", "calm jazz with drums", "calm guitar", "a calm song", "loud calm", "soft calm guitar",
    "the calm song",
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(lens: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """A vector of the length of activations, and clips of both poles that were generated under it and against it."""
    vector = 6.4 * torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(1)), dim=0)
    sides = [
        lens.generate(
            prompts, 0.6, seeds=list(range(8)), guidance_scale=1.0, decode=False,
            interventions=al.Add(vector, layers=[1], branch="cond", strength=sign),
        ).codes
        for prompts, sign in ((POSITIVE, 1.0), (NEGATIVE, -1.0))
    ]  # fmt: skip
    return vector, (sides[0], sides[1])


def test_training_finds_the_vector_under_which_clips_were_made(
    lens: Any, planted: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]
) -> None:
    vector, codes = planted
    d = al.estimate(lens, POSITIVE, NEGATIVE, "gradient", codes=codes, layers=[1], max_norm=20, progress=False)
    assert float(cosine_similarity(d[1], vector, dim=0)) > 0.7
    # The model reads these clips without the vector, so that the difference in means does not know it.
    means = al.estimate(samples=d.samples)
    assert abs(float(cosine_similarity(means[1], vector, dim=0))) < 0.3
    assert d.evidence is not None
    assert d.evidence.gain is not None
    assert float(d.evidence.gain[0]) > 0.03
    assert "likelier" in repr(d)
    assert d.evidence.split_half_cosine.isnan().all()
    assert (d.meta.estimator, d.meta.source, d.meta.seeds) == ("gradient", "codes", ())
    bounded = al.estimate(lens, POSITIVE, NEGATIVE, "gradient", codes=codes, layers=[1], max_norm=2, progress=False)
    assert float(bounded.norms[0]) <= 2.0001 * float(means.norms[0]) < float(d.norms[0])


def test_the_loss_equals_the_nats_of_the_steered_model(
    lens: Any, planted: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Held-out nats, before and after, by the lens's own logits under an intervention."""
    _, codes = planted
    d = al.estimate(
        lens, POSITIVE, NEGATIVE, "gradient", codes=codes, layers=[1], max_norm=20, steps=20, progress=False
    )
    clips = Clips.of(POSITIVE, NEGATIVE, codes)
    _, held = clips.divided(Training())
    # Two of eight pairs are held out, and each clip is read with the prompt of the other pole.
    assert len(held) == 4
    assert clips.prompts == (*NEGATIVE, *POSITIVE)
    delays = lens.config.delays

    def nats(strength: float) -> float:
        found = []
        for row in held:
            given = al.Add(d[1], layers=[1], strength=float(clips.signs[row]) * strength)
            logits = lens.run_with_interventions([clips.prompts[row]], clips.codes[[row]], given)
            scores = torch.stack([logits[:, book, delay : delay + 15] for book, delay in enumerate(delays)], dim=1)
            found.append(-scores.log_softmax(-1).gather(-1, clips.codes[[row]][..., None]).mean())
        return float(torch.stack(found).mean())

    before, after = d.meta.options["held-out nats"].split(" to ")
    assert nats(0) == pytest.approx(float(before), abs=2e-4)
    assert nats(1) == pytest.approx(float(after), abs=2e-4)
    assert d.evidence is not None
    assert d.evidence.gain is not None
    assert float(d.evidence.gain[0]) == pytest.approx(nats(0) - nats(1), abs=1e-4)


def test_training_leaves_the_model_as_it_was(lens: Any) -> None:
    before = {name: value.clone() for name, value in lens.model.state_dict().items()}
    state = torch.random.get_rng_state()
    made = lens.generate([*FAST, *SLOW], 0.4, seeds=list(range(10)), decode=False).codes
    pair = made[:5], made[5:]
    with contextlib.suppress(InputError):
        # Random clips may not become likelier, which is an error at the end of the training.
        al.estimate(lens, FAST, SLOW, "gradient", codes=pair, layers=[0], steps=6, every=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in lens.model.state_dict().items())
    assert all(parameter.grad is None for parameter in lens.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_melody_trains_on_prompts_of_different_lengths(melody_lens: Any) -> None:
    """A batch of Melody has prompts of one length, and the vector leaves its prefix alone."""
    vector = torch.randn(48, generator=torch.Generator().manual_seed(1))
    made = [
        melody_lens.generate(
            prompts, 0.4, seeds=list(range(8)), guidance_scale=1.0, decode=False,
            interventions=al.Add(vector, layers=[1], branch="cond", strength=sign),
        ).codes
        for prompts, sign in ((POSITIVE, 1.0), (NEGATIVE, -1.0))
    ]  # fmt: skip
    d = al.estimate(
        melody_lens, POSITIVE, NEGATIVE, "gradient", codes=(made[0], made[1]), layers=[1], max_norm=20, progress=False
    )
    assert float(cosine_similarity(d[1], vector, dim=0)) > 0.5


def test_gradient_is_checked_before_anything_is_generated(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lens), "generate", lambda *_, **__: pytest.fail("generated"))
    codes = torch.zeros(5, 4, 12, dtype=torch.long)
    for match, given in (
        ("needs the prompts of both poles", {"negative": None}),
        ("at least 2 prompts per pole", {"positive": FAST[:1], "negative": SLOW[:1]}),
        ("both poles have the same clips", {"codes": codes}),
        ("both poles have the same clips", {"codes": "shared", "neutral": NEUTRAL}),
        ("position='first' needs none", {"position": "first"}),
        ("steps=0", {"steps": 0}),
        ("learning_rate=-1", {"learning_rate": -1}),
        ("held_out=1", {"held_out": 1}),
    ):
        asked = {"positive": FAST, "negative": SLOW, **QUICK, **given}
        with pytest.raises(InputError, match=match):
            al.estimate(lens, method="gradient", **asked)
    with torch.inference_mode(), pytest.raises(InputError, match="leave this mode first"):
        al.estimate(lens, FAST, SLOW, "gradient", codes=(codes, codes + 1), layers=[1], **QUICK)
