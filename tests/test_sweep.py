"""Sweeps: every row is the clip its condition makes alone, measured beside its own baseline."""

from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
import torch

import audiolens as al
from analysis import sweep
from analysis.sweep import Condition
from audiolens.errors import InputError

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
        rms = [float(np.sqrt(np.mean(swept.audio[int(str(place))] ** 2))) for place in (index, other)]
        assert row["rms_ratio"] == pytest.approx(rms[0] / rms[1], rel=1e-3)
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


def test_rows_of_an_intervention_belong_to_the_sweep() -> None:
    with pytest.raises(InputError, match="one strength and no rows"):
        Condition("a", (al.Add(torch.ones(4), rows=[0]),))


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
