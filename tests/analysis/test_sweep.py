"""Every row of a sweep equals the clip that its condition generates alone, measured against its own baseline."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from plants import tables as planted
from small_runs import played

import audiolens as al
from analysis import sweep
from analysis.sweep import Condition
from analysis.sweep.factorial import LABELS, Factors, conditions
from audiolens.errors import InputError
from audiolens.model.provenance import Provenance
from audiolens.model.weight_hash import weights_hash

PROMPTS = ["a calm song", "fast piano"]
MAKING = {"seconds": 1.0, "batch_size": 5, "n_jobs": 0}


def _conditions(width: int) -> list[Condition]:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, width, generator=draw)
    schedule = [0.0] * 12 + [1.0] * 13
    return [
        Condition("everywhere", (al.Add(one, strength=0.4),), labels={"strength": 0.4}),
        Condition("baseline", labels={"strength": 0.0}),
        Condition("two", (al.Add(one, layers=[1], strength=-2.0), al.Add(other, layers=[1, 2], branch="cond"))),
        Condition("mixed", (al.Scale(0.2, layers=[1]), al.Add(one, layers=[1], strength=2.0))),
        Condition("late", (al.Add(other, layers=[0], schedule=schedule),)),
        Condition("asked", ask=lambda prompt: f"bright {prompt}"),
    ]


def _directions(lens: Any) -> al.Directions:
    """One random vector per block of the model itself."""
    config, draw = lens.config, torch.Generator().manual_seed(3)
    meta = Provenance(model=lens.name, weights=weights_hash(lens.model), n_layers=config.n_layers, label="tempo")
    vectors = torch.randn(config.n_layers, config.d_model, generator=draw)
    return al.Directions(vectors, tuple(range(config.n_layers)), torch.ones(config.n_layers), meta)


@pytest.fixture(scope="module")
def swept(lens: Any) -> sweep.SweepResult:
    conditions = _conditions(lens.config.d_model)
    return sweep.play(lens, conditions, sweep.clips(PROMPTS, 2, 7), keep_audio=lambda *_: True, **MAKING)


def test_every_row_is_the_clip_its_condition_makes_alone(lens: Any, swept: sweep.SweepResult) -> None:
    by_name = {condition.name: condition for condition in _conditions(lens.config.d_model)}
    assert len(swept.table) == 6 * 4
    for place, row in swept.table.iterrows():
        condition = by_name[row["condition"]]
        alone = lens.generate(row["asked"], 1.0, seeds=[row["seed"]], interventions=condition.interventions)
        np.testing.assert_allclose(swept.audio[int(str(place))], alone.audio[0].numpy(), atol=1e-4)


def test_a_sweep_with_a_measure_that_is_named_twice_has_one_column(lens: Any, tmp_path: Path) -> None:
    found = played(lens, tmp_path / "sweep", measures=("loudness", "loudness"))
    assert [*found.table.columns].count("loudness") == 1


def test_a_prompted_condition_asks_something_else_with_the_same_seed(swept: sweep.SweepResult) -> None:
    table = swept.table
    asked = table[table["condition"] == "asked"]
    assert set(asked["asked"]) == {f"bright {prompt}" for prompt in PROMPTS}
    baseline = table[table["condition"] == "baseline"]
    assert set(zip(asked["prompt"], asked["seed"], strict=True)) == set(
        zip(baseline["prompt"], baseline["seed"], strict=True)
    )


def test_failures_are_those_beside_the_baseline_of_the_same_clip(swept: sweep.SweepResult, lens: Any) -> None:
    table = swept.table
    steered = table[table["condition"] == "everywhere"]
    baseline = table[table["condition"] == "baseline"]
    for (index, row), (other, _) in zip(steered.iterrows(), baseline.iterrows(), strict=True):
        # The constant part of a sound is not heard, and measures leave it out.
        rms = [float(np.std(swept.audio[int(str(place))], dtype=float)) for place in (index, other)]
        assert row["rms_ratio"] == pytest.approx(rms[0] / rms[1], rel=1e-4)
    assert (baseline["rms_ratio"] == 1).all()


def test_baselines_come_first_in_batches_of_their_own() -> None:
    conditions = [Condition("b"), Condition("baseline"), Condition("c")]
    todo = sweep.packed(conditions, sweep.clips(PROMPTS, 4), batch_size=5)
    batches = todo.batches
    assert [condition.name for batch in batches[:2] for condition, _ in batch] == ["baseline"] * 8
    assert max(map(len, batches)) <= 5
    assert sum(map(len, batches)) == len(todo) == 24
    rows = [(condition.name, clip) for batch in batches for condition, clip in batch]
    assert len(set(rows)) == 24


def test_each_prompt_has_seeds_of_its_own() -> None:
    pairs = sweep.clips(PROMPTS, 3, 10)
    assert [seed for _, seed in pairs] == list(range(10, 16))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([Condition("a"), Condition("a"), Condition("baseline")], "two conditions are named 'a'"),
        ([Condition("a")], "no condition is named 'baseline'"),
    ],
)
def test_a_plan_that_cannot_be_compared_is_refused(conditions: list[Condition], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep.packed(conditions, sweep.clips(PROMPTS, 1))


def test_clips_and_conditions_have_an_order() -> None:
    ordered = sweep.clips(PROMPTS, 2)
    conditions = [Condition("baseline"), Condition("a")]
    for given in ({*ordered}, dict(ordered)):
        with pytest.raises(TypeError, match="clips: expected a list of .prompt, seed. pairs, in order"):
            sweep.packed(conditions, given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="conditions: expected a list of conditions, in order"):
        sweep.packed({one.name: one for one in conditions}, ordered)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prompts: expected a list of prompts, in order"):
        sweep.clips({*PROMPTS}, 1)  # type: ignore[arg-type]
    assert sweep.packed(iter(conditions), iter(ordered)) == sweep.packed(conditions, ordered)  # type: ignore[arg-type]


def test_rows_of_an_intervention_belong_to_the_sweep() -> None:
    with pytest.raises(InputError, match="one strength and no rows"):
        Condition("a", (al.Add(torch.ones(4), rows=[0]),))


def test_the_factorial_has_every_combination_once() -> None:
    factors = Factors(
        strengths=[-1, 0, 1],
        strategies=("one-to-one", "one-to-band", "all-to-all"),
        layers=[2, 5],
        band=(4, 6),
        branches=("both", "cond"),
        n_random=2,
        control_strengths=[1],
        opposed=True,
    )
    sets = planted.tempo()
    one, other = planted.directions(), planted.directions(seed=1)
    todo = conditions({"tempo": one, "timbre": other}, factors, {"tempo": sets})
    table = pd.DataFrame([dict(condition.labels) for condition in todo])
    places = 2 * (2 + 2 + 1)
    assert table["kind"].value_counts().to_dict() == {
        "baseline": 1, "redrawn": 1, "steered": 2 * places * 2, "random": 2 * places * 2, "opposed": places,
        "prompted": 2,
    }  # fmt: skip
    assert len({condition.name for condition in todo}) == len(todo)
    assert 0 not in set(table.loc[table["kind"] == "steered", "strength"])
    by_place = {tuple(condition.labels[name] for name in LABELS[:9]): condition for condition in todo}
    made = by_place["steered", "timbre", "one-to-band", 5, "4-6", "cond", -1.0, None, None]
    expected = al.steer(other, "one-to-band", layer=5, band=(4, 6), strength=-1.0, branch="cond")
    assert [list(step.layers) for step in made.interventions] == [[4, 5, 6]]
    assert torch.equal(made.interventions[0].vector, expected[0].vector)
    assert made.interventions[0].branch == "cond"
    control = by_place["random", "tempo", "one-to-one", 2, None, "both", 1.0, 1, None]
    assert torch.equal(control.interventions[0].vector, one.random_like(1)[2])
    against = by_place["opposed", "tempo", "all-to-all", None, None, "both", 1.0, None, "slow"]
    assert against.asked("a little song") == "a little slow song"
    assert [list(step.layers) for step in against.interventions] == [[layer] for layer in range(8)]
    asked = by_place["prompted", "tempo", None, None, None, None, None, None, "fast"]
    assert (asked.asked("a little song"), asked.interventions) == ("a little fast song", ())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strengths": [0]}, "other than 0, the baseline"),
        ({"strengths": [1, 1.0]}, "different finite numbers"),
        ({"strengths": [float("nan")]}, "finite"),
        ({"strategies": "one-to-one"}, "expected a list"),
        ({"strategies": ["one-to-some"]}, "Expected one of"),
        ({"strategies": ["one-to-band"]}, "needs band"),
        ({"band": (1, 2)}, "needs the strategy 'one-to-band'"),
        ({"branches": ["neither"]}, "branch='neither'"),
        ({"layers": [1, 1]}, "expected each layer once"),
        ({"layers": [99]}, "layer 99 does not exist"),
        ({"control_strengths": [7]}, "expected some of"),
        ({"n_random": -1}, "n_random=-1"),
        ({"n_shuffled": 1}, "keep_samples=True"),
        ({"prompts": "a song"}, "expected a list of texts"),
        ({"prompts": None, "sets": {}}, "give prompts="),
        ({"seeds": 0}, "expected at least one of each"),
        ({"sound": "wav"}, "a folder to write it to"),
        ({"measures": ["tempi"]}, "Did you mean 'tempo'"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_model_runs(
    lens: Any, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(type(lens), "generate", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message):
        sweep.run(lens, _directions(lens), **{"prompts": PROMPTS, "progress": False, "n_jobs": 0, **asked})


def test_another_models_directions_are_refused(lens: Any) -> None:
    with pytest.raises(InputError, match="has 3 blocks, not 8"):
        sweep.run(lens, planted.directions(), prompts=PROMPTS)
    with pytest.raises(InputError, match="each with its own label"):
        sweep.run(lens, [_directions(lens), _directions(lens)], prompts=PROMPTS)


def test_the_plan_is_told_and_then_done(lens: Any) -> None:
    asked: dict[str, Any] = {
        "strengths": [-4, 4], "layers": 1, "prompts": PROMPTS, "seeds": 1, "n_random": 1, "seconds": 0.4,
        "measures": ["brightness"], "sets": {"tempo": planted.tempo()},
    }  # fmt: skip
    untimed = sweep.plan(lens, _directions(lens), timed=False, **asked)
    assert np.isnan(untimed.speed)
    kinds = "1 baseline, 1 redrawn, 2 steered, 2 random, 2 prompted"
    assert f"16 clips of 0.4 s: 8 conditions ({kinds}) x 2 clips, in 2 batches" in repr(untimed)
    told: list[str] = []
    result = sweep.run(lens, _directions(lens), **asked, n_jobs=0, progress=False, tell=told.append)
    assert len(told) == 1
    assert "clips per second on this machine" in told[0]
    assert len(result.table) == len(untimed.plan) == 16
    assert set(result.table["kind"]) == {"baseline", "redrawn", "steered", "random", "prompted"}
    assert result.concepts == ("tempo",)
    redrawn = result.table[result.table["kind"] == "redrawn"]
    alone = lens.generate(redrawn["prompt"].tolist(), 0.4, seeds=[seed + 2**31 for seed in redrawn["seed"]])
    # A batch of another size may flip a code, and with it what follows; other seeds share few by chance.
    assert (result.codes("redrawn") == alone.codes).float().mean() > 0.5
    assert not torch.equal(result.codes("redrawn"), result.codes("baseline"))
    assert result.plot("brightness").axes


def test_an_addition_before_the_first_step_stays_there_when_merged() -> None:
    step = al.Add(torch.ones(4), layers=[1], prefix=True)
    rows = [Condition("a", (step,)), Condition("b", (al.Add(torch.ones(4), layers=[1]),))]
    merged = list(sweep.merge(rows, n_layers=3))
    assert [(one.prefix, list(one.rows)) for one in merged] == [(True, [0]), (False, [1])]


@pytest.mark.parametrize(
    ("site", "width"),
    [("attn.z", 12), ("blocks.1.attn.hook_result", 48), ("blocks.1.hook_resid_post", 48), ("logits", 32)],
)
def test_merged_additions_are_made_once_a_place_and_row(lens: Any, site: str, width: int) -> None:
    # As many rows as heads, and as codebooks.
    generator = torch.Generator().manual_seed(0)
    steps = [al.Add(torch.randn(width, generator=generator), site=site, strength=4.0) for _ in range(4)]
    conditions = [Condition(str(row), (step,)) for row, step in enumerate(steps)]
    codes = torch.randint(0, 32, (4, 4, 10), generator=generator)
    merged = lens.run_with_interventions(["calm"] * 4, codes, list(sweep.merge(conditions, n_layers=3)))
    for row, step in enumerate(steps):
        alone = lens.run_with_interventions(["calm"] * 4, codes, step)
        torch.testing.assert_close(merged[row], alone[row], rtol=1e-4, atol=1e-4)


def test_further_columns_are_one_number_a_clip(lens: Any) -> None:
    conditions = _conditions(lens.config.d_model)[:2]
    asked = {**MAKING, "seconds": 0.4, "measures": ["loudness"]}
    found = sweep.play(lens, conditions, sweep.clips(PROMPTS, 1), **asked, also={"n": lambda _, made: made.seeds})
    assert (found.table["n"] == found.table["seed"]).all()
    with pytest.raises(InputError, match=r"'n' gave shape \(\) for 2 clips"):
        sweep.play(lens, conditions, sweep.clips(PROMPTS, 1), **asked, also={"n": lambda *_: 1.0})


def test_effects_recover_what_was_planted() -> None:
    found = sweep.effects(planted.scanned(noise=0.01), "tempo_ioi", n_bootstrap=100).set_index("condition")
    assert found.loc["one-to-all 3 +0.5", "effect"] == pytest.approx(np.exp(0.4) - 1, abs=0.02)
    assert found.loc["one-to-all 3 -0.5", "effect"] == pytest.approx(np.exp(-0.4) - 1, abs=0.02)
    assert found.loc["baseline", "effect"] == 0
    assert found.loc["one-to-all 3 +0.5", "low"] <= found.loc["one-to-all 3 +0.5", "effect"]


def test_failed_clips_count_as_no_effect() -> None:
    table = planted.scanned(noise=0.01, failing=lambda labels: 1.0 if labels["strength"] == 0.5 else 0.0)
    found = sweep.effects(table, "tempo_ioi", n_bootstrap=0).set_index("condition")
    assert found.loc["one-to-all 3 +0.5", "effect"] == 0
    assert found.loc["one-to-all 3 +0.5", "failed"] == 1
    assert np.isnan(found.loc["one-to-all 3 +0.5", "median"])


def test_pairs_without_a_baseline_measure_are_left_out_and_counted() -> None:
    table = planted.scanned(noise=0.01)
    silent = (table["condition"] == "baseline") & (table["prompt"] == table["prompt"].iloc[0])
    found = sweep.effects(table.assign(tempo_ioi=table["tempo_ioi"].mask(silent)), "tempo_ioi", n_bootstrap=0)
    assert (found["left_out"] == silent.sum()).all()
    assert (sweep.effects(table, "tempo_ioi", n_bootstrap=0)["left_out"] == 0).all()


def test_steps_that_do_not_commute_keep_their_order() -> None:
    steps = (al.Scale(0.2, layers=[1]), al.Add(torch.ones(4), layers=[1]))
    plain = Condition("plain", (al.Add(torch.ones(4), layers=[1]), al.Add(torch.ones(4), layers=[1])))
    merged = list(sweep.merge([Condition("mixed", steps), plain], n_layers=3))
    assert [(type(step), list(step.rows)) for step in merged] == [(al.Add, [1]), (al.Scale, [0]), (al.Add, [0])]


def test_what_cannot_be_measured_has_no_effect_and_no_crash() -> None:
    found = sweep.effects(planted.scanned().assign(tempo_ioi=np.nan), "tempo_ioi")
    assert found["effect"].isna().all()


def test_the_result_tables_and_plots(swept: sweep.SweepResult) -> None:
    assert isinstance(swept.to_frame(), pd.DataFrame)
    assert "6 conditions, 2 prompts" in repr(swept)
    axes = swept.plot("brightness").axes[0]
    assert "strength" in axes.get_xlabel()
    assert "brightness" in axes.get_ylabel()
    assert swept.figure("brightness").data


@pytest.mark.slow
def test_workers_hear_the_same(lens: Any, swept: sweep.SweepResult) -> None:
    conditions = _conditions(lens.config.d_model)
    again = sweep.play(lens, conditions, sweep.clips(PROMPTS, 2, 7), **{**MAKING, "n_jobs": 1})
    pd.testing.assert_frame_equal(again.table, swept.table)
