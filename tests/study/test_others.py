"""Other concepts are controls of a study: which ones by default, which are refused, and that they are played."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plants import tables as planted
from small_runs import TINY

import audiolens as al
from analysis import study, sweep
from analysis.study import others
from analysis.study.scan import Choice
from analysis.study.test_result import outcomes
from audiolens.errors import InputError
from audiolens.prompts import PromptSet

CHOICE = Choice("one-to-all", 3, 0.5, 2.0, 0.0, 32)


@pytest.fixture(scope="module")
def etude() -> al.AudioLens:
    return al.AudioLens.from_pretrained("etude")


def force() -> PromptSet:
    """A concept of one's own."""
    return PromptSet("force", ("loud", "soft"), ("a loud song", "loud drums"), ("a soft song", "soft drums"))


def names(found: tuple[PromptSet, ...]) -> list[str]:
    return [one.concept for one in found]


def test_the_default_is_every_bundled_concept_with_another_measure(etude: al.AudioLens) -> None:
    tempo = al.prompts.load("tempo", lens=etude)
    assert names(others.chosen(etude, tempo, "tempo_ioi", None)) == ["timbre", "density", "register"]
    # A concept of one's own with the same measure may be the same concept; other tempo measures measure it, too.
    assert names(others.chosen(etude, force(), "brightness", None)) == ["tempo", "density", "register"]
    assert "tempo" not in names(others.chosen(etude, force(), "tempo", None))
    assert others.chosen(etude, tempo, "tempo_ioi", ()) == ()


def test_a_model_that_reads_english_gets_the_english_sets(etude: al.AudioLens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiolens.prompts.files._reads_english", lambda _, concept: concept in ("tempo", "timbre"))
    monkeypatch.setattr(others.tokens, "unread", lambda *_: [])
    found = others.chosen(etude, force(), "onset_rate", None)
    assert [(one.concept, one.vocabulary) for one in found] == [("tempo", "english"), ("timbre", "english")]


def test_a_model_that_knows_no_words_has_no_other_concepts_by_default(
    etude: al.AudioLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others.tokens, "unread", lambda *_: ["fast"])
    assert others.chosen(etude, force(), "onset_rate", None) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tempo"], "expected different concepts other than 'tempo'"),
        (["timbre", "timbre"], "expected different concepts"),
        (["timber"], "Did you mean 'timbre'"),
        ("timbre", "expected a list of concepts"),
        ([replace(force(), positive=("zig zig",), negative=("zag zag",))], "reads both poles of 'force' alike"),
    ],
)
def test_others_that_cannot_be_controls_are_refused_before_anything_runs(
    etude: al.AudioLens, monkeypatch: pytest.MonkeyPatch, given: Any, message: str
) -> None:
    monkeypatch.setattr("analysis.study.experiment._run", lambda *_: pytest.fail("a study ran"))
    with pytest.raises(InputError, match=message):
        study.run(etude, "tempo", others=given)


def test_the_directions_of_other_concepts_are_played_at_the_chosen_place(lens: Any, tmp_path: Path) -> None:
    own = replace(force(), positive=("jazz", "piano"), negative=("song", "drums"))
    found = study.run(lens, "tempo", tmp_path / "out", settings=TINY, others=[own], progress=False)
    assert found.others == ("force",)
    mine = found.controls.set_index("kind").loc["other"]
    assert -1 <= mine["cosine"] <= 1
    assert all(outcome.n_other == 1 for outcome in found.outcomes)
    assert set(found.response.loc[found.response["kind"] == "other", "clips"]) == {TINY.test * TINY.control_seeds}
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "Cosine similarity of the controls to the direction at its place" in page
    assert "force" in page
    again = study.load_folder(tmp_path / "out")
    assert again.others == ("force",)
    assert str(again.outcomes) == str(found.outcomes)
    with pytest.raises(InputError, match="others=.'force'., but this one has"):
        study.run(lens, "tempo", tmp_path / "out", settings=TINY, others=(), progress=False)


def test_studies_of_the_previous_version_keep_their_ranks_among_random_directions() -> None:
    """Their controls are in the same sweep, without cosines; freely shuffled ones are drawn, but not ranked."""
    table = planted.steered(CHOICE, [], noise=0.02, n_random=19, n_shuffled=19).drop(columns=["other", "cosine"])
    table["kind"] = table["kind"].replace("balanced", "shuffled")
    found = outcomes(sweep.effects(table, "tempo_ioi", n_bootstrap=200), planted.tempo().poles, CHOICE)
    for one in found:
        assert (one.p_random, one.n_random, one.n_shuffled, one.n_other, one.n_controls) == (0.05, 19, 0, 0, 19)
        assert (one.towards, one.testable, one.claimable) == (True, False, False)
    old = replace(planted.study(), response=sweep.effects(table, "tempo_ioi", n_bootstrap=0), choice=CHOICE)
    assert set(old.controls["kind"]) == {"random"}
    assert old.controls["cosine"].isna().all()
    assert "freely shuffled labels" in [text.get_text() for text in old.plot().legends[0].get_texts()]
