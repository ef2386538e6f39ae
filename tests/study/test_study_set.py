"""Several concepts in one call, a concept from two files, and steering at the place that evidence names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plants import tables as planted
from small_runs import TINY

import audiolens as al
from analysis import placement, study
from analysis.study import Settings, experiment, scan, study_set
from audiolens.errors import InputError, InputTypeError


@pytest.fixture(scope="module")
def both(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[study_set.Several, Path]:
    out = tmp_path_factory.mktemp("several") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write", _summary_alone)
        found = study_set.run(lens, ["tempo", "timbre"], out, settings=TINY, progress=False)
    return found, out


def _summary_alone(found: study.Study, folder: Path, *, command: str = "", **_: Any) -> None:
    (folder / "summary.json").write_text(json.dumps({"finding": found.finding}))


def test_every_concept_has_its_folder_beneath_one_index(both: tuple[study_set.Several, Path]) -> None:
    found, out = both
    assert [one.concept for one in found.studies] == ["tempo", "timbre"]
    assert {path.name for path in out.iterdir()} == {
        "tempo", "timbre", "index.html", "summary.json", "cross_effects.csv", "cross_effects.svg", "cosines.csv",
        "cosines.svg",
    }  # fmt: skip
    page = (out / "index.html").read_text("utf-8")
    assert 'href="tempo/index.html"' in page
    assert 'href="timbre/index.html"' in page


def test_cross_effects_are_those_of_each_study(both: tuple[study_set.Several, Path]) -> None:
    found, out = both
    table = found.to_frame()
    assert len(table) == 2 * 2 * 2
    for one in found.studies:
        for outcome in one.outcomes:
            own = table[(table["concept"] == one.concept) & (table["pole"] == outcome.pole)].set_index(
                "measured_concept"
            )
            other = next(another for another in found.studies if another is not one)
            row = one.cross[(one.cross["measure"] == other.measure) & (one.cross["strength"] == outcome.strength)].iloc[
                0
            ]
            for name in ("effect", "low", "high"):
                pd.testing.assert_series_equal(
                    pd.Series([own.loc[other.concept, name], own.loc[one.concept, name]]),
                    pd.Series([row[name], getattr(outcome, name)]),
                    check_exact=False,
                )
    written = pd.read_csv(out / "cross_effects.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert found.plot().axes
    assert found.figure().data
    assert "tempo, timbre" in repr(found)


def test_a_measure_that_a_study_does_not_cross_is_heard_in_its_clips() -> None:
    tempo = planted.study()
    clips = tempo.clips.assign(rolloff=3 * tempo.clips["tempo_ioi"])
    other = replace(tempo, concept="edge", measure="rolloff", clips=clips)
    table = (
        study_set.Several((replace(tempo, clips=clips), other))
        .to_frame()
        .set_index(["concept", "measured_concept", "pole"])
    )
    for pole in ("fast", "slow"):
        heard, own = (table.loc[("tempo", name, pole)] for name in ("edge", "tempo"))
        assert heard["effect"] == pytest.approx(own["effect"])
        assert abs(heard["effect"]) > 0.2
    assert np.isfinite(table["effect"]).all()


def test_a_study_crosses_its_own_measure(lens: Any) -> None:
    found = study.run(lens, "tempo", settings=replace(TINY, measured="rolloff"), progress=False)
    assert "rolloff" in set(found.cross["measure"])


def test_several_are_refused_before_the_first_runs(lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_run", lambda *_: pytest.fail("a study ran"))
    (tmp_path / "timbre").mkdir()
    (tmp_path / "timbre" / "thesis.txt").write_text("years")
    for concepts, message in (
        (["tempo", "timbre"], "other than a study"),
        (["tempo", "tempi"], "Did you mean 'tempo'"),
        (["tempo"], "two or more"),
        (["tempo", "tempo"], "two or more different"),
    ):
        with pytest.raises(InputError, match=message):
            study_set.run(lens, concepts, tmp_path, settings=TINY)
    with pytest.raises(InputError, match="measured='rolloff' would apply to every concept"):
        study_set.run(lens, ["tempo", "timbre"], tmp_path, settings=replace(TINY, measured="rolloff"))
    outside = replace(al.prompts.load("tempo"), concept="../tempo")
    monkeypatch.setattr(Settings, "measure_of", lambda *_: "tempo_ioi")
    with pytest.raises(InputError, match="cannot name a folder"):
        study_set.run(lens, ["timbre", outside], tmp_path, settings=TINY)
    with pytest.raises(InputTypeError, match="expected a list"):
        study_set.run(lens, "tempo,timbre", tmp_path, settings=TINY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("mine")
    with pytest.raises(InputError, match="not an index of studies"):
        study_set.run(lens, ["tempo", "timbre"], tmp_path / "other", settings=TINY)


def test_a_concept_of_ones_own_from_two_files(lens: Any, tmp_path: Path) -> None:
    (tmp_path / "loud.txt").write_text("a loud song\nloud drums\nloud jazz\n")
    (tmp_path / "soft.txt").write_text("a soft song\nsoft drums\n")
    with pytest.warns(UserWarning, match="occurs in 100%"):
        own = al.prompts.from_files(tmp_path / "loud.txt", tmp_path / "soft.txt", concept="force")
    neutral = replace(al.prompts.load("tempo"), test=("a calm piano song", "a loud tune", "the guitar"))
    sets = own.completed(neutral)
    assert sets.test == ("a calm piano song", "the guitar")
    assert sets.prompted("a calm piano song", "loud") == "a calm piano loud song"
    with pytest.raises(InputError, match="'force' has no measure"):
        study.run(lens, sets, settings=TINY)
    with pytest.raises(InputError, match="measure 'loudness': expected one whose change is a ratio"):
        study.run(lens, sets, settings=replace(TINY, measured="loudness"))
    found = study.run(lens, sets, settings=replace(TINY, measured="brightness"), progress=False)
    assert (found.concept, found.measure, found.poles) == ("force", "brightness", ("loud", "soft"))
    assert "steering force at strength" in found.finding
    # Three prompts against two match in no pairs.
    assert found.where is None


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"strategy": "one-to-one", "layer": 1}, "one-to-one, added at block 1."),
        ({"strategy": "all-to-all", "layer": None}, "all-to-all, with every block's own direction."),
    ],
)
def test_the_place_that_evidence_names_is_steered_without_a_scan(
    lens: Any, monkeypatch: pytest.MonkeyPatch, where: dict[str, Any], told: str
) -> None:
    own = placement.place

    def placed(*given: Any, **asked: Any) -> placement.Placement:
        return replace(own(*given, **asked, strategies=[where["strategy"]]), **where)

    monkeypatch.setattr(placement, "place", placed)
    told_lines: list[str] = []
    found = study.run(lens, "tempo", settings=TINY, progress=False, tell=told_lines.append)
    assert set(found.scan["stage"]) == {"strength"}
    tried = found.scan[found.scan["strategy"] == where["strategy"]]
    assert set(tried["layer"].dropna()) == ({where["layer"]} - {None})
    wanted = TINY.strengths_at_place[where["strategy"]]
    assert sorted({abs(strength) for strength in tried["strength"]}) == sorted(wanted)
    assert found.choice.where == where
    assert told in found.qualification
    assert found.placement is not None
    assert found.placement.reason in told_lines


def test_a_study_goes_where_placement_says(lens: Any) -> None:
    found = study.run(lens, "tempo", settings=TINY, progress=False)
    neutral = al.prompts.load("tempo").development[: TINY.development]
    alone = placement.place(
        lens,
        "tempo",
        found.directions,
        prompts=neutral,
        seconds=TINY.reading_seconds,
        screen_seconds=0,
        progress=False,
    )
    assert found.placement is not None
    assert found.placement.where == alone.where
    pd.testing.assert_frame_equal(found.placement.to_frame(), alone.to_frame())
    assert {"strategy": found.choice.strategy, "layer": found.choice.layer} == {"layer": None, **alone.where}


def test_verifying_scans_beside_the_evidence_and_changes_nothing(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.write", _summary_alone)
    told: list[str] = []
    alone = study.run(lens, "tempo", tmp_path / "out", settings=TINY, progress=False)
    beside = study.run(
        lens, "tempo", tmp_path / "out", settings=replace(TINY, verify=True), progress=False, tell=told.append
    )
    assert set(beside.scan["stage"]) == {"scan", "strength"}
    assert set(beside.scan.query("stage == 'scan'")["layer"].dropna()) == {0, 1, 2}
    assert repr(beside.choice) == repr(alone.choice)
    pd.testing.assert_frame_equal(beside.response, alone.response)
    assert {line for line in told if "kept from before" in line} == {
        f"{stage}: kept from before"
        for stage in (
            "directions",
            "patching",
            "placement",
            "choosing a strength",
            "dose-response",
            "controls",
            "side effects",
        )
    }


def test_what_may_stand_beside_a_place() -> None:
    assert scan.other_strategies({"strategy": "one-to-all", "layer": 3}, ["one-to-one", "one-to-all"]) == [
        {"strategy": "one-to-one", "layer": 3}
    ]
    assert scan.other_strategies({"strategy": "all-to-all"}, ["one-to-one", "one-to-all"]) == []
