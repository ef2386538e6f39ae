"""`audiolens prompts`: the table of bundled sets, and sets made from captions, written whole or not at all."""

import csv
import json
from pathlib import Path

import pytest
from command_line import Run

from audiolens import prompts

CAPTIONS = 'caption,other\n"A fast song, with drums",x\nA slow air,x\nA medium song,=1\n=a fast formula,x\nnot fast,x\n'


def test_bundled_sets_are_listed_with_their_balance(run: Run) -> None:
    code, out, err = run("prompts", "list", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["concept"] for row in rows] == list(prompts.concepts("english"))
    balance = prompts.load("mood", "english").balance()
    row = next(row for row in rows if row["concept"] == "mood")
    assert row["words"] == f"{balance.words[0]:.1f}, {balance.words[1]:.1f}"
    assert (row["poles"], row["pairs"], row["neutral"]) == ("happy, sad", "100", "40 + 40")
    code, out, _ = run("prompts", "list", "--vocabulary", "etude")
    assert code == 0
    assert "bells" in out


def test_a_set_is_built_with_a_table_of_what_was_rejected(run: Run, tmp_path: Path) -> None:
    (tmp_path / "caps.csv").write_text(CAPTIONS)
    code, out, err = run("prompts", "build", "caps.csv", "--words", "fast/quick,slow", "-o", "tempo.toml")
    assert code == 0, err
    assert "3 pairs from 5 captions (2 fast, 1 slow)" in out
    assert "'slow' occurs in 100% of the negative prompts" in err
    with pytest.warns(UserWarning, match="occurs in 100%"):
        made = prompts.from_file(tmp_path / "tempo.toml")
    assert made.positive == ("A fast song, with drums", "A fast air", "=a fast formula")
    assert made.concept == "tempo"
    with open(tmp_path / "tempo.rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["line"], row["reason"], row["detail"]) for row in rows] == [
        ("4", "absent", ""), ("6", "negated", "not ... fast"),
    ]  # fmt: skip


def test_what_was_built_is_stated_as_json_and_replaced_only_if_asked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "caps.txt").write_text("two guitars\nan organ in a barn\nan organ with flutes\n")
    words = ("prompts", "build", "caps.txt", "--words", "guitar,organ", "--kind", "noun", "--avoid", "flutes",
             "--concept", "mine", "-o", "mine.json")  # fmt: skip
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["pairs"], told["sources"], told["rejected"]) == (2, {"guitar": 1, "organ": 1}, {"other concept": 1})
    assert (told["concept"], told["avoided"]) == ("mine", ["flutes"])
    code, _, err = run(*words)
    assert code == 2
    assert "mine.json exists" in err
    assert run(*words, "--force", "--pairs", 1)[0] == 0
    assert prompts.from_file(tmp_path / "mine.json").negative == ("two organs",)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("caps.csv", "--words", "fast,slow", "--column", "captoin"), "Did you mean 'caption'"),
        (("caps.csv", "--words", "fast,Fast"), "'fast' was given twice"),
        (("caps.csv", "--words", "fast"), "expected two words with a comma"),
        (("caps.csv", "--words", "fast,"), "expected two words with a comma"),
        (("caps.csv", "--words", "loud,soft"), "5 absent"),
        (("caps.csv", "--words", "fast,slow", "--avoid", "two words"), "expected the name of a bundled concept"),
        (("caps.csv", "--words", "fast,slow", "--pairs", "0"), "n_pairs=0"),
        (("empty.csv", "--words", "fast,slow"), "empty.csv is empty"),
        (("empty.txt", "--words", "fast,slow"), "there are no captions"),
        (("none.csv", "--words", "fast,slow"), "none.csv cannot be read"),
    ],
)
def test_what_cannot_be_built_is_a_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "caps.csv").write_text(CAPTIONS)
    for name in ("empty.csv", "empty.txt"):
        (tmp_path / name).write_text("")
    code, out, err = run("prompts", "build", *arguments, "-o", "made.toml")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert expected in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["caps.csv", "empty.csv", "empty.txt"]


def test_a_file_that_is_no_prompt_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "caps.csv").write_text(CAPTIONS)
    for name in ("made.txt", "."):
        code, _, err = run("prompts", "build", "caps.csv", "--words", "fast,slow", "-o", name)
        assert (code, err.count("\n")) == (2, 1)
        assert "expected the name of a .toml or .json file" in err
