"""A study chooses on development clips, reports on test clips, and claims nothing that was not measured."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from plants import tables as planted

import audiolens as al
from analysis import study, sweep
from analysis.store import folder
from analysis.study import Settings, scan, test_result
from analysis.study.scan import Choice
from analysis.study.settings import REPETITIONS
from audiolens.errors import InputError
from audiolens.model.provenance import prompts_hash

TINY = Settings(
    poles=4,
    reading_seconds=0.5,
    development=2,
    development_seeds=1,
    test=3,
    test_seeds=1,
    strengths={"one-to-one": (1.0,), "one-to-all": (0.5,)},
    n_random=2,
    n_shuffled=1,
    seconds=2.0,
    shown=2,
    pairs=2,
    place_by="scan",
    n_jobs=0,
)


@pytest.fixture(scope="module")
def written(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Study, Path, list[str]]:
    """A study of an untrained model, the folder it wrote, and what it told."""
    out = tmp_path_factory.mktemp("studies") / "tempo"
    told: list[str] = []
    found = study.run(
        lens, "tempo", out, settings=TINY, progress=False, tell=told.append, command="audiolens study tempo"
    )
    return found, out, told


def _effects(table: pd.DataFrame) -> pd.DataFrame:
    return sweep.effects(table, "tempo_ioi", n_bootstrap=0)


def test_the_choice_is_where_steering_was_planted() -> None:
    chosen = scan.choose(_effects(planted.scanned(best=5, noise=0.02)))
    assert (chosen.strategy, chosen.layer, chosen.strength) == ("one-to-all", 5, 0.5)
    assert chosen.span == pytest.approx(np.exp(0.8), rel=0.1)
    assert chosen.candidates == 32
    assert scan.choose(_effects(planted.scanned(best=5, noise=0.02)), "one-to-one").strategy == "one-to-one"


def test_a_strength_that_breaks_the_music_is_not_chosen() -> None:
    table = planted.scanned(best=5, noise=0.02, failing=lambda labels: 0.5 if labels["strength"] == -0.5 else 0.0)
    chosen = scan.choose(_effects(table))
    assert not (chosen.strategy == "one-to-all" and chosen.strength == 0.5)
    assert chosen.failed <= scan.CHOSEN_FAILED


def test_where_everything_fails_the_least_failing_is_chosen() -> None:
    table = planted.scanned(failing=lambda labels: 0.0 if labels["strength"] == 0 else 1.0)
    assert scan.choose(_effects(table)).failed == 1


def test_the_scan_covers_every_block_strategy_sign_and_strength() -> None:
    listed = scan.conditions(planted.directions(), {"one-to-one": (1.0, 2.0), "one-to-all": (0.5,)})
    assert len(listed) == 1 + 8 * 4 + 8 * 2
    by_name = {condition.name: condition for condition in listed}
    assert list(by_name["one-to-one 2 -2"].interventions[0].layers) == [2]
    assert len(list(by_name["one-to-all 2 +0.5"].interventions[0].layers)) == 8


CHOICE = Choice("one-to-all", 3, 0.5, 2.0, 0.0, 32)


def test_outcomes_recover_what_was_planted() -> None:
    response = _effects(planted.steered(CHOICE, [], noise=0.02))
    fast, slow = test_result.outcomes(response, planted.tempo().poles, CHOICE)
    assert fast.effect == pytest.approx(np.exp(0.4) - 1, abs=0.03)
    assert slow.effect == pytest.approx(np.exp(-0.4) - 1, abs=0.03)
    assert fast.prompted == pytest.approx(0.5, abs=0.05)
    assert (fast.p_random, fast.n_random) == (pytest.approx(1 / 6), 5)
    assert np.isnan(slow.p_shuffled)
    assert slow.n_shuffled == 0
    assert test_result.monotonicity(response).rho == pytest.approx(1)


def test_moving_towards_a_pole_needs_the_right_side_an_interval_and_sound_clips() -> None:
    table = planted.steered(CHOICE, [], noise=0.02)
    good = sweep.effects(table, "tempo_ioi", n_bootstrap=200)
    assert all(found.towards for found in test_result.outcomes(good, planted.tempo().poles, CHOICE))
    swapped = planted.tempo().opposite
    reversed_ = good.assign(strength=-good["strength"])
    assert not any(found.towards for found in test_result.outcomes(reversed_, swapped.poles, CHOICE))
    broken = planted.steered(CHOICE, [], noise=0.02, failing=lambda labels: 0.3 if labels["strength"] == 0.5 else 0.0)
    fast, slow = test_result.outcomes(
        sweep.effects(broken, "tempo_ioi", n_bootstrap=200), planted.tempo().poles, CHOICE
    )
    assert not fast.towards
    assert slow.towards


CLAIM: dict[str, Any] = {"noise": 0.02, "n_random": 19, "n_shuffled": 19, "others": {"timbre": 0.1, "density": 0.2}}
"""Clips with enough controls, of which none does as much as the real direction."""


def _outcomes(table: pd.DataFrame) -> tuple[test_result.Outcome, test_result.Outcome]:
    response = sweep.effects(table, "tempo_ioi", n_bootstrap=200)
    return test_result.outcomes(response, planted.tempo().poles, CHOICE)


def test_a_claim_needs_enough_controls_that_all_do_less() -> None:
    full = planted.steered(CHOICE, [], **CLAIM)
    for claim in _outcomes(full):
        assert (claim.n_random, claim.n_shuffled, claim.n_other, claim.n_controls) == (19, 19, 2, 40)
        assert (claim.p_random, claim.p_shuffled, claim.p_other) == (0.05, 0.05, pytest.approx(1 / 3))
        assert claim.p_controls == pytest.approx(1 / 41)
        assert (claim.p_corrected, claim.n_tests) == (pytest.approx(2 / 41), 2)
        assert (claim.claimable, claim.as_dict()["claimable"]) == (True, True)
    quick = _outcomes(planted.steered(CHOICE, [], noise=0.02))[0]
    assert (quick.towards, quick.testable, quick.claimable) == (True, False, False)


@pytest.mark.parametrize("kind", ["random", "balanced"])
def test_controls_of_either_kind_that_do_as_much_forbid_a_claim(kind: str) -> None:
    full = planted.steered(CHOICE, [], **CLAIM)
    as_good = full.assign(tempo_ioi=full["tempo_ioi"].where(full["kind"] != kind, 2 * full["tempo_ioi"]))
    fast, slow = _outcomes(as_good)
    assert getattr(fast, "p_random" if kind == "random" else "p_shuffled") == 1.0
    assert fast.p_controls == pytest.approx(20 / 41)
    assert (fast.towards, fast.claimable) == (True, False)
    # They only push upwards, and Holm multiplies the smallest p of the two.
    assert slow.p_corrected == pytest.approx(2 / 41)
    assert slow.claimable


@pytest.mark.parametrize("share", [1.5, -1.5])
def test_another_concept_that_does_as_much_forbids_a_claim_with_either_sign(share: float) -> None:
    """One control among forty leaves p below .05, but the effect is then not this concept's own."""
    table = planted.steered(CHOICE, [], **{**CLAIM, "others": {"timbre": 0.1, "density": share}})
    for found in _outcomes(table):
        assert found.p_corrected <= 0.1
        assert (found.towards, found.testable, found.claimable) == (True, True, False)
        assert found.rivals == ("density",)
        assert found.as_dict()["rivals"] == "density"
    named = planted.study()
    told = replace(named, outcomes=_outcomes(table)).qualification
    assert "Towards fast: the direction of density has as large an effect; " in told


def test_steering_is_ranked_by_its_effect_on_the_controls_clips() -> None:
    """On the first seeds it does nothing, on the others as much as planted: only the first have controls."""
    table = planted.steered(CHOICE, [], **CLAIM)
    first = table.groupby("prompt")["seed"].transform("min") == table["seed"]
    base = table[table["condition"] == "baseline"].set_index(["prompt", "seed"])["tempo_ioi"]
    own = base.reindex(pd.MultiIndex.from_frame(table[["prompt", "seed"]])).to_numpy()
    table["tempo_ioi"] = table["tempo_ioi"].where(~(first & (table["kind"] == "steered")), own)
    controls = table[first & table["kind"].isin(["baseline", "random", "balanced", "other"])]
    tested = table[~table["kind"].isin(["random", "balanced", "other"])]
    effects = [sweep.effects(one, "tempo_ioi", n_bootstrap=0) for one in (tested, controls)]
    response = pd.concat([effects[0], effects[1][effects[1]["kind"] != "baseline"]], ignore_index=True)
    same = test_result.on_same_clips(tested, controls, "tempo_ioi")
    fast, _ = test_result.outcomes(response, planted.tempo().poles, CHOICE, same)
    assert fast.effect > 0.3
    assert fast.ranked == 0
    assert fast.p_controls > 0.3
    assert set(same["clips"]) == {8}


def test_outcomes_that_are_reported_together_are_corrected_together() -> None:
    one = _outcomes(planted.steered(CHOICE, [], **CLAIM))
    four = test_result.corrected([*one, *one])
    assert [outcome.n_tests for outcome in four] == [4] * 4
    assert [outcome.p_corrected for outcome in four] == [pytest.approx(4 / 41)] * 4
    assert not any(outcome.testable or outcome.claimable for outcome in four)
    unmeasured = replace(one[0], p_controls=float("nan"))
    found = test_result.corrected([unmeasured, one[1]])
    assert np.isnan(found[0].p_corrected)
    assert found[1].p_corrected == pytest.approx(2 / 41)


def test_controls_state_how_far_they_point_along_the_direction() -> None:
    real, other = planted.sampled(), planted.directions(seed=5)
    listed = test_result.control_conditions(real, CHOICE, {"timbre": other}, n_random=2, n_shuffled=3)
    assert listed[0].name == "baseline"
    assert len(listed) == 1 + 2 * (2 + 3 + 1)
    for condition in listed[1:]:
        labels, step = condition.labels, condition.interventions[0]
        assert isinstance(step, al.Add)
        vector = torch.as_tensor(step.vector).double()
        expected = torch.nn.functional.cosine_similarity(vector, real[CHOICE.layer or 0].double(), dim=0)
        assert labels["cosine"] == pytest.approx(float(expected), abs=1e-4)
        assert float(vector.norm()) == pytest.approx(float(real[CHOICE.layer or 0].norm()), rel=1e-5)
    everywhere = Choice("all-to-all", None, 0.5, 2.0, 0.0, 32)
    (control,) = (one for one in test_result.control_conditions(real, everywhere, n_random=1, n_shuffled=0)
                  if one.labels["strength"] > 0)  # fmt: skip
    mean = float(real.random_like(0).cosine(real).abs().mean())
    assert control.labels["cosine"] == pytest.approx(mean, abs=1e-4)


def test_the_finding_says_what_the_controls_allow() -> None:
    quick = planted.study()
    few = "Too few controls were run to say whether another direction would do the same."
    assert quick.qualification.endswith(few)
    assert "controls, " not in quick.qualification
    claimed = replace(quick, outcomes=_outcomes(planted.steered(CHOICE, [], **CLAIM)))
    assert few not in claimed.qualification
    assert (
        "p = 0.024 among 40 controls, 0.049 corrected for 2 tests (19 random directions, 19 balanced shuffles, 2 other "
        "concepts)" in claimed.qualification
    )
    beaten = replace(claimed, outcomes=tuple(replace(o, p_corrected=0.4) for o in claimed.outcomes))
    assert "not distinguished from the controls: p = 0.024 among 40 controls, 0.4 corrected" in beaten.qualification


RELIABLE = {"effect": 0.746, "low": 0.42, "high": 1.0, "failed": 0.0, "prompted": 0.71}
UNRELIABLE = {"effect": -0.03, "low": -0.12, "high": 0.09, "failed": 0.0, "prompted": 0.71}
UNMEASURED = {"effect": float("nan"), "low": float("nan"), "high": float("nan"), "failed": 1.0}


@pytest.mark.parametrize(
    ("fast", "slow", "effects"),
    [
        (RELIABLE, {"effect": -0.37, "low": -0.5, "high": -0.28}, "+75% WORD [42, 100] and −37% OTHER [−50, −28]"),
        (RELIABLE, UNRELIABLE, "+75% WORD [42, 100] but not reliably OTHER (−3% [−12, 9])"),
        (RELIABLE, UNMEASURED, "+75% WORD [42, 100] but not measurably OTHER"),
        (UNRELIABLE, UNRELIABLE, "−3% [−12, 9] towards fast and −3% [−12, 9] towards slow, neither reliable,"),
        (UNMEASURED, UNRELIABLE, "−3% [−12, 9] towards slow, not reliable, and not measurable towards fast,"),
        (UNMEASURED, UNMEASURED, "No measurable change"),
    ],
)
@pytest.mark.parametrize(("concept", "poles"), [("tempo", ("fast", "slow")), ("pace", ("quick", "calm"))])
def test_the_finding_is_one_short_sentence_with_its_numbers_first(
    concept: str, poles: tuple[str, str], fast: dict[str, float], slow: dict[str, float], effects: str
) -> None:
    study_ = planted.study()
    up, down = study_.outcomes
    found = replace(study_, concept=concept, poles=poles, outcomes=(replace(up, **fast), replace(down, **slow)))
    words = ("faster", "slower") if concept == "tempo" else ("more quick", "more calm")
    expected = effects.replace("WORD", words[0]).replace("OTHER", words[1])
    size = f"{found.settings.test} neutral prompts x {found.settings.test_seeds} seeds"
    assert found.finding == f"{expected} on {size}, steering {concept} at strength ±{found.choice.strength:g}."
    assert len(found.finding.split()) <= 25


def test_the_reliable_pole_comes_first() -> None:
    found = planted.study()
    up, down = found.outcomes
    mixed = replace(found, outcomes=(replace(up, **UNRELIABLE), replace(down, effect=-0.37, low=-0.5, high=-0.28)))
    assert mixed.finding.startswith("−37% slower [−50, −28] but not reliably faster (−3% [−12, 9]) on ")


def test_the_qualification_keeps_place_controls_words_and_failed_clips() -> None:
    found = planted.study()
    up, down = found.outcomes
    ranks = {"n_random": 99, "n_shuffled": 99, "n_other": 1, "n_controls": 199, "p_controls": 0.01, "p_corrected": 0.02}
    full = replace(found, outcomes=(replace(up, **RELIABLE, **ranks), replace(down, **UNMEASURED)))
    assert full.qualification.startswith(
        f"Strategy: {found.choice.description}. Towards fast: p = 0.01 among 199 controls, 0.02 corrected for 2 tests "
        "(99 random directions, 99 balanced shuffles, 1 other concept); 0% of clips failed; prompting gave +71%. "
        "Towards slow: no clip could be measured. Tempo is measured by the interval between onsets"
    )


def test_a_finding_in_intervals_also_states_the_beat() -> None:
    found = planted.study()
    chosen = found.choice.strength
    beats = pd.DataFrame(
        {"measure": "tempo", "strength": [chosen, -chosen, 2 * chosen], "effect": [0.41, -0.3, 9.0],
         "low": [0.3, -0.4, 9.0], "high": [0.55, -0.2, 9.0]}
    )  # fmt: skip
    stated = "includes notes between the beats; measured by the beat, it changed by"
    assert f"{stated} +41% [30, 55] and −30% [−40, −20]." in replace(found, cross=beats).qualification
    # The planted beat is the interval itself.
    assert stated in found.qualification
    lost = beats.assign(effect=float("nan"))
    assert "the beat was not measured." in replace(found, cross=lost).qualification
    assert "interval between onsets" not in replace(found, measure="tempo").qualification


def test_test_conditions_pair_controls_and_references_with_the_steering() -> None:
    sets = planted.tempo()
    listed = test_result.conditions(planted.directions(), sets, CHOICE)
    listed += test_result.control_conditions(planted.directions(), CHOICE, n_random=3, n_shuffled=0)[1:]
    kinds = [condition.labels["kind"] for condition in listed]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "baseline": 1,
        "steered": 4,
        "random": 6,
        "prompted": 2,
        "opposed": 2,
    }
    by_name = {condition.name: condition for condition in listed}
    real = by_name["steered one-to-all +0.5"].interventions[0]
    control = by_name["random one-to-all 0 +0.5"].interventions[0]
    assert torch.linalg.norm(control.vector) == pytest.approx(float(torch.linalg.norm(real.vector)), rel=1e-5)
    assert list(control.layers) == list(real.layers)
    ask = by_name["steered fast, asked slow"].ask
    assert ask is not None
    assert "slow" in ask(sets.test[0])


def test_cross_effects_leave_what_was_not_touched() -> None:
    found = test_result.cross_effects(planted.steered(CHOICE, []), n_bootstrap=200).set_index(["measure", "strength"])
    assert found.loc[("onset_rate", 0.5), "effect"] == pytest.approx(np.exp(0.4) - 1, abs=0.1)
    low, high = found.loc[("pulse_clarity", 0.5), ["low", "high"]]
    assert low <= 0 <= high
    assert found.loc[("loudness", 0.5), "unit"] == "dB"


def test_the_plan_is_counted_before_the_start(written: tuple[study.Study, Path, list[str]]) -> None:
    found, _, told = written
    counts = TINY.clips(found.directions.meta.n_layers)
    splits = found.clips["split"].value_counts()
    assert splits["development"] == counts["scanning blocks"]
    # The baseline of the controls is played again, and not reported again.
    assert splits["test"] == counts["dose-response"] + counts["controls"] - 3 + 2 * len(found.others) * 3
    assert told[0].startswith(f"{sum(counts.values())} clips of 2 s")
    assert any("2 random directions, 1 balanced shuffles and" in line for line in told)


def test_the_default_fits_its_budget() -> None:
    others = (planted.tempo(),) * 3
    assert sum(Settings().clips(8, planted.tempo(), others).values()) <= 1650
    assert sum(Settings(place_by="scan").clips(8, planted.tempo(), others).values()) <= 2600
    assert "scanning blocks" not in Settings().clips(8)
    assert Settings(verify=True).clips(8).keys() >= {"scanning blocks", "choosing a strength"}
    full = Settings.full()
    assert full.test * full.test_seeds >= 32
    assert (full.n_random, full.n_shuffled) == (99, 99)
    assert min(Settings().n_random, Settings().n_shuffled) == 19


def test_repetitions_share_no_clip_and_no_control() -> None:
    sets, directions = planted.tempo(), planted.sampled(24)
    clips, draws = [], []
    for seed in (0, 1, REPETITIONS - 1):
        settings = Settings.full(seed=seed)
        reading = [(prompt, n) for n in settings.reading_seeds(sets) for prompt in (*sets.positive, *sets.negative)]
        clips.append({*reading, *settings.development_clips(sets), *settings.test_clips(sets)})
        listed = test_result.control_conditions(
            directions, CHOICE, n_random=19, n_shuffled=19, first_draw=settings.first_draw
        )
        controls = [condition.interventions[0] for condition in listed[1:]]
        draws.append({tuple(step.vector.tolist()) for step in controls})
    for sets_of in (clips, draws):
        assert len(set.union(*sets_of)) == sum(map(len, sets_of))
    assert all(len(drawn) == 38 for drawn in draws)
    seeds = [seed for _, seed in Settings.full(seed=REPETITIONS - 1).development_clips(sets)]
    assert max(seeds) < min(seed for _, seed in Settings.full().test_clips(sets))


def test_no_clip_is_in_both_splits(written: tuple[study.Study, Path, list[str]]) -> None:
    clips = written[0].clips
    split = {name: group for name, group in clips.groupby("split")}
    assert not set(split["development"]["prompt"]) & set(split["test"]["prompt"])
    assert not set(split["development"]["seed"]) & set(split["test"]["seed"])


def test_the_folder_holds_everything(written: tuple[study.Study, Path, list[str]], lens: Any) -> None:
    found, out, _ = written
    pd.testing.assert_frame_equal(pd.read_parquet(out / "clips.parquet"), found.clips, check_dtype=False)
    assert len(pd.read_csv(out / "clips.csv")) == len(found.clips)
    assert al.Directions.load(out / "directions.safetensors", lens=lens).layers == found.directions.layers
    facts = json.loads((out / "summary.json").read_text())
    assert facts["finding"] == found.finding
    assert facts["qualification"] == found.qualification
    assert facts["settings"]["seconds"] == 2
    waves = sorted((out / "audio").glob("*.wav"))
    assert len(waves) == 2 * (5 + 2)
    samples, rate = soundfile.read(waves[0])
    assert (rate, len(samples)) == (16_000, 32_000)
    drawn = {file.name for file in (out / "figures").iterdir()}
    assert {"finding.svg", "dose_response.svg", "scan.svg", "pca.svg", "captions.md"} <= drawn
    assert not list(out.parent.glob(".*"))


def test_the_page_stands_alone(written: tuple[study.Study, Path, list[str]]) -> None:
    _, out, _ = written
    page = (out / "index.html").read_text()
    assert page.count("<audio") == 14
    assert "audiolens study tempo" in page
    assert "What this does not show" in page
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?https?:""", page)
    assert (out / "index.html").stat().st_size < 3e6


def test_an_untrained_model_shows_no_effect(written: tuple[study.Study, Path, list[str]]) -> None:
    assert not any(one.claimable for one in written[0].outcomes)
    assert re.search("not reliabl|neither reliable|[Nn]o[t]? measurabl", written[0].finding)
    assert written[0].figure().data
    assert written[0].plot().axes
    assert len(written[0].to_frame()) == len(written[0].response)


def test_a_trained_finding_is_said_in_one_line() -> None:
    text = repr(planted.study())
    assert "\n" not in text
    assert "faster" in text
    assert "slower" in text
    assert "prompting gave" in text


def test_an_existing_study_is_replaced_only_when_asked(tmp_path: Path) -> None:
    found, target = planted.study(), tmp_path / "tempo"
    found.save(target)
    (target / "mark").write_text("old")
    with pytest.raises(InputError, match="--force"):
        found.save(target)
    found.save(target, overwrite=True)
    assert not (target / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tempo"]


def test_the_old_study_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tempo"
    target.mkdir()
    (target / "summary.json").write_text(json.dumps({"format": folder.STUDY}))
    rename = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if "unfinished" in path.name:
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"), folder.fresh(target, overwrite=True) as work:
        (work / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["tempo"]
    assert folder.is_study(target)


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="other than a study"), folder.fresh(tmp_path / "mine", overwrite=True):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), folder.fresh(tmp_path / "file" / "below"):
        pass


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder.fresh(tmp_path / "new") as work:
        (work / "half").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("concept", "message"),
    [("tempi", "Did you mean 'tempo'"), ("bells", "'bells' has no measure"), ("", "unknown concept ''")],
)
def test_a_concept_that_cannot_be_studied_is_refused(lens: Any, concept: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study.run(lens, concept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": 600.0}, "expected 1 to"),
        ({"test": 1000}, "has 40"),
        ({"n_random": 0}, "needs a control"),
        ({"control_seeds": 5}, "control_seeds=5: expected 1 to test_seeds=4"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 100}, "expected 0 to 99"),
        ({"test_seeds": 2000}, "test x test_seeds=16000"),
        ({"n_random": 1001}, "at most 1000"),
        ({"poles": 1}, "poles=1"),
    ],
)
def test_settings_out_of_range_are_refused(lens: Any, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        study.run(lens, "tempo", tmp_path / "out", settings=Settings(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", ["positive_words", "negative_words"])
def test_a_set_without_words_for_a_pole_is_refused_before_anything_runs(lens: Any, side: str) -> None:
    with pytest.raises(InputError, match="no words for"):
        study.run(lens, replace(planted.tempo(), **{side: ()}))


@pytest.mark.parametrize("pole", [0, 1])
def test_one_prompt_in_a_pole_is_refused_before_anything_runs(
    lens: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pole: int
) -> None:
    monkeypatch.setattr("analysis.study.experiment._run", lambda *_: pytest.fail("a study ran"))
    sets = planted.tempo()
    lone = replace(sets, **{("positive", "negative")[pole]: (sets.positive, sets.negative)[pole][:1]})
    with pytest.raises(InputError, match=f"1 prompt for the pole '{sets.poles[pole]}': a study needs at least 2"):
        study.run(lens, lone, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_the_prompts_that_there_are() -> None:
    sets = planted.tempo()
    few = replace(sets, positive=sets.positive[:3], negative=sets.negative[:2])
    assert Settings(poles=48).clips(8, few)["reading directions"] == 3
    assert Settings(poles=48).clips(8, sets)["reading directions"] == 48
    assert Settings(poles=48, codes="own").clips(8, few)["reading directions"] == 5
    assert Settings(poles=48, codes="own").clips(8, sets)["reading directions"] == 96


def test_default_strengths_fit_the_length_of_the_reading_and_given_ones_are_kept() -> None:
    for made in (Settings, Settings.full):
        shared, own = made(), made(codes="own")
        assert shared.codes == "shared"
        for name in ("strengths", "strengths_at_place"):
            for strategy, amounts in getattr(shared, name).items():
                assert getattr(own, name)[strategy] == tuple(amount / 2 for amount in amounts)
    given = {"one-to-all": (0.5,)}
    assert dict(Settings(codes="own", strengths=given).strengths) == given


def test_a_study_states_what_its_directions_were_read_over(
    written: tuple[study.Study, Path, list[str]], lens: Any
) -> None:
    found, out, _ = written
    sets = al.prompts.load("tempo", lens=lens)
    meta = al.Directions.load(out / "directions.safetensors", lens=lens).meta
    assert (meta.source, meta.neutral) == ("shared codes", prompts_hash(sets.development))
    assert json.loads((out / "summary.json").read_text())["settings"]["codes"] == "shared"
    own = study.run(lens, "tempo", settings=replace(TINY, codes="own"), progress=False)
    assert (own.directions.meta.source, own.settings.codes) == ("generation", "own")
    assert not torch.equal(own.directions.vectors, found.directions.vectors)
    with pytest.raises(InputError, match="codes='both': expected 'own' or 'shared'"):
        Settings(codes="both")  # pyright: ignore[reportArgumentType]


def test_a_strength_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="finite numbers above 0"):
        Settings(strengths={"one-to-one": (float("nan"),)})
