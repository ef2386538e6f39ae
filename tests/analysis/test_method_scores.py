"""Methods are scored by planted effects and drifts, next to planted controls."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import benchmark_script
from scipy import stats

from analysis import methods
from analysis.methods.scores import Played, scored
from analysis.resampling import CONFIDENCE
from audiolens.errors import InputError

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
    return Played("tempo", "tempo_ioi", measures, methods.Place("one-to-one", 1, 2.0), {}, {}, {"frechet": far}, table)


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
    (told,) = (line for line in benchmark_script("steering_methods").verdict(found) if "our aim" in line)
    assert "(`strong`), that of the difference in means" in told
    assert "(a difference of" in told


def test_the_mean_over_concepts_finds_what_single_concepts_do_not() -> None:
    """A small advantage on every concept is significant only over all of them."""
    rng = np.random.default_rng(3)
    concepts = []
    for number in range(6):
        one = played(
            effect={"difference_in_means": 0.4, "same": 0.4, "better": 0.4},
            drift=dict.fromkeys(("difference_in_means", "same", "better"), 0.5),
            side=dict.fromkeys(("difference_in_means", "same", "better"), 0.1),
        )
        noise = {name: rng.normal(0, 0.15, PROMPTS) + more for name, more in (("same", 0.0), ("better", 0.09))}
        table = one.table.copy()
        for name, change in noise.items():
            mine = (table["method"] == name).to_numpy()
            factor = np.tile(change, mine.sum() // PROMPTS) * table.loc[mine, "dose"]
            table.loc[mine, "tempo_ioi"] *= np.exp(factor)
        if number == 0:
            # A prompt that this concept cannot measure keeps the mean over the other concepts.
            table.loc[table["prompt"] == "prompt 3", "tempo_ioi"] = np.nan
        concepts.append(replace(one, concept=f"concept {number}", table=table.assign(concept=f"concept {number}")))
    found = scored(concepts, model="planted", limit=LIMIT, n_bootstrap=200, n_permutations=4999, seed=0)
    overall = found.overall.set_index("method")
    assert not len(found.better())
    assert overall.p_holm["better"] < 0.05 < overall.p_holm["same"]
    assert np.isnan(overall.p["difference_in_means"])
    pairs = found.table.pivot_table("difference", "method", "concept").mean(axis=1)
    for name in ("same", "better"):
        # The means over prompts and over concepts differ only by the missing prompt.
        assert overall.difference[name] == pytest.approx(pairs[name], abs=0.01)
        assert overall.difference_low[name] < overall.difference[name] < overall.difference_high[name]
    assert overall.area["better"] - overall.area["difference_in_means"] == pytest.approx(
        overall.difference["better"], abs=1e-9
    )


def test_a_method_that_misses_a_concept_has_no_mean_over_concepts() -> None:
    names = ("difference_in_means", "latent")
    both = played({"difference_in_means": 0.4, "latent": 0.2}, dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.1))
    without = both.table[both.table["method"] != "latent"].assign(concept="timbre")
    other = replace(both, concept="timbre", table=without)
    found = scored([both, other], model="planted", limit=LIMIT, n_bootstrap=50, n_permutations=99, seed=0)
    assert list(found.overall["method"]) == ["difference_in_means"]
    assert found.overall.p.isna().all()


def with_controls(n: int, **planted: Any) -> Played:
    """Methods, and `n` controls of each kind, whose slopes are -.1, 0 and .1 by turns."""
    slopes = {f"{kind} {draw}": 0.1 * (draw % 3 - 1) for kind in ("random", "balanced") for draw in range(n)}
    of_all = {name: {**dict.fromkeys(slopes, 0.5), **planted[name]} for name in ("drift", "side")}
    one = played({**planted["effect"], **slopes}, **of_all)
    kinds = one.table["method"].str.extract(r"^(random|balanced) \d+$", expand=False)
    return replace(one, table=one.table.assign(kind=kinds.fillna(one.table["kind"])))


def test_more_controls_do_not_make_methods_less_significant() -> None:
    planted: dict[str, Any] = {
        "effect": {"difference_in_means": 0.4, "strong": 0.8}, "drift": {"difference_in_means": 0.5, "strong": 0.5},
        "side": {"difference_in_means": 0.1, "strong": 0.1},
    }  # fmt: skip
    few, many = (
        scored(
            [with_controls(n, **planted)], model="planted", limit=LIMIT, n_bootstrap=200, n_permutations=4999, seed=0
        )
        for n in (1, 39)
    )
    # The controls of a kind are one row of the means over concepts.
    overall = many.overall.set_index("method")
    assert list(overall["kind"]) == ["method", "method", "random", "balanced"]
    assert overall.area["random"] == pytest.approx(many.controls.set_index("kind").area["random"])
    holm = [one.table.set_index("method").p_holm["strong"] for one in (few, many)]
    assert holm[0] == holm[1] < 0.05
    rows, summary = many.table.set_index("method"), many.controls.set_index("kind")
    assert rows.p["random 0"] != rows.p["random 0"]
    # Among 39 controls, all of them smaller, the rank cannot be lower.
    assert rows.p_random["strong"] == rows.p_balanced["difference_in_means"] == pytest.approx(1 / 40)
    assert summary.draws["random"] == 39
    drawn = rows.area[rows.kind == "random"]
    assert summary.area["random"] == pytest.approx(drawn.mean())
    assert (summary.lowest["random"], summary.highest["random"]) == (drawn.min(), drawn.max())
    # The interval is that of a mean over draws.
    low, high = stats.t.interval(CONFIDENCE, 38, drawn.mean(), drawn.std(ddof=1) / np.sqrt(39))
    assert (summary.area_low["random"], summary.area_high["random"]) == (pytest.approx(low), pytest.approx(high))
    assert summary.p_holm["random"] < 0.05
    assert few.controls[["area_low", "area_high"]].isna().all(axis=None)


def test_the_page_is_written_with_many_controls_none_and_any_doses() -> None:
    script = benchmark_script("steering_methods")
    planted: dict[str, Any] = {
        "effect": {"difference_in_means": 0.4, "latent": 0.2}, "drift": {"difference_in_means": 0.5, "latent": 0.5},
        "side": {"difference_in_means": 0.1, "latent": 0.1},
    }  # fmt: skip
    for n in (0, 3):
        one = with_controls(n, **planted)
        # Prompting has doses of 1 and -1, and methods others.
        asked = one.table[one.table["condition"].isin(["latent -1", "latent +1"])]
        asked = asked.assign(method="prompting", kind="prompting", condition="prompting" + asked["condition"].str[6:])
        wider = one.table.assign(dose=2 * one.table["dose"])
        far = dict.fromkeys([*one.distances["frechet"], *asked["condition"]], 0.0)
        left_out = {"gated": "no gate."}
        one = replace(
            one, table=pd.concat([wider, asked], ignore_index=True), distances={"frechet": far}, left_out=left_out
        )
        found = scored([one], model="planted", limit=LIMIT, n_bootstrap=50, n_permutations=99, seed=0)
        for brief in (True, False):
            page = script.page(found, "sizes", brief=brief)
            assert ("| 3 random directions (mean) |" in page) == ("| tempo | 3 balanced shuffles |" in page) == (n == 3)
            assert ("In language models" in page) != brief
            assert "nan" not in page
            assert "`gated` on tempo: no gate." in page
        assert "a latent of a sparse autoencoder a smaller one on 1 of 1 and a larger on 0" in page


def test_a_comparison_that_cannot_be_significant_says_so() -> None:
    script = benchmark_script("steering_methods")
    found = scored(
        [played({"difference_in_means": 0.4, "rfm": 0.5}, dict.fromkeys(("difference_in_means", "rfm"), 0.5),
                dict.fromkeys(("difference_in_means", "rfm"), 0.1))],
        model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=99, seed=0,
    )  # fmt: skip
    # One test of 12 prompts can have p = 1/2048.
    assert script.decidable(found)
    assert not script.decidable(replace(found, n_prompts=5))
    told = [[line for line in script.verdict(one) if "our aim" in line] for one in (found, replace(found, n_prompts=5))]
    assert ["too few to decide our aim" in line for (line,) in told] == [False, True]


def test_the_page_has_both_sections_of_the_benchmark() -> None:
    page = benchmark_script("steering_methods").PAGE.read_text("utf-8")
    for section in ("methods", "methods-replicate"):
        assert page.count(f"<!-- {section}:begin -->") == page.count(f"<!-- {section}:end -->") == 1


def test_the_page_of_another_model_says_how_well_the_ranks_of_the_methods_agree() -> None:
    script = benchmark_script("steering_methods")
    names = ("difference_in_means", "ridge", "leace", "rfm")
    planted = {name: 0.2 * (n + 1) for n, name in enumerate(names)}
    one = played(planted, dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.0))
    found = scored([one], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0)
    for sign, rho, first, rank in ((1, "1.00", "rfm", 1), (-1, "-1.00", "difference_in_means", 4)):
        (told,), rows = script.stability(found, found.table.assign(area=sign * found.table["area"]))
        assert f"of the 4 methods that steer all of them (prompting included) have a rank correlation of {rho}" in told
        assert rows[-1] == f"| tempo | 4 | {rho} | `rfm` | `{first}` | {rank} of 4 |"


def test_clips_that_cannot_be_measured_are_counted_and_a_silenced_measure_is_an_effect() -> None:
    one = played({"difference_in_means": 0.4}, {"difference_in_means": 0.5}, {"difference_in_means": 0.0})
    table, first = one.table, one.table["prompt"] == "prompt 0"
    table.loc[first & (table["condition"] == "baseline"), "tempo_ioi"] = np.nan
    table.loc[(table["prompt"] == "prompt 1") & (table["kind"] == "method"), "tempo_ioi"] = np.nan
    found = scored([one], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0)
    row = found.table.iloc[0]
    assert (row.prompts, row.failed, row.unmeasured) == (PROMPTS - 1, 0, pytest.approx(1 / (PROMPTS - 1)))
    # A measure with a true zero that is 0 has fallen as far as a ratio can, and is no missing value.
    table.loc[(table["condition"] == "difference_in_means -1") & (table["prompt"] == "prompt 2"), "tempo_ioi"] = 0.0
    lower = scored([one], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0)
    assert lower.table.change_down[0] < row.change_down - 0.2
    assert lower.table.unmeasured[0] == row.unmeasured


def test_a_measure_without_spread_is_refused_and_a_single_measured_prompt_has_no_calibration() -> None:
    one = played({"difference_in_means": 0.4}, {"difference_in_means": 0.5}, {"difference_in_means": 0.0})
    unsteered = one.table["condition"] == "baseline"
    alike = replace(one, table=one.table.assign(tempo_ioi=one.table["tempo_ioi"].where(~unsteered, 100.0)))
    with pytest.raises(InputError, match="tempo: tempo_ioi has the same value, or none, in all unsteered clips"):
        scored([alike], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0)
    # Two seeds of one prompt have a spread, and no other prompt has a value.
    few = one.table.assign(
        tempo_ioi=one.table["tempo_ioi"].where(~unsteered | one.table["prompt"].isin(["prompt 0", "prompt 1"])),
        prompt=one.table["prompt"].replace("prompt 1", "prompt 0"),
    )  # fmt: skip
    found = scored([replace(one, table=few)], model="planted", limit=LIMIT, n_bootstrap=20, n_permutations=9, seed=0)
    assert found.table.prompts[0] == 1
    assert np.isnan(found.table.calibration_error[0])


def test_intervals_follow_the_resampling_that_was_asked_for() -> None:
    planted: dict[str, Any] = {
        "effect": {"difference_in_means": 0.4}, "drift": {"difference_in_means": 0.5},
        "side": {"difference_in_means": 0.0},
    }  # fmt: skip
    found = [
        scored([played(**planted)], model="planted", limit=LIMIT, n_bootstrap=n, n_permutations=0, seed=seed)
        for n, seed in ((20, 0), (20, 1), (400, 0))
    ]
    lows = [one.conditions.set_index("condition").low["difference_in_means +1"] for one in found]
    assert len(set(lows)) == 3


def test_failed_clips_have_no_effect() -> None:
    own = {"effect": {"difference_in_means": 0.4}, "drift": {"difference_in_means": 0.5}}
    one = played(**own, side={"difference_in_means": 0.0})
    table = one.table
    table.loc[table["kind"] == "method", "failed"] = True
    found = scored([one], model="planted", limit=LIMIT, n_bootstrap=0, n_permutations=0, seed=0).table.iloc[0]
    assert found.area == 0
    assert found.failed == 1
