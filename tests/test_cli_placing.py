"""`audiolens place` and `audiolens patch`: where a concept lives, without writing Python."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Run, run  # noqa: F401 (fixtures)


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
    assert "reads 'zupfig' and 'gestrichen' alike" in err
    assert max(abs(row["alignment"]) for row in json.loads(out)["rows"]) > 0
    code, _, err = run("place", "known.csv", *arguments)
    assert code == 0, err
    assert "alike" not in err
    code, _, err = run("study", "unknown.csv", "-m", checkpoint, "--measure", "pitch", "--seconds", 0.5)
    assert code == 2
    assert "Give words that it knows (--words" in err
    assert not (tmp_path / "study-unknown").exists()


@pytest.mark.parametrize("command", ["place", "patch", "directions", "sweep"])
def test_what_gives_the_poles_away_is_one_line(run: Run, checkpoint: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "mine.csv").write_text("loud,soft\na loud song,a soft song\nloud drums,soft drums\n")
    options = {
        "place": ("--prompts", 0), "patch": ("--by", "hour"), "directions": ("--position", "eos"),
        "sweep": ("--prompts", 0, "-o", "out"),
    }  # fmt: skip
    code, _, err = run(command, "mine.csv", "-m", checkpoint, *options[command])
    lines = err.strip().splitlines()
    assert code == 2
    told = "audiolens: mine.csv: {!r} stands in 100% of the {} prompts and in no other"
    assert lines[0].startswith(told.format("loud", "positive"))
    assert lines[1].startswith(told.format("soft", "negative"))
    assert len(lines) == 3


def test_patch_tells_the_gap_and_the_grid(run: Run, checkpoint: Path) -> None:
    arguments = ("-m", checkpoint, "--pairs", 4, "--seconds", 0.4)
    code, out, err = run("patch", "tempo", *arguments, "--by", "head")
    assert code == 0, err
    assert "nats" in out
    assert "head" in out
    code, out, err = run("patch", "tempo", *arguments, "--by", "component", "--json")
    assert code == 0, err
    assert {row["component"] for row in json.loads(out)["rows"]} >= {"attn_out", "mlp_out"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("place", "tempoo"), "Did you mean 'tempo'"),
        (("place", "tempo", "--prompts", 0), "--prompts=0"),
        (("place", "tempo", "--prompts", 1000), "--prompts=1000"),
        (("place", "none.csv"), "none.csv"),
        (("place", "tempo", "--by", "loudest"), "by='loudest'"),
        (("place", "tempo", "--strategies", "one-to-some"), "is not placed"),
        (("patch", "tempo", "--pairs", 1), "--pairs=1"),
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
