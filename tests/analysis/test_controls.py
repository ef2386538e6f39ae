"""Controls of a sweep: what is drawn, how an effect is ranked among them, and sweeps of the previous version."""

import numpy as np
import pandas as pd
import pytest
from plants import tables as planted

from analysis import sweep
from analysis.statistics import effect
from analysis.sweep import factorial
from analysis.sweep.controls import drawn
from analysis.sweep.dose import dose_response
from analysis.sweep.factorial import Factors
from analysis.sweep.ranks import rank_among, ranked
from audiolens.errors import InputError

STRENGTHS = (-1.0, 1.0)


def controls_of(**by_kind: list[tuple[float, float, str | None]]) -> pd.DataFrame:
    """Rows of controls: (strength, effect, name of the other concept) by kind."""
    rows = [
        {"kind": kind, "strength": strength, "mean_change": effect, "other": other}
        for kind, found in by_kind.items()
        for strength, effect, other in found
    ]
    return pd.DataFrame(rows, columns=["kind", "strength", "mean_change", "other"])


def test_an_effect_is_ranked_by_kind_and_among_all() -> None:
    table = controls_of(
        random=[(1.0, 0.1, None), (1.0, 0.4, None), (-1.0, 0.9, None)],
        balanced=[(1.0, 0.2, None), (-1.0, -0.9, None)],
        other=[(1.0, -0.1, "timbre"), (-1.0, 0.05, "timbre")],
    )
    found = ranked(0.3, 1.0, table)
    assert found.n == {"random": 2, "shuffled": 1, "other": 1, "controls": 4}
    assert found.p == {"random": 2 / 3, "shuffled": 1 / 2, "other": 1 / 2, "controls": 2 / 5}
    assert found.rivals == ()


@pytest.mark.parametrize(("strength", "effect"), [(1.0, 0.3), (-1.0, -0.3)])
@pytest.mark.parametrize("turned", [False, True])
def test_another_concept_counts_once_with_the_sign_that_does_more(strength: float, effect: float, turned: bool) -> None:
    sides = [(1.0, -0.5, "timbre"), (-1.0, 0.5, "timbre")] if turned else [(1.0, 0.5, "timbre"), (-1.0, -0.5, "timbre")]
    found = ranked(effect, strength, controls_of(other=[*sides, (1.0, 0.1, "density"), (-1.0, 0.0, "density")]))
    assert found.rivals == ("timbre",)
    assert (found.n["other"], found.p["other"]) == (2, 2 / 3)


def test_what_was_not_measured_is_not_ranked() -> None:
    table = controls_of(random=[(1.0, 0.1, None)], other=[(1.0, np.nan, "timbre"), (-1.0, 0.9, "timbre")])
    found = ranked(0.3, 1.0, table)
    assert found.p["random"] == 0.5
    assert np.isnan(found.p["other"])
    assert np.isnan(found.p["controls"])
    nothing = ranked(0.3, 1.0, table.iloc[:0])
    assert set(nothing.n.values()) == {0}
    assert np.isnan(nothing.p["controls"])
    assert np.isnan(ranked(float("nan"), 1.0, table).p["random"])


def test_few_prompts_give_few_shuffles_instead_of_repeated_ones() -> None:
    kinds = [one.kind for one in drawn(planted.sampled(2), n_random=2, n_shuffled=19)]
    assert kinds == ["random"] * 2 + ["balanced"] * 2
    with pytest.raises(InputError, match="n_shuffled=1: .*keep_samples=True"):
        drawn(planted.directions(), n_random=0, n_shuffled=1)


def test_a_sweep_has_other_concepts_as_controls_of_its_own() -> None:
    own = {"tempo": planted.directions(), "timbre": planted.directions(seed=1)}
    also = {"timbre": own["timbre"], "density": planted.directions(seed=2)}
    factors = Factors(strengths=STRENGTHS, layers=(2, 3), n_random=1, others=also)
    listed = factorial.conditions(own, factors)
    controls = [one.labels for one in listed if one.labels["kind"] == "other"]
    named = {(one["concept"], one["other"]) for one in controls}
    assert named == {("tempo", "timbre"), ("tempo", "density"), ("timbre", "density")}
    assert len(controls) == 3 * 2 * 2
    expected = float(own["tempo"].cosine(also["density"])[3])
    (found,) = (one for one in controls if (one["concept"], one["other"], one["layer"], one["strength"])
                == ("tempo", "density", 3, 1.0))  # fmt: skip
    assert found["cosine"] == pytest.approx(expected, abs=1e-4)


def test_a_dose_response_names_the_concept_that_does_as_much() -> None:
    own = {"tempo": planted.sampled()}
    also = {"timbre": planted.directions(seed=1), "density": planted.directions(seed=2)}
    factors = Factors(strengths=STRENGTHS, layers=3, n_random=19, n_shuffled=19, others=also)
    doing = {"steered": 0.4, "timbre": 0.1, "density": -0.8}

    def factor(labels: dict) -> float:
        return float(np.exp((labels["strength"] or 0) * doing.get(labels["other"] or labels["kind"], 0.0)))

    table = planted.heard(factorial.conditions(own, factors), factor, prompts=planted.tempo().test[:6], noise=0.02)
    dose = dose_response(sweep.effects(table, "tempo_ioi", n_bootstrap=0), "tempo", "tempo_ioi")
    for row in dose.steered.to_dict("records"):
        assert (row["p_random"], row["p_shuffled"], row["p_other"]) == (0.05, 0.05, pytest.approx(2 / 3))
        assert (row["p_controls"], row["n_controls"]) == (pytest.approx(2 / 41), 40)
        assert row["p_corrected"] == row["p_controls"]
        assert row["rivals"] == "density"


def test_sweeps_of_the_previous_version_are_ranked_among_their_random_directions() -> None:
    own = {"tempo": planted.sampled()}
    factors = Factors(strengths=STRENGTHS, layers=3, n_random=3, n_shuffled=3)
    table = planted.heard(
        factorial.conditions(own, factors), lambda labels: 1.0, prompts=planted.tempo().test[:3], seeds=1
    )
    old = table.drop(columns=["other", "cosine"])
    old["kind"] = old["kind"].replace("balanced", "shuffled")
    dose = dose_response(sweep.effects(old, "tempo_ioi", n_bootstrap=0), "tempo", "tempo_ioi")
    assert set(dose.steered["n_random"]) == {3}
    assert set(dose.steered["n_shuffled"]) == {0}
    assert set(dose.steered["n_controls"]) == {3}
    assert dose.plot().axes
    assert dose.figure().data


def test_a_mean_change_tells_few_clips_apart_better_than_a_median() -> None:
    """Clips that diverge by chance, with octave errors, as they do on étude: eight of each of 38 controls."""
    rng, claimed = np.random.default_rng(0), np.zeros((2, 2))
    runs, n_clips = 400, 8
    for shift in (0, 1):
        for _ in range(runs):
            drawn = rng.normal(0, 0.08, (39, 1)) + rng.normal(0, 0.4, (39, n_clips))
            drawn += np.log(2) * rng.choice((-1, 0, 1), (39, n_clips), p=(0.05, 0.9, 0.05))
            drawn[0] += 0.4 * shift
            found = [effect(100 * np.exp(one), np.full(n_clips, 100.0), range(n_clips), n_bootstrap=0) for one in drawn]
            for place, values in enumerate(([one.value for one in found], [one.mean for one in found])):
                claimed[shift, place] += rank_among(values[0], values[1:], 1)[0] <= 2 / 39
    rates = claimed / runs
    print(f"p at most 2/39: median, mean without an effect {rates[0]}, with one {rates[1]}")
    assert rates[0].tolist() == pytest.approx([2 / 39] * 2, abs=0.035)
    assert rates[1, 1] > rates[1, 0] + 0.04
