"""Patched generation turns a clip into the clean one where a concept was planted, on matched pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import plants
import pytest

import audiolens as al
from analysis import patching
from audiolens.errors import InputError, PromptError

LOUD = patching.Sound("loudness", seconds=0.4, guidance_scale=3.0, top_k=0)
QUIET: dict[str, Any] = {"progress": False, "n_bootstrap": 50, "n_permutations": 50}


@pytest.fixture(scope="module")
def plant(checkpoint: Path) -> plants.Plant:
    return plants.head_plant(al.AudioLens.from_pretrained(checkpoint), 1, 2)


def played(plant: plants.Plant, prompts: tuple[str, ...]) -> np.ndarray:
    out = plant.lens.generate(prompts, 0.4, seeds=[0, 1, 2], guidance_scale=3.0, top_k=0)
    assert out.audio is not None
    return np.asarray(al.measure.loudness(out.audio, out.sample_rate))


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_the_planted_head_alone_makes_the_other_clip(plant: plants.Plant, mode: Any) -> None:
    found = patching.patch(
        plant.lens, plant.positive, plant.negative, None, LOUD, "cross_attn.z", by="head", mode=mode, **QUIET
    )
    clean, corrupted = played(plant, plant.positive), played(plant, plant.negative)
    assert (clean != corrupted).all()
    np.testing.assert_allclose(found.clean[:, 0], clean, rtol=1e-4)
    np.testing.assert_allclose(found.corrupted[:, 0], corrupted, rtol=1e-4)
    base, other = (corrupted, clean) if mode == "denoising" else (clean, corrupted)
    expected = np.broadcast_to(base[:, None, None], (3, 3, 4)).copy()
    expected[:, 1, 2] = other
    np.testing.assert_allclose(found.patched[:, 0], expected, rtol=1e-4)
    assert (found.codebooks, found.unit, found.names) == (("loudness",), "dBFS", ("loudness",))


def test_small_batches_and_fewer_pairs_play_the_same_clips(plant: plants.Plant) -> None:
    sites = ("attn_out", "cross_attn_out", "mlp_out", "resid_post")
    options: dict[str, Any] = {"by": "component", "site": sites, "layers": [0, 1], **QUIET}
    sound = patching.Sound("loudness", seconds=0.4, top_k=0, pairs=2, batch_size=4)
    found = patching.patch(plant.lens, plant.positive, plant.negative, None, sound, **options)
    assert found.patched.shape == (2, 1, 2, 4)
    whole = patching.patch(plant.lens, plant.positive, plant.negative, None, LOUD, **options)
    np.testing.assert_allclose(found.patched, whole.patched[:2], rtol=1e-4)
    # From the planted block on, the stream is all that the text can say.
    np.testing.assert_allclose(found.patched[:, 0, 1, 3], found.clean[:, 0], rtol=1e-4)


def test_windows_and_tokens_are_patched_where_they_are(plant: plants.Plant) -> None:
    sides = plant.positive[:2], plant.negative[:2]
    codes = plant.lens.generate(sides[0], 0.4, seeds=[0, 1], decode=False).codes
    found = patching.patch(plant.lens, *sides, codes, by="token", layers=1, sound=LOUD, **QUIET)
    assert found.sound is not None
    assert found.columns == found.sound.columns == ("+0 fast/slow", "+1", "+2", "+3 </s>")
    assert np.isnan(found.sound.patched[0, 0, 0]).tolist() == [False, False, False, True]
    timed = patching.patch(
        plant.lens, *sides, None, LOUD, "resid_post", layers=1, windows=[(0.0, 0.2), (0.2, 0.4)], **QUIET
    )
    assert timed.spans == ((0.0, 0.2), (0.2, 0.4))
    assert (timed.patched[:, 0, 0] != timed.corrupted).any()
    labels = [axes.get_ylabel() for axes in found.plot().axes]
    assert any("dBFS" in label for label in labels)
    assert any("nats" in label for label in labels)


def test_windows_by_number_end_with_the_clip(plant: plants.Plant) -> None:
    """The tail's steps are in no second of the clip: equal windows once ran past its end."""
    sides = plant.positive[:1], plant.negative[:1]
    sound = patching.Sound("loudness", seconds=1.0)
    found = patching.patch(plant.lens, *sides, None, sound, layers=[1], **QUIET)
    assert found.spans is not None
    assert found.spans[-1][1] == 1.0
    assert found.patched.shape == (1, 1, 1, 8)
    quarters = patching.patch(
        plant.lens, *sides, None, patching.Sound("loudness", seconds=2.0), layers=[1], windows=4, **QUIET
    )
    assert quarters.spans == ((0.0, 0.48), (0.48, 1.0), (1.0, 1.52), (1.52, 2.0))


def test_one_window_is_the_whole_clip_with_its_tail(plant: plants.Plant) -> None:
    """A stream patched from the first step to the last of the tail makes the other clip, to its last code."""
    found = patching.patch(
        plant.lens, plant.positive, plant.negative, None, LOUD, "resid_post", layers=[2], windows=1, **QUIET
    )
    np.testing.assert_allclose(found.patched[:, 0, 0, 0], found.clean[:, 0], rtol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_sound_grid_is_planned_and_shown_before_its_first_clip(
    plant: plants.Plant, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], guidance_scale: float
) -> None:
    """What was promised is what is played: clips, generations, and rows of the decoder."""
    sound = patching.Sound("loudness", seconds=0.4, top_k=0, guidance_scale=guidance_scale, batch_size=8)
    asked: dict[str, Any] = {"by": "head", "layers": [1, 2]}
    given = plant.lens, plant.positive, plant.negative, None, sound
    plan = patching.plan(*given, **asked, timed=False)
    assert np.isnan(plan.seconds)
    rows, shown = [], []
    generate = plant.lens.generate

    def counted(prompts: Any, seconds: Any, **options: Any) -> Any:
        if options.get("decode", True):
            shown.append("SoundPlan(8 cells x 3 pairs" in capfd.readouterr().err)
            rows.append(len(prompts))
        return generate(prompts, seconds, **options)

    monkeypatch.setattr(plant.lens, "generate", counted)
    patching.patch(*given, **asked, n_bootstrap=10, n_permutations=10)
    assert shown[0]
    assert (len(rows), max(rows), sum(rows)) == (plan.generations, plan.rows, plan.clips)
    # 10 frames and 3 steps of tail in 3 blocks.
    assert plan.row_steps == plan.clips * (10 + 3) * 3 * (1 if guidance_scale == 1 else 2)
    rows.clear()
    timed = patching.plan(*given, **asked)
    assert 0 < timed.seconds < 600
    assert not rows
    assert "clips of 0.4 s" in repr(timed)


def test_a_sound_that_does_not_fit_is_refused_before_the_codes_are_patched(
    plant: plants.Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = plant.lens.generate(plant.positive, 0.4, seeds=[0, 1, 2], decode=False).codes
    monkeypatch.setattr(plant.lens, "run_with_cache", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match="this model makes clips"):
        patching.patch(
            plant.lens, plant.positive, plant.negative, codes, sound=patching.Sound("loudness", seconds=900.0), **QUIET
        )


def test_by_ear_the_text_is_patched_and_not_the_donors_music(plant: plants.Plant) -> None:
    """The plant reads its text at block 1: by ear as by codes, block 0 must move nothing.

    The stream would: it carries the codes that the donor played, and no text yet.
    """
    assert plant.read_at == 1
    codes = plant.lens.generate(plant.positive, 0.4, seeds=[0, 1, 2], decode=False).codes
    given = plant.lens, plant.positive, plant.negative
    found = patching.patch(*given, codes, layers=[0, 1], windows=2, sound=LOUD, **QUIET)
    ear = found.sound
    assert ear is not None
    assert (found.sites, ear.sites) == (("resid_post",), ("cross_attn_out",))
    np.testing.assert_allclose(ear.patched[:, 0, 0, 0], ear.corrupted[:, 0], rtol=1e-6)
    np.testing.assert_allclose(ear.patched[:, 0, 1, 0], ear.clean[:, 0], rtol=1e-6)
    stream = patching.patch(*given, None, LOUD, "resid_post", layers=[0], windows=1, **QUIET)
    assert (np.abs(stream.patched[:, 0, 0, 0] / stream.corrupted[:, 0] - 1) > 2e-6).any()
    captions = [
        " ".join(axes.get_text().split())
        for figure in (found, stream)
        if (axes := figure.plot()._supxlabel) is not None
    ]
    assert "3 pairs, in all of which both runs could be measured. What the donor run reads from its text" in captions[0]
    assert "The patch also transfers the donor run's own music." in captions[1]
    assert "Not measured on sound" not in captions[0]


def test_pairs_are_matched_take_turns_and_play_from_their_seeds(lens: al.AudioLens) -> None:
    sets = al.prompts.PromptSet(
        "tempo", ("fast", "slow"), ("fast music", "a fast song"), ("slow music", "a calm slow song")
    )
    plain = patching.pairs(lens, sets, 3, seconds=0.4)
    assert plain.clean == ("fast music", "a fast song", "fast music")
    found = patching.pairs(lens, sets, 3, seconds=0.4, turns=True)
    assert found.clean == ("fast music", "a calm slow song", "fast music")
    assert found.corrupted == ("slow music", "a fast song", "slow music")
    own = lens.generate("fast music", 0.4, seeds=[2], decode=False).codes
    assert (found.codes[2] == own[0]).float().mean() > 0.9
    assert found.codes.shape == found.history.shape == (3, 4, 10)
    assert "3 of 10 frames" in repr(found)
    alike = patching.pairs(lens, sets, 2, seconds=0.4, same_length=True)
    assert set(alike.clean) == {"fast music"}
    grid = patching.patch(lens, found.clean, found.corrupted, found.codes, windows=1, **QUIET)
    assert grid.means.n_clusters == 2
    uneven = al.prompts.PromptSet("tempo", ("fast", "slow"), ("fast music",), ("slow music", "a slow song"))
    with pytest.raises(InputError, match="none are matched"):
        patching.pairs(lens, uneven, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "temp"}, "Did you mean 'tempo'"),
        ({"measure": "tempo", "pairs": 0}, "pairs=0: expected a whole number of at least 1"),
        ({"measure": "tempo", "batch_size": 2}, "batch_size=2: expected a whole number of at least 3"),
        ({"measure": "tempo", "pairs": 1.5}, "pairs=1.5"),
        ({"measure": "tempo", "first_seed": -1}, "first_seed=-1"),
        ({"measure": "tempo", "temperature": -1.0}, "temperature=-1"),
    ],
)
def test_a_sound_that_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        patching.Sound(**options)


def test_melody_plays_pairs_of_one_length_alone(melody_lens: al.AudioLens) -> None:
    with pytest.raises(PromptError, match="no mask for its text"):
        patching.patch(melody_lens, "fast", "slow song", None, LOUD, **QUIET)
    found = patching.patch(
        melody_lens, "fast", "slow", None, LOUD, ("attn_out", "resid_post"), by="component", layers=2, **QUIET
    )
    # The last block's stream is all that its output heads see.
    np.testing.assert_allclose(found.patched[0, 0, 0, -1], found.clean[0, 0], rtol=1e-4)
