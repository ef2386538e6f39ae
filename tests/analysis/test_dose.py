"""Summaries of a sweep recover effects planted in its table, and state when there are none."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from plants import tables as planted
from plants.sweeps import LAYERS, STRENGTHS, failing, swept
from scipy import stats

from analysis.sweep import response, tradeoff
from analysis.sweep.conditions import BASELINE
from analysis.sweep.result import SweepResult
from audiolens.errors import InputError


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return swept(19, failing=failing)


@pytest.fixture(scope="module")
def dose(result: SweepResult) -> Any:
    return result.dose_response(n_bootstrap=50)


def at(table: pd.DataFrame, strategy: str, layer: int, strength: float) -> pd.Series:
    mine = table[(table["strategy"] == strategy) & (table["layer"] == layer) & (table["strength"] == strength)]
    mine = mine[mine["kind"] == "steered"] if "kind" in mine else mine
    assert len(mine) == 1
    return mine.iloc[0]


def test_effects_and_ranks_are_those_planted(dose: Any) -> None:
    for strength in (-0.5, -0.25, 0.25):
        row = at(dose.table, "one-to-all", 3, strength)
        assert row["effect"] == pytest.approx(2**strength - 1, abs=0.03)
        assert row["low"] <= row["effect"] <= row["high"]
    small = at(dose.table, "one-to-all", 3, 0.25)
    assert (small["p_random"], small["n_random"]) == (pytest.approx(1 / 20), 19)
    # Three layers were looked at: the smallest p of nineteen controls does not survive.
    assert small["p_corrected"] == pytest.approx(3 / 20)
    assert np.isnan(at(dose.table, "one-to-all", 3, 0.5)["p_random"])
    assert np.isnan(small["p_shuffled"])
    assert (small["p_controls"], small["n_controls"]) == (small["p_random"], 19)
    assert (small["n_shuffled"], small["n_other"], small["rivals"]) == (0, 0, "")


def test_the_rank_is_towards_the_strengths_own_pole() -> None:
    backwards = swept(1)
    turned = backwards.table.assign(tempo_ioi=12_000 / backwards.table["tempo_ioi"])
    found = SweepResult(turned, ("tempo_ioi",), {}, planted.RATE).dose_response(n_bootstrap=0)
    assert at(found.table, "one-to-all", 3, 0.25)["p_random"] == 1.0


def test_monotonicity_is_that_of_the_medians(dose: Any) -> None:
    rho = dose.monotonicity.set_index(["strategy", "layer"])
    assert rho.loc[("one-to-all", 2), "rho"] == pytest.approx(1)
    assert rho.loc[("one-to-all", 2), "n"] == 7
    mine = dose.steered[(dose.steered["strategy"] == "one-to-one") & (dose.steered["layer"] == 4)]
    base = dose.table.loc[dose.table["kind"] == BASELINE, "median"].iloc[0]
    expected = stats.spearmanr([*mine["strength"], 0], [*mine["median"], base]).statistic
    assert rho.loc[("one-to-one", 4), "rho"] == pytest.approx(expected)


def test_strengths_that_fail_do_not_make_a_place_the_widest(dose: Any) -> None:
    # Block 3 moves most, but only what is left after failures counts: -0.5 to 0.25 there, -1 to 1 elsewhere.
    assert set(dose.widest(strategy="one-to-all")["layer"]) <= {2, 4}
    assert set(dose.widest(strategy="one-to-one")["layer"]) == {3}
    with pytest.raises(InputError, match="no condition was steered"):
        dose.widest(strategy="one-to-band")


def test_the_finding_is_said_in_a_line(dose: Any) -> None:
    assert "the widest span of 6 places" in repr(dose)
    assert "tempo on tempo_ioi" in repr(dose)
    assert dose.poles == ("fast", "slow")


def test_cross_effects_have_every_measure_in_its_unit(result: SweepResult) -> None:
    cross = result.cross_effects(strategy="one-to-one", n_bootstrap=50)
    assert cross.place["layer"] == 3
    units = cross.table.groupby("measure")["unit"].first().to_dict()
    assert units == {"tempo_ioi": "ratio", "brightness": "ratio", "loudness": "dB"}
    tempo = cross.table[cross.table["measure"] == "tempo_ioi"].set_index("strength")["effect"]
    assert tempo[1.0] == pytest.approx(2**0.25 - 1, abs=0.03)
    assert "tempo_ioi +" in repr(cross)


def test_differences_are_differences_and_not_shares() -> None:
    table = swept().table
    louder = table["kind"] == "steered"
    base = table[~louder & (table["kind"] == BASELINE)].set_index(["prompt", "seed"])["loudness"]
    keys = pd.MultiIndex.from_frame(table.loc[louder, ["prompt", "seed"]])
    table.loc[louder, "loudness"] = base.reindex(keys).to_numpy() + 6
    found = response.effects(table, "loudness", n_bootstrap=0)
    assert found.loc[found["kind"] == "steered", "effect"].to_numpy() == pytest.approx(6)


def test_layer_map_is_the_table_as_a_grid(dose: Any) -> None:
    grid = tradeoff.layer_map(dose, "one-to-all")
    assert grid.effect.shape == (3, 7)
    assert grid.strengths[3] == 0
    assert (grid.effect[:, 3] == 0).all()
    for layer in LAYERS:
        for strength in STRENGTHS:
            cell = grid.effect[grid.layers.index(layer), grid.strengths.index(strength)]
            assert cell == at(dose.table, "one-to-all", layer, strength)["effect"]
    assert grid.failed[1, -1] == 1
    assert len(grid.to_frame()) == 21
    assert "one-to-all: from -30% at layer" in repr(grid)
    with pytest.raises(InputError, match="not swept over layers. Choose from: one-to-one, one-to-all"):
        tradeoff.layer_map(dose, "all-to-all")


def test_the_limit_is_the_last_strength_before_the_first_that_loses_too_much(dose: Any) -> None:
    found = tradeoff.limits(dose).table
    mine = found[(found["strategy"] == "one-to-all") & (found["layer"] == 3)]
    up, down = (mine[mine["sign"] == sign] for sign in (1, -1))
    assert (up["strength"].item(), up["open"].item()) == (0.25, False)
    assert (down["strength"].item(), down["open"].item()) == (-0.5, False)
    free = found[(found["strategy"] == "one-to-one") & (found["sign"] == 1)]
    assert (free["strength"] == 1).all()
    assert free["open"].all()
    assert tradeoff.limits(dose, bound=1.0).table["open"].all()


def test_a_strength_beyond_one_that_failed_is_not_within_the_limit() -> None:
    lucky = swept(failing=lambda labels: float(abs(labels["strength"] or 0) == 0.5))
    found = lucky.limits(n_bootstrap=0).table
    assert (found["strength"].abs() == 0.25).all()
    assert not found["open"].any()
    nothing = swept(failing=lambda labels: float(labels["kind"] == "steered")).limits(n_bootstrap=0).table
    assert (nothing["strength"] == 0).all()
    assert nothing["effect"].isna().all()


def test_strategies_are_compared_at_their_best_layer_within_the_bound(result: SweepResult) -> None:
    found = result.strategies(n_bootstrap=0).table.set_index(["strategy", "sign"])
    assert found.loc[("one-to-one", 1), "layer"] == 3
    assert found.loc[("one-to-all", 1), "layer"] in (2, 4)
    assert found.loc[("one-to-all", 1), "effect"] == pytest.approx(2**0.5 - 1, abs=0.05)
    assert found.loc[("one-to-all", -1), "candidates"] == 3
    lost = swept(failing=lambda labels: float(labels["kind"] == "steered")).strategies(n_bootstrap=0)
    assert lost.table["effect"].isna().all()
    assert "none measured" in repr(lost)


def test_the_front_is_that_of_a_naive_search(result: SweepResult) -> None:
    table = result.front(n_bootstrap=0).table
    for _, row in table.iterrows():
        mine = table[table["sign"] == row["sign"]]
        better = [
            other
            for _, other in mine.iterrows()
            if other["gain"] >= row["gain"] and other["failed"] <= row["failed"]
            and (other["gain"] > row["gain"] or other["failed"] < row["failed"])
        ]  # fmt: skip
        assert row["best"] == (not better)
    assert table["best"].any()
    with pytest.raises(InputError, match="loss='drift': not measured in this sweep. Choose from: failed"):
        result.front(loss="drift", n_bootstrap=0)


def test_drift_and_distances_stand_beside_the_effect() -> None:
    table = swept().table
    own = np.random.default_rng(0).normal(2, 0.1, len(table))
    base = pd.Series(own[: (table["kind"] == BASELINE).sum()])
    per_clip = np.resize(base, len(table))
    steered = (table["kind"] == "steered").to_numpy()
    table = table.assign(nats=per_clip + np.where(steered, np.where(table["strength"] > 0, 0.3, -0.2), 0.0))
    result = SweepResult(
        table, ("tempo_ioi",), {}, planted.RATE, also=("nats",),
        _codes=np.arange(len(table))[:, None, None] * np.ones((1, 2, 3), dtype=int),
    )  # fmt: skip
    drift = result.effects("tempo_ioi", 0).set_index("condition")["drift"]
    assert drift[BASELINE] == 0
    steered_drift = result.dose_response(n_bootstrap=0).steered
    assert steered_drift.loc[steered_drift["strength"] > 0, "drift"].to_numpy() == pytest.approx(0.3)
    # Two-sided: likelier is no better.
    assert steered_drift.loc[steered_drift["strength"] < 0, "drift"].to_numpy() == pytest.approx(0.2)
    far = result.compared(lambda a, b: float((a.double().mean() - b.double().mean()).abs()), "frechet")
    found = far.effects("tempo_ioi", 0)
    assert found["frechet"].to_numpy() == pytest.approx(12.0 * np.arange(len(found)))
    limits = far.limits(loss="drift", bound=0.25, n_bootstrap=0).table
    assert limits.groupby("sign")["open"].all().to_dict() == {-1: True, 1: False}
    assert set(far.front(loss="frechet", n_bootstrap=0).table) >= {"frechet", "gain", "best"}


def test_several_concepts_need_a_name() -> None:
    table = swept().table
    both = pd.concat([table, table[table["kind"] == "steered"].assign(concept="timbre")])
    result = SweepResult(both, ("tempo_ioi",), {}, planted.RATE)
    with pytest.raises(InputError, match="Did you mean 'timbre'"):
        result.dose_response("timber")
    with pytest.raises(InputError, match="Swept concepts: tempo, timbre"):
        result.front(n_bootstrap=0)
    with pytest.raises(InputError, match="'tempo_io' was not measured. Did you mean 'tempo_ioi'"):
        result.effects("tempo_io")


@pytest.mark.parametrize("which", ["dose_response", "cross_effects", "layer_map", "limits", "strategies", "front"])
def test_everything_is_tabled_drawn_and_said(result: SweepResult, which: str) -> None:
    found = getattr(result, which)(**({} if which == "layer_map" else {"n_bootstrap": 20}))
    assert len(found.to_frame())
    figure = found.plot()
    figure.savefig("/dev/null", format="png")
    assert any(axes.get_xlabel() for axes in figure.axes)
    assert found.figure().data
    assert "\n" not in repr(found)


def test_everything_unmeasured_can_be_drawn() -> None:
    result = swept(1)
    empty = SweepResult(result.table.assign(tempo_ioi=np.nan), ("tempo_ioi",), {}, planted.RATE)
    for which in ("dose_response", "cross_effects", "layer_map", "limits", "strategies", "front"):
        found = getattr(empty, which)(**({} if which == "layer_map" else {"n_bootstrap": 20}))
        found.plot().savefig("/dev/null", format="png")
        assert repr(found)


def test_what_failed_is_crossed_in_the_map_and_hollow_off_the_front(result: SweepResult) -> None:
    axes = result.layer_map(strategy="one-to-all").plot().axes[0]
    crossed = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "x"}
    assert crossed == {(0, 1), (5, 1), (6, 1)}
    front = result.front(n_bootstrap=0)
    panel = front.plot().axes[0]
    filled = [line for line in panel.lines if line.get_marker() in "os" and line.get_markerfacecolor() != "white"]
    drawn = sum(len(line.get_xdata()) for line in filled)
    assert drawn == (front.table["best"] & (front.table["sign"] == 1)).sum()
