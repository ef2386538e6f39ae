"""`audiolens place` and `audiolens patch` locate a concept without any Python."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run

import audiolens as al
from audiolens.errors import InputError


def test_place_names_a_place_and_writes_why(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("-m", checkpoint, "--prompts", 2, "--seconds", 0.5)
    code, out, err = run("place", "tempo", *arguments, "-o", "placed")
    assert code == 0, err
    assert "tempo: one-to-" in out
    assert "alignment" in out
    assert {path.name for path in (tmp_path / "placed").iterdir()} == {
        f"placement.{ending}" for ending in ("csv", "png", "svg", "html")
    }
    code, out, err = run("place", "tempo", *arguments, "--strategies", "one-to-all", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {row["strategy"] for row in rows} == {"one-to-all"}
    assert sum(row["chosen"] for row in rows) == 1


def test_place_takes_a_file_of_ones_own_prompts(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("loud,soft\na loud song,a soft song\nloud drums,soft drums\nmusic,jazz\n")
    code, out, err = run("place", "mine.csv", "-m", checkpoint, "--prompts", 2, "--seconds", 0.5)
    assert code == 0, err
    assert "mine: one-to-" in out


def test_poles_whose_names_the_model_does_not_know_are_compared_by_their_prompts(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for name, poles in (("known", "loud,soft"), ("unknown", "zupfig,gestrichen")):
        lines = (poles, "a loud song,a soft song", "loud drums,soft drums", "music,jazz")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    arguments = ("-m", checkpoint, "--prompts", 2, "--seconds", 0.5, "--json")
    code, out, err = run("place", "unknown.csv", *arguments)
    assert code == 0, err
    assert "does not know 'zupfig' or 'gestrichen'" in err
    assert max(abs(row["alignment"]) for row in json.loads(out)["rows"]) > 0
    code, _, err = run("place", "known.csv", *arguments)
    assert code == 0, err
    assert "alike" not in err
    code, _, err = run("study", "unknown.csv", "-m", checkpoint, "--measure", "pitch", "--seconds", 1)
    assert code == 2
    assert "give words that it knows (--words" in err
    assert not (tmp_path / "study-unknown").exists()


@pytest.mark.parametrize("command", ["place", "patch", "directions", "sweep"])
def test_what_gives_the_poles_away_is_one_line(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "mine.csv").write_text("loud,soft\na loud song,a soft song\nloud drums,soft drums\n")

    def stopped(*_: object, **__: object) -> None:
        raise InputError("the first clip was asked for.")

    monkeypatch.setattr(al.AudioLens, "generate", stopped)
    options = ("--seconds", 0.4, *(("-o", "out") if command == "sweep" else ()))
    code, _, err = run(command, "mine.csv", "-m", checkpoint, *options)
    lines = err.strip().splitlines()
    assert code == 2
    told = "audiolens: mine.csv: {!r} occurs in 100% of the {} prompts and in no others"
    assert lines[0].startswith(told.format("loud", "positive"))
    assert lines[1].startswith(told.format("soft", "negative"))
    assert len(lines) == 3


def test_patch_tells_the_gap_and_the_grid(run: Run, checkpoint: Path) -> None:
    arguments = ("-m", checkpoint, "--pairs", 4, "--seconds", 0.4)
    code, out, err = run("patch", "tempo", *arguments, "--by", "head")
    assert code == 0, err
    assert "SoundPlan" not in err
    assert "nats" in out
    assert "head" in out
    assert "fewer than 64 pairs" in out
    code, out, err = run("patch", "tempo", *arguments, "--by", "component", "--no-sound", "--json")
    assert code == 0, err
    assert {row["component"] for row in json.loads(out)["rows"]} >= {"attn_out", "mlp_out"}
    assert json.loads(out)["sound"] is None
    assert "Plan(12 cells x 4 pairs" in err


def test_patch_is_heard_by_the_concepts_measure(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.commands.patch._HEARD_SECONDS", 0.4)
    arguments = ("patch", "timbre", "-m", checkpoint, "--pairs", 3, "--seconds", 0.4)
    code, out, err = run(*arguments, "--json", "-o", "heard")
    assert code == 0, err
    heard = json.loads(out)["sound"]
    assert {row["codebook"] for row in heard["rows"]} == {"brightness"}
    assert {row["seconds"] for row in heard["rows"]} == {"0.00-0.40"}
    assert "SoundPlan(3 cells x 3 pairs" in err
    assert (tmp_path / "heard" / "by-ear.csv").exists()
    code, out, err = run(*arguments, "--sound", "loudness")
    assert code == 0, err
    assert "dBFS" in out


def test_a_file_of_prompts_is_heard_where_it_names_a_measure(tmp_path: Path) -> None:
    from analysis.commands.patch import _ear

    assert _ear("tempo.csv", "head", None, 64, 0) is None
    assert _ear("mine", "head", None, 64, 0) is None
    assert _ear("tempo", "token", None, 64, 0) is None
    assert _ear("tempo", "head", None, 64, 0) is None
    by_head = _ear("tempo", "head", "tempo_ioi", 64, 0)
    assert by_head is not None
    assert by_head.measure == "tempo_ioi"
    by_block = _ear("tempo", "component", None, 64, 0)
    assert by_block is not None
    assert by_block.measure == "tempo_ioi"
    named = _ear("mine.csv", "token", "loudness", 64, 5)
    assert named is not None
    assert (named.measure, named.pairs, named.first_seed) == ("loudness", 8, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "hour"), "by='hour'"),
        (("--mode", "noise"), "mode='noise'"),
        (("--site", "resid_pots"), "resid_post"),
        (("--site", "resid_post", "--by", "token"), "has no token axis"),
        (("--site", "cross_attn.k"), "use by='token'"),
        (("--seconds", 0.12), "windows=8: there are 6 steps"),
        (("--sound", "tempoo"), "--sound='tempoo': no such measure. Did you mean 'tempo'"),
        (("--sound", "tempo", "--no-sound"), "both given"),
    ],
)
def test_patch_refuses_before_a_pair_is_played(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, message: str
) -> None:
    monkeypatch.setattr("audiolens.lens.AudioLens.generate", lambda *_, **__: pytest.fail("a pair was played"))
    code, _, err = run("patch", "tempo", "-m", checkpoint, *arguments)
    assert code == 2
    assert message in err


def test_sites_on_the_texts_side_take_pairs_of_one_length(run: Run, checkpoint: Path) -> None:
    """Of the set's matched prompts some differ in length: playing them first to refuse them after helped nobody."""
    arguments = ("-m", checkpoint, "--pairs", 3, "--seconds", 0.4, "--no-sound", "--json")
    code, out, err = run("patch", "tempo", *arguments, "--site", "cross_attn.v", "--by", "head")
    assert code == 0, err
    assert len(json.loads(out)["rows"]) == 5 * 3 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("place", "tempoo"), "Did you mean 'tempo'"),
        (("place", "tempo", "--prompts", 0), "--prompts=0"),
        (("place", "tempo", "--prompts", 1000), "--prompts=1000"),
        (("place", "none.csv"), "none.csv"),
        (("place", "tempo", "--by", "loudest"), "by='loudest'"),
        (("place", "tempo", "--strategies", "one-to-some"), "expected 'one-to-one', 'one-to-all', 'all-to-all'"),
        (("patch", "tempo", "--pairs", 1), "--pairs=1"),
        (("patch", "tempo", "--seed", -1), "--seed=-1"),
        (("patch", "tempo", "--by", "hour"), "hour"),
        (("patch", "tempo", "--site", "resid_pots"), "resid_post"),
        (("patch", "tempo", "--pairs", 2, "--mode", "noise"), "denoising"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run: Run, checkpoint: Path, arguments: tuple, message: str) -> None:
    code, _, err = run(*arguments, "-m", checkpoint)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1, err
