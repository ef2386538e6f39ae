"""`audiolens sweep` runs, resumes after a stop, and refuses bad input in one line."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

import json
import shlex
from pathlib import Path

import pytest
from command_line import Run

from analysis import sweep
from analysis.commands import early
from analysis.commands import sweep as command
from analysis.harvest import planned, shards
from analysis.sweep import batches

SMALL = (
    "--seconds", 0.4, "--prompts", 2, "--seeds", 1, "--controls", 1, "--jobs", 0, "--strengths=-4,4", "--layers", "1",
)  # fmt: skip


def test_it_sweeps_says_the_finding_and_knows_what_it_did(
    run: Run,
    checkpoint: Path,
    file: Path,
    tmp_path: Path,
) -> None:
    words = ("sweep", file, "-m", checkpoint, "-o", "out", *SMALL)
    code, out, err = run(*words, "--plan")
    assert code == 0, err
    assert "16 clips of 0.4 s" in err
    assert not (tmp_path / "out").exists()
    code, out, err = run(*words)
    assert code == 0, err
    assert "DoseResponse(tempo on tempo_ioi, one-to-one 1" in out
    assert "out/clips.parquet" in out
    code, out, err = run(*words, "--json")
    assert code == 0, err
    assert "16 of them are already finished" in err
    facts = json.loads(out)
    assert facts["clips"] == 16
    assert [row["strength"] for row in facts["effects"]["tempo"] if row["kind"] == "steered"] == [-4, 4]
    assert len(sweep.load_folder(tmp_path / "out").table) == 16
    code, out, err = run(*words, "--seconds", 0.5)
    assert (code, out.strip()) == (2, "")
    assert "contains another sweep" in err
    # Not told first what of the other one is there.
    assert err.count("\n") == 1


def test_ones_own_concept_is_swept_as_the_notebook_says(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "my-prompts.csv").write_text("loud,soft\na loud song,a soft song\nloud drums,soft piano\nmusic,jazz\n")
    notebook = Path(__file__).parents[2] / "notebooks" / "6_own_concept_and_checkpoints.ipynb"
    last = "".join(json.loads(notebook.read_text("utf-8"))["cells"][-1]["source"])
    commands = [shlex.split(line)[1:] for line in last.splitlines() if line.startswith("    audiolens ")]
    assert [words[0] for words in commands] == ["directions", "sweep"]
    for words in commands:
        words[words.index("--model") + 1] = str(checkpoint)
    code, _, err = run(*commands[0], "--seconds", 0.4)
    assert code == 0, err
    code, out, err = run(*commands[1], *SMALL, "--plan", "--json")
    assert code == 0, err
    # Unsteered, drawn again, two steered and two controls; nothing is known to ask in words.
    assert json.loads(out)["conditions"] == 6
    assert "for both, give the file of prompts" in err
    # The file of prompts has the poles' words too.
    code, out, err = run("sweep", "my-prompts.csv", "-m", checkpoint, "-o", "mine-sweep", *SMALL, "--plan", "--json")
    assert code == 0, err
    assert json.loads(out)["conditions"] == 8
    code, out, err = run(
        "sweep", "my-prompts.csv", "-m", checkpoint, "-o", "mine-sweep", *SMALL, "--measure", "brightness"
    )
    assert code == 0, err
    assert "DoseResponse(my-prompts on brightness" in out
    asked = set(sweep.load_folder(tmp_path / "mine-sweep").table.query("pole == 'loud'")["asked"])
    assert all("loud" in prompt for prompt in asked)


def test_stopping_keeps_what_is_finished_and_says_how_to_go_on(
    run: Run,
    checkpoint: Path,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("sweep", file, "-m", checkpoint, "-o", "out", "--batch", 4, *SMALL)
    keep = batches.Batches.keep

    def stopped(self: batches.Batches, batch: int, *content: object) -> None:
        if batch == 2:
            raise KeyboardInterrupt
        keep(self, batch, *content)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(batches.Batches, "keep", stopped)
        code, _, err = run(*words)
    assert code == 130
    assert "Stopped; 2 of 5 batches are kept in out. Run the same command again to resume." in err
    kept = len(sweep.load_folder(tmp_path / "out").table)
    code, _, err = run(*words)
    assert code == 0, err
    assert f"{kept} of them are already finished" in err
    assert sweep.load_folder(tmp_path / "out").whole


def test_stopping_a_harvest_keeps_its_shards_and_says_how_to_go_on(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "SHARD_BATCHES", 1)
    Path("prompts.txt").write_text("fast song\nslow song\ncalm piano\n")
    words = ("harvest", "prompts.txt", "-m", checkpoint, "-o", "out", "--seconds", 0.4, "--batch-size", 1)
    keep = shards.Shards.keep

    def stopped(self: shards.Shards, number: int, *content: object) -> None:
        if number == 2:
            raise KeyboardInterrupt
        keep(self, number, *content)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "keep", stopped)
        code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert err.endswith("Stopped; 2 of 3 shards are kept in out. Run the same command again to resume.\n")
    code, out, err = run(*words)
    assert (code, out[:14]) == (0, "out: Harvest(3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tempi",), "Did you mean 'tempo'"),
        (("none.safetensors",), "no such file"),
        (("none.csv",), "none.csv"),
        (("{file}", "--measure", "brightnes"), "Did you mean 'brightness'"),
        (("{file}", "--strengths", "much"), "expected FROM:TO:COUNT"),
        (("{file}", "--strengths", "2:1:3"), "expected FROM below TO"),
        (("{file}", "--strengths", "0"), "other than 0, the baseline"),
        (("{file}", "--layers", "some"), "expected all, or blocks such as"),
        (("{file}", "--layers", "2-1"), "at least one block"),
        (("{file}", "--layers", "9"), "layer 9 does not exist"),
        (("{file}", "--strategy", "one-to-one,one-to-some"), "one-to-some"),
        (("{file}", "--strategy", "one-to-band", "--band", "4"), "expected FIRST-LAST"),
        (("{file}", "--branch", "neither"), "branch='neither'"),
        (("{file}", "--split", "train"), "expected 'development', 'test'"),
        (("{file}", "--prompts", "0"), "there are 40 neutral development prompts"),
        (("{file}", "--seconds", "nan"), "seconds=nan"),
        (("{file}", "--sound", "mp3"), "expected 'wav' or 'flac'"),
        (("{file}", "--shuffled", "1"), "keep_samples=True"),
        (("{file}", "{file}"), "with its own label"),
        (("{file}", "-m", "etud"), "Did you mean 'etude'"),
        (("{file}", "-o", "full"), "something other than a sweep"),
        (("{file}", "-o", "full/file"), "is a file"),
        (("{file}", "-o", "/proc/nothing/here"), "cannot be written"),
        ((), "name what to sweep"),
        (("{file}", "--lairs", "1"), "See audiolens sweep --help."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run,
    checkpoint: Path,
    file: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("years of work")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    given = [text.format(file=file) for text in arguments]
    for option, value in (("-m", checkpoint), ("-o", "out")):
        given += [] if option in given else [option, value]
    code, out, err = run("sweep", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_help_teaches(run: Run) -> None:
    code, out, _ = run("sweep", "--help")
    assert code == 0
    assert "repeating the command resumes it and gives the same table" in " ".join(out.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("-2:2:5", [-2, -1, 0, 1, 2]), ("0.1", [0.1]), (" -1, 0.5 ", [-1, 0.5]), ("-0.3:0.3:3", [-0.3, 0, 0.3])],
)
def test_strengths_are_a_range_or_a_list(text: str, expected: list[float]) -> None:
    assert early.strengths("--strengths", text) == expected


def test_blocks_are_a_list_of_numbers_and_ranges() -> None:
    assert command._blocks("all") is None
    assert command._blocks("2,4, 6-8") == [2, 4, 6, 7, 8]
