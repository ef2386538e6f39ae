"""A comparison of methods on a tiny model resumes, and every kind of method does what it says."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clap_models import write_clap
from plants import copied, head_plant

import audiolens as al
from analysis import features, methods, sweep
from analysis.methods import clap as heard_by_clap
from analysis.methods import latents
from analysis.methods import table as known
from analysis.methods.reading import Steering
from analysis.study.stages import Stages
from audiolens import AudioLens, Generation
from audiolens.errors import InputError, InputTypeError, ModelNotFoundError
from audiolens.prompts import PromptSet


def poles() -> PromptSet:
    neutral = ("piano", "guitar music", "the song", "a jazz song")
    return PromptSet(
        "speed", ("fast", "slow"), ("a fast song", "fast music", "the fast jazz"),
        ("a slow song", "slow music", "the slow jazz"), neutral[:2], neutral[2:], ("fast",), ("slow",), ("song",),
    )  # fmt: skip


def code(lens: AudioLens, clips: Generation) -> np.ndarray:
    """A measure of a tiny model, whose sound has none: the mean code."""
    assert lens.config.n_codebooks == clips.codes.shape[1]
    return clips.codes.double().mean((1, 2)).numpy()


def test_a_comparison_resumes_and_takes_a_new_method(
    lens: AudioLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def mine(lens: AudioLens, reading: methods.Reading) -> Steering:
        assert lens.config.n_layers == 3
        with pytest.raises(InputTypeError, match="make=.*which this is not: missing a required argument: 'prompts'"):
            reading.kept("odd", lens)
        # A compiled function has no source that a stored result could be checked against.
        with pytest.raises(InputTypeError, match="make returned dict: expected Directions"):
            reading.kept("odd", dict)
        steering = reading.along(-1 * reading.directions)
        return lambda dose: (asked.append(dose), steering(dose))[1]

    def nowhere(lens: AudioLens, reading: methods.Reading) -> Steering:
        raise methods.NotApplicable(f"{reading.sets.concept} cannot be steered by {lens.name}.")

    sets = [poles(), PromptSet(**{**vars(poles()), "concept": "level"})]
    named: Any = {"mine": mine, "nowhere": nowhere}
    way: dict[str, Any] = {
        "methods": named, "measured": {"speed": code}, "prompts": 2, "seconds": 0.4, "doses": (-1, 1),
        "places": {"speed": methods.Place("one-to-one", 1, 0.5)}, "progress": False, "n_jobs": 0, "engine": "fast",
        "n_bootstrap": 20, "n_permutations": 9, "out": tmp_path,
    }  # fmt: skip
    first = methods.compare(lens, sets[:1], **way)
    place, measured = methods.Place("one-to-one", 1, 0.5), {"speed": code, "level": "loudness"}
    more = {**way, "methods": {**named, "probe": methods.METHODS["probe"]}, "measured": measured}
    more["places"] = {"speed": place, "level": place}
    whole = methods.compare(lens, sets, **more)
    # The added method has a sweep of its own: two doses and the unsteered clips, of two prompts.
    assert {one.name: len(sweep.load_folder(one).table) for one in (tmp_path / "clips").iterdir()} == {
        "speed": 24, "speed-2": 6, "level": 28,
    }  # fmt: skip
    monkeypatch.setattr(type(lens), "generate", None)
    again = methods.compare(lens, sets, **more)
    assert asked == 4 * [-1, 1] + [-1, 1]
    pd.testing.assert_frame_equal(whole.table, again.table)
    unit = ["drift", "drift_low", "drift_high"]
    kept = whole.conditions.merge(first.conditions[["concept", "condition"]]).drop(columns=unit)
    pd.testing.assert_frame_equal(kept, first.conditions.drop(columns=unit))
    told = {(name, "nowhere"): f"{name} cannot be steered by {lens.name}." for name in ("speed", "level")}
    assert dict(whole.left_out) == told
    with pytest.raises(InputError, match="begun with further conditions, such as 'probe -1'"):
        methods.compare(lens, sets, **{**more, "methods": named})
    rows = whole.table.set_index(["concept", "method"])
    # The opposite of the difference in means at one dose is the difference in means at the other.
    conditions = whole.conditions.set_index(["concept", "method", "dose"])["change"]
    assert conditions["speed", "mine", 1.0] == conditions["speed", "difference_in_means", -1.0]
    assert {"prompting", "random 0", "balanced 0"} <= set(rows.loc["level"].index)
    whole.plot()
    whole.figure()


def test_clap_compares_every_clip_with_the_unsteered_one_of_its_prompt_and_seed(
    lens: AudioLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[str] = []

    def apart(here: Any, there: Any, rate: float, *, model: Any) -> pd.DataFrame:
        # A tiny codec's sound is too quiet for a difference in CLAP.
        models.append(type(model[0]).__name__)
        assert (rate, here.shape) == (lens.config.sample_rate, there.shape)
        far = (here - there).abs().mean((1, 2)).double().numpy()
        return pd.DataFrame({"clap": far, "lpaps": far**2})

    monkeypatch.setattr("analysis.methods.clap.clap_distance", apart)
    monkeypatch.setattr("analysis.methods.clap.ROWS", 3)
    asked: dict[str, Any] = {"measured": {"speed": code}, "prompts": 2, "seeds": 2, "seconds": 0.4, "progress": False}
    found = methods.compare(
        lens, [poles()], **asked, methods=["difference_in_means"], doses=(-1, 1), n_jobs=0, engine="fast",
        places={"speed": methods.Place("one-to-one", 1, 50.0)}, n_bootstrap=20, n_permutations=9, out=tmp_path / "out",
        clap=write_clap(tmp_path / "clap", fusion=False), batch_size=3,
    )  # fmt: skip
    assert set(models) == {"ClapModel"}
    (swept,) = (sweep.load_folder(one) for one in (tmp_path / "out" / "clips").iterdir())
    rows = found.conditions.set_index("condition")
    assert (rows.loc["baseline", ["clap", "lpaps"]] == 0).all()
    names = ("difference_in_means -1", "difference_in_means +1")
    sound = {
        (name, prompt, seed): lens.decode_codes(codes[None])
        for name in ("baseline", *names)
        for codes, prompt, seed in zip(
            swept.codes(name), *(swept.table[swept.table["condition"] == name][one] for one in ("prompt", "seed")),
            strict=True,
        )
    }  # fmt: skip
    for name in names:
        clips = [key[1:] for key in sound if key[0] == name]
        assert len(set(clips)) == 4
        far = [float((sound[name, *clip] - sound["baseline", *clip]).abs().mean()) for clip in clips]
        assert rows.loc[name, ["clap", "lpaps"]].to_list() == pytest.approx(
            [np.mean(far), np.mean(np.square(far))], rel=1e-4
        )
        assert min(far) > 0
    (row,) = found.table[found.table["method"] == "difference_in_means"].to_dict("records")
    assert row["clap"] == pytest.approx(rows.loc[list(names), "clap"].mean())
    with pytest.raises(ModelNotFoundError, match="the CLAP model 'nowhere/none' could not be loaded"):
        methods.compare(lens, [poles()], **asked, clap="nowhere/none")


def test_distances_pair_clips_by_prompt_and_seed_and_not_by_their_order(
    lens: AudioLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [("piano", 0), ("piano", 1), ("song", 0)]
    order = [2, 0, 1]
    draw = torch.Generator().manual_seed(0)
    own, base = torch.randint(lens.config.vocab_size, (2, 3, lens.config.n_codebooks, 6), generator=draw)
    rows = [("baseline", *key) for key in keys] + [("steered", *keys[at]) for at in order]
    swept: Any = SimpleNamespace(
        table=pd.DataFrame(rows, columns=["condition", "prompt", "seed"]),
        codes=lambda name: base if name == "baseline" else own[order],
    )

    def apart(here: Any, there: Any, rate: float, *, model: Any) -> pd.DataFrame:
        far = (here - there).square().mean((1, 2)).double().numpy()
        return pd.DataFrame({"clap": far, "lpaps": 2 * far})

    monkeypatch.setattr("analysis.methods.clap.clap_distance", apart)
    found = heard_by_clap.distances(lens, swept, (None, None))
    far = (lens.decode_codes(own) - lens.decode_codes(base)).square().mean().item()
    assert found["clap"] == {"baseline": 0.0, "steered": pytest.approx(far, rel=1e-4)}
    assert found["lpaps"]["steered"] == pytest.approx(2 * far, rel=1e-4)
    assert far != pytest.approx((lens.decode_codes(own[order]) - lens.decode_codes(base)).square().mean().item())


def test_heads_are_read_on_their_own_clips_and_steered_as_al_steer_does(
    lens: AudioLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, place = poles(), methods.Place("one-to-one", 1, 0.5)
    shared: dict[str, Any] = {"codes": "shared", "neutral": list(sets.development), "progress": False}
    read = al.difference_in_means(lens, sets.positive, sets.negative, **shared, layers=[1], keep_samples=True)
    reading = methods.Reading(sets, 3, read, place, "loudness")
    with pytest.raises(methods.NotApplicable, match="12 self-attention heads, and 12 would be chosen"):
        methods.METHODS["heads"](lens, reading)
    monkeypatch.setattr(known, "HEADS", 2)
    steering = methods.METHODS["heads"](lens, reading)
    own = al.difference_in_means(lens, sets.positive, sets.negative, "attn.z", codes="own", progress=False)
    found, wanted = (
        lens.generate(["piano", "song"], 0.4, seeds=0, interventions=steps, sites="logits").cache["logits"]
        for steps in (steering(-2.0), al.steer(own, "heads", heads=2, strength=-1.0))
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, lens.generate(["piano", "song"], 0.4, seeds=0, sites="logits").cache["logits"])


def test_a_gate_steers_as_the_difference_in_means_only_while_the_pole_is_missing(lens: AudioLens) -> None:
    sets, place = poles(), methods.Place("one-to-one", 1, 0.5)
    shared: dict[str, Any] = {"codes": "shared", "neutral": list(sets.development), "progress": False}
    read = al.difference_in_means(lens, sets.positive, sets.negative, **shared, layers=[1], keep_samples=True)
    reading = methods.Reading(sets, 3, read, place, "loudness")
    own = al.difference_in_means(lens, sets.positive, sets.negative, layers=[1], keep_samples=True, progress=False)
    steering = methods.METHODS["gated"](lens, reading)
    wanted = al.gate(read, own, strength=-1.0, layer=1)
    clips = [
        lens.generate(["piano", "song"], 0.4, seeds=0, interventions=steps, decode=False)
        for steps in (steering(-2.0), wanted)
    ]
    assert torch.equal(clips[0].codes, clips[1].codes)
    assert torch.equal(clips[0].gates, clips[1].gates)
    assert {type(step.gate) for step in steering(2.0)} == {al.Gate}


def test_a_latent_is_chosen_by_the_training_prompts_and_points_to_the_positive_pole(
    lens: AudioLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = head_plant(copied(lens), 1, 2)
    sets = PromptSet("speed", ("fast", "slow"), plant.positive, plant.negative, ("piano",), ("guitar", "drums"))
    read = al.difference_in_means(
        plant.lens, plant.positive, plant.negative, layers=[1], keep_samples=True, progress=False
    )  # fmt: skip
    reading = methods.Reading(sets, 3, read, methods.Place("one-to-one", 1, 2.0), "loudness")
    trained, train = set(), features.train

    def seen(lens: AudioLens, prompts: Any, **asked: Any) -> Any:
        trained.update(prompts)
        return train(lens, prompts, width=24, learning_rate=0.01, **asked)

    monkeypatch.setattr(latents.features, "train", seen)
    for name, value in (("SECONDS", 0.4), ("VECTORS", 80_000), ("ACTIVE", 2)):
        monkeypatch.setattr(latents, name, value)
    (step,) = methods.METHODS["latent"](plant.lens, reading)(1.5)
    assert trained == {*plant.positive, *plant.negative}
    vector = torch.as_tensor(step.vector) * torch.as_tensor(step.strength)
    # Of 24 random directions in 48 dimensions, hardly one comes closer than .5.
    assert float(torch.cosine_similarity(vector, plant.direction, dim=0)) > 0.8
    assert float(vector.norm()) == pytest.approx(1.5 * 2.0 * float(read.norms[0]), rel=1e-4)
    everywhere = replace(reading, place=methods.Place("all-to-all", None, 2.0))
    with pytest.raises(methods.NotApplicable, match="is that of one block"):
        methods.METHODS["latent"](plant.lens, everywhere)


def test_a_method_that_keeps_samples_finds_them_again(lens: AudioLens, tmp_path: Path) -> None:
    sets = poles()
    read = al.difference_in_means(lens, sets.positive, sets.negative, layers=[1], keep_samples=True, progress=False)
    asked: dict[str, Any] = {"layers": [1], "keep_samples": True, "progress": False}
    (tmp_path / "stages").mkdir()
    reading = methods.Reading(
        sets, 3, read, methods.Place("one-to-one", 1, 0.5), "loudness", _stages=Stages(tmp_path)
    )  # fmt: skip
    found = reading.kept("own", al.difference_in_means, lens, *reading.poles, **asked)
    assert found.samples is not None
    assert torch.equal(found.samples.values, read.samples.values)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"methods": {"random 3": methods.METHODS["probe"]}}, InputError, "'random 3' is always compared"),
        ({"methods": {"prompting": methods.METHODS["probe"]}}, InputError, "'prompting' is always compared"),
        ({"methods": {"difference_in_means": methods.METHODS["probe"]}}, InputError, "is always compared"),
        ({"methods": ["prob"]}, InputError, "method 'prob': not known. Did you mean 'probe'"),
        ({"methods": "probe"}, InputTypeError, "expected a list of names"),
        ({"methods": {"mine": 3}}, InputTypeError, "'mine'=3: expected a function of .lens, reading."),
        ({"methods": {"mine": lambda: None}}, InputTypeError, "which this is not: too many positional arguments"),
        ({"measured": {"tempo": "loudness"}}, InputError, "'tempo' is not one of the concepts speed"),
        ({"measured": {"speed": "tempoo"}}, InputError, "measured='tempoo': no such measure. Did you mean"),
        ({"measured": {}}, InputError, "speed has no measure of its own"),
        ({"doses": (0.5, 1.0)}, InputError, "of both signs"),
        ({"prompts": 3}, InputError, "2 neutral test prompts, and prompts=3"),
        ({"limit": 0}, InputError, "limit=0"),
        ({"places": {"tempo": methods.Place("one-to-one", 1, 1.0)}}, InputError, "'tempo' is not one of the concepts"),
    ],
)
def test_refused_before_a_model_runs(lens: AudioLens, change: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        methods.compare(lens, [poles()], **{"measured": {"speed": "loudness"}, "prompts": 2, **change})


def test_prompts_that_another_concept_is_read_from_are_not_test_prompts(lens: AudioLens) -> None:
    """All concepts are tested with the test prompts of the first."""
    one = poles()
    other = PromptSet(**{**vars(one), "concept": "level", "development": one.test, "test": one.development})
    with pytest.raises(InputError, match="the test prompt 'the song' is also one that level is read from"):
        methods.compare(lens, [one, other], measured={"speed": "loudness", "level": "loudness"}, prompts=2)


def test_the_time_of_a_method_is_its_own_under_any_name(lens: AudioLens) -> None:
    named: Any = {"stiff": methods.estimator("ridge", penalty=10.0), "ridge": lambda _lens, reading: reading.along(
        reading.directions
    )}  # fmt: skip
    found = methods.compare(
        lens, [poles()], methods=named, measured={"speed": "loudness"}, prompts=2, seconds=0.4, doses=(-1, 1),
        places={"speed": methods.Place("one-to-one", 1, 0.5)}, progress=False, n_jobs=0, engine="fast", n_bootstrap=0,
        n_permutations=0, n_random=0, n_shuffled=0,
    )  # fmt: skip
    seconds = found.table.set_index("method").seconds
    assert seconds["stiff"] > 0
    assert np.isnan(seconds["ridge"])
    assert seconds["difference_in_means"] > 0
