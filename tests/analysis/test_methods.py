"""Methods are compared by planted effects and drifts, and a comparison of a tiny model resumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import audiolens as al
from analysis import methods, sweep
from analysis.methods import table as known
from analysis.methods.reading import Steering
from analysis.methods.scores import Played, scored
from audiolens import AudioLens, Generation
from audiolens.errors import InputError, InputTypeError
from audiolens.prompts import PromptSet

PROMPTS, LIMIT, APART = 12, 0.5, 0.2
DOSES = (-1.0, -0.5, 0.5, 1.0)


def dense(drifts: Any, effects: Any, limit: float) -> float:
    """The mean height of the polyline through (0, 0), which then stays level, on a dense grid of midpoints."""
    grid = (np.arange(200_000) + 0.5) / 200_000 * limit
    return float(np.interp(grid, [0.0, *drifts], [0.0, *effects]).mean())


def test_the_area_is_the_mean_height_of_the_curve_up_to_the_limit() -> None:
    curves = [([0.1, 0.3], [1.0, 2.0]), ([0.2, 0.9], [1.0, 3.0]), ([0.7, 0.8], [2.0, 1.0]), ([0.1, 0.4], [2.0, -1.0])]
    drifts, effects = (np.array(one) for one in zip(*curves, strict=True))
    found = methods.area_under(drifts, effects, LIMIT)
    np.testing.assert_allclose(found, [dense(x, y, LIMIT) for x, y in curves], atol=1e-4)
    # A dose without drift rises at once; a stronger one with less drift than it does not move the curve to the left.
    assert methods.area_under(np.zeros(1), np.ones(1), LIMIT) == pytest.approx(1.0)
    back, level = (methods.area_under(np.array([0.25, x]), np.array([1.0, 2.0]), LIMIT) for x in (0.1, 0.25))
    assert back == level == pytest.approx(dense([0.25, 0.25 + 1e-9], [1.0, 2.0], LIMIT), abs=1e-4)
    with pytest.raises(InputError, match="contain NaN"):
        methods.area_under(np.array([np.nan]), np.zeros(1), LIMIT)


def played(effect: dict[str, float], drift: dict[str, float], side: dict[str, float]) -> Played:
    """A concept whose methods change the tempo by e ** (effect x dose), the loudness and the nats as planted.

    The size of an effect varies between prompts, and the unsteered clips spread by one in the logarithm.
    """
    spread = np.linspace(-1, 1, PROMPTS)
    base = pd.DataFrame(
        {
            "prompt": [f"prompt {n}" for n in range(PROMPTS)], "seed": range(PROMPTS),
            "tempo_ioi": 100 * np.exp(spread / spread.std(ddof=1)), "loudness": -20 + spread / spread.std(ddof=1),
            "mode": np.tile([0.2, -0.2], PROMPTS // 2), "nats": 3 + 0.1 * spread, "failed": False,
            "rms_ratio": 1.0, "onsets": 9, "entropy_ratio": 1.0,
        }
    )  # fmt: skip
    sign = np.tile([1.0, -1.0], PROMPTS // 2)
    parts = [
        base.assign(condition="baseline", kind="baseline", method="", dose=0.0),
        base.assign(
            condition="other", kind="other seeds", method="other seeds", dose=0.0, nats=base.nats + APART * sign
        ),
    ]
    for name, slope in effect.items():
        for dose in DOSES:
            factor = np.exp(slope * dose * (1 + 0.3 * spread))
            parts.append(
                base.assign(
                    condition=f"{name} {dose:+g}",
                    kind="method",
                    method=name,
                    dose=dose,
                    failed=False,
                    tempo_ioi=base.tempo_ioi * factor,
                    loudness=base.loudness + side[name] * abs(dose),
                    nats=base.nats + APART * (1 + drift[name] * abs(dose)) * sign,
                )  # fmt: skip
            )
    table = pd.concat(parts, ignore_index=True).assign(concept="tempo")
    far = dict.fromkeys(table["condition"].unique(), 0.0)
    measures = ("tempo_ioi", "loudness", "mode")
    return Played("tempo", "tempo_ioi", measures, methods.Place("one-to-one", 1, 2.0), {}, {}, far, table)


def result(**planted: Any) -> methods.MethodsResult:
    return scored([played(**planted)], model="planted", limit=LIMIT, n_bootstrap=200, n_permutations=4999, seed=0)


def test_planted_methods_are_scored_and_told_apart() -> None:
    found = result(
        effect={"difference_in_means": 0.4, "strong": 0.8, "costly": 0.4},
        drift={"difference_in_means": 0.5, "strong": 0.5, "costly": 4.0},
        side={"difference_in_means": 0.1, "strong": 0.1, "costly": 0.8},
    )  # fmt: skip
    assert found.seed_drift == pytest.approx(APART)
    rows = found.table.set_index("method")
    for name, slope, drift in (("difference_in_means", 0.4, 0.5), ("strong", 0.8, 0.5), ("costly", 0.4, 4.0)):
        at = np.array([0.5, 1.0])
        assert rows.area[name] == pytest.approx(dense(drift * at, slope * at, LIMIT), abs=1e-3)
        assert rows.area_low[name] <= rows.area[name] <= rows.area_high[name]
        assert rows.change_up[name] == pytest.approx(slope)
        assert rows.change_down[name] == pytest.approx(-slope)
        assert rows.monotone[name] == 1
    # |dose| is .75 in the mean; the baseline's loudness spreads by 1 dB.
    assert rows.selectivity["costly"] == pytest.approx(0.4 / 0.8)
    assert rows.selectivity["strong"] == pytest.approx(0.8 / 0.1)
    # Only the strong method reaches half a standard deviation: the others miss it by .1 at their largest dose.
    assert rows.calibration_error["costly"] == pytest.approx(0.1, abs=0.03)
    assert rows.calibration_error["strong"] < 0.05
    assert rows.p_holm["strong"] < 0.05
    assert list(found.better()["method"]) == ["strong"]
    assert list(found.best["method"]) == ["strong"]
    assert rows.best_share["strong"] == 1
    assert rows.difference_high["costly"] < 0
    assert "strong on 1" in repr(found)


def test_failed_clips_have_no_effect() -> None:
    own = {"effect": {"difference_in_means": 0.4}, "drift": {"difference_in_means": 0.5}}
    one = played(**own, side={"difference_in_means": 0.0})
    table = one.table
    table.loc[table["kind"] == "method", "failed"] = True
    found = scored([one], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0).table.iloc[0]
    assert found.area == 0
    assert found.failed == 1


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


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
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
