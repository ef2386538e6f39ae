"""The command line: its results, its one-line refusals with exit code 2, and help that appears at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from command_line import Run
from plants import tables as planted

import audiolens as al
from analysis.commands import common
from audiolens.files.integrity import sealed_json

BEGUN = {"format": "audiolens.run.2", "concept": "tempo", "model": "mine", "weights": "0", "versions": {}}


def test_help_comes_at_once() -> None:
    started = time.perf_counter()
    code = "import sys, analysis.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'librosa')))"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0, "the command line imports a heavy package before a command needs it"
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["generate", "a tune", "--model", "{model}", "--seconds", "1", "-o", "clips"],
            "cannot be written: File too large.",
        ),
        (["directions", "set.csv", "--model", "{model}", "--seconds", "0.5", "-o", "d.safetensors"], "large"),
    ],
)
def test_a_disk_that_fills_up_is_a_line_and_leaves_nothing(
    arguments: list[str], expected: str, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "set.csv").write_text("fast,slow\nfast song,slow song\n")
    words = [word.format(model=checkpoint) for word in arguments]
    # No file may grow past a kilobyte.
    code = (
        "import resource, sys; from analysis import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
        f"sys.argv = ['audiolens', *{words!r}]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("audiolens: ")
    assert expected in done.stderr.splitlines()[-1]
    assert [one.name for one in tmp_path.iterdir()] == ["set.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where nothing can be written (Linux)")
def test_output_that_cannot_be_written_is_a_line_and_a_closed_pipe_is_none() -> None:
    code = "import sys; from analysis import cli; sys.argv = ['audiolens', 'models', '--json']; cli.main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr

    read, written = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=written, stderr=subprocess.PIPE, text=True, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("study",),
        ("place",),
        ("probe",),
        ("patch",),
        ("generate",),
        ("directions",),
        ("models",),
        ("measure",),
        ("report",),
        ("sweep",),
    ],
)
def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage" in out


def test_the_version_is_said_without_a_command(run: Run) -> None:
    assert run("--version") == (0, f"audiolens {al.__version__}\n", "")


def test_generate_writes_the_same_clip_for_the_same_seed(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        code, out, err = run("generate", "a calm song", "-m", checkpoint, "--seconds", 1, "--seed", 3, "-o", name)
        assert code == 0, err
        assert out.strip().endswith(".wav")
    first, second = (next((tmp_path / name).glob("*.wav")).read_bytes() for name in ("a", "b"))
    assert first == second


def test_generate_steers_beside_a_baseline(run: Run, checkpoint: Path, file: Path, tmp_path: Path) -> None:
    arguments = ("-m", checkpoint, "--seconds", 1, "--steer", f"{file}:+40", "--baseline", "-o", "out", "--json")
    code, out, err = run("generate", "a calm song", *arguments)
    assert code == 0, err
    written = json.loads(out)
    assert [Path(path).parent.name for path in written] == ["baseline", "steered"]
    sounds = [soundfile.read(tmp_path / path)[0] for path in written]
    assert not np.array_equal(*sounds)


def test_a_strength_that_drowns_the_stream_is_said(run: Run, checkpoint: Path, file: Path) -> None:
    found = al.Directions.load(file)
    share = float((found.norms / found.residual_norms).max())
    arguments = ("generate", "a calm song", "-m", checkpoint, "--seconds", 1, "--steer")
    code, _, err = run(*arguments, f"{file}:{2.9 / share}", "-o", "usual")
    assert code == 0, err
    assert "the residual stream's norm" not in err
    code, _, err = run(*arguments, f"{file}:{1e4 / share}", "-o", "drowned")
    assert code == 0, err
    assert "1e+04 times the residual stream's norm at block" in err


def test_generate_steers_to_a_target(run: Run, checkpoint: Path, file: Path, tmp_path: Path) -> None:
    arguments = ("--steer", file, "--to", "brightness=2 kHz", "--max-clips", 2, "--seconds", 1, "-o", "out")
    code, out, err = run("generate", "a calm song", "a song", "-m", checkpoint, *arguments)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "out" / "strengths.csv")
    assert list(table.prompt) == ["a calm song", "a song"]
    assert "of 2 rows reached" in out
    assert len(list((tmp_path / "out" / "clips").glob("*.wav"))) == 2
    code, _, err = run("generate", "a song", "-m", checkpoint, "--steer", f"{file}:120 BPM", "-o", "other")
    assert code == 2
    assert "has no calibration" in err


def test_generate_steers_along_several_at_a_band(run: Run, checkpoint: Path, file: Path, tmp_path: Path) -> None:
    one = al.Directions.load(file)
    other = (one + one.random_like(1)).save(tmp_path / "other.safetensors")
    lens = al.AudioLens.from_pretrained(checkpoint)
    freed = al.orthogonalised(one, al.Directions.load(other))
    steps = [
        step
        for directions, strength in zip(freed, (40.0, -30.0), strict=True)
        for step in al.steer(directions, "one-to-band", layer=1, band=(1, 2), strength=strength)
    ]
    expected = lens.generate("a calm song", seconds=1, seeds=[0], interventions=steps).save(tmp_path / "expected")
    arguments = ("--steer", f"{file}:+40", "--steer", f"{other}:-30", "--orthogonal", "--band", "1-2", "--layer", 1)
    code, _, err = run("generate", "a calm song", "-m", checkpoint, "--seconds", 1, *arguments, "-o", "out")
    assert code == 0, err
    made, wanted = (next(Path(folder).glob("*.wav")).read_bytes() for folder in (tmp_path / "out", expected))
    assert made == wanted


@pytest.mark.parametrize("words", [("directions",), ("directions", "read")])
def test_directions_are_read_and_shown(run: Run, checkpoint: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    prompts = tmp_path / "mine.csv"
    prompts.write_text("fast,slow\nfast song,slow song\nfast piano,slow piano\n")
    code, _, err = run(*words, prompts, "-m", checkpoint, "-o", "mine.safetensors", "--seconds", 0.5)
    assert code == 0, err
    code, out, _ = run("directions", "show", "mine.safetensors", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["label"] == "mine"
    assert len(facts["layers"]) == 3
    code, out, _ = run("directions", "show", "mine.safetensors")
    assert code == 0
    assert "position mean, branch cond, guidance 3, from shared codes of 0.5 s" in out
    assert facts["weights"] in out
    assert len(facts["neutral"]) == 16


def test_directions_can_be_read_over_each_poles_own_clips(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("fast,slow\nfast song,slow song\nfast piano,slow piano\n")
    asked = ("directions", "mine.csv", "-m", checkpoint, "-o", "mine.safetensors", "--seconds", 0.5)
    code, out, err = run(*asked, "--codes", "own", "--json")
    assert code == 0, err
    assert (json.loads(out)["source"], json.loads(out)["neutral"]) == ("generation", "")
    code, _, err = run(*asked, "--codes", "both", "--force")
    assert code == 2
    assert "codes='both': expected 'own', 'shared'" in err


def test_heads_are_read_on_own_clips_and_steered_to_a_target(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    nouns = ("song", "piano", "guitar", "drums", "jazz", "music")
    (tmp_path / "mine.csv").write_text("\n".join(["fast,slow", *(f"fast {noun},slow {noun}" for noun in nouns)]))
    read = ("directions", "mine.csv", "-m", checkpoint, "-o", "mine.safetensors", "--seconds", 0.4, "--json", "--force")
    for site, source in (("cross_attn.z", "shared codes"), ("attn.z", "generation")):
        code, out, err = run(*read, "--site", site)
        assert code == 0, err
        assert json.loads(out)["source"] == source, site
    asked = ("generate", "a song", "-m", checkpoint, "--steer", "mine.safetensors", "--strategy", "heads", "--heads", 1,
             "--to", "brightness=2 kHz", "--max-clips", 2, "--seconds", 0.5)  # fmt: skip
    code, _, err = run(*asked, "-o", "out")
    assert (code, "--strategy heads needs --limits" in err) == (2, True), err
    code, out, err = run(*asked, "-o", "out", "--limits=-1,1")
    assert (code, "of 1 rows reached" in out) == (0, True), err


def test_directions_are_estimated_by_any_method(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    nouns = ("song", "piano", "guitar", "drums", "jazz", "music", "loud song", "soft song")
    lines = ["fast,slow", *(f"fast {noun},slow {noun}" for noun in nouns)]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    asked = ("directions", "mine.csv", "-m", checkpoint, "-o", "mine.safetensors", "--seconds", 0.4, "--force")
    for method, estimator in (("mean_centred", "mean-centred"), ("rfm", "rfm"), ("leace", "leace")):
        code, out, err = run(*asked, "--method", method, "--json")
        assert code == 0, err
        facts = json.loads(out)
        assert (facts["estimator"], facts["source"]) == (estimator, "shared codes")
    assert al.Directions.load("mine.safetensors").eraser is not None
    code, out, err = run(*asked, "--method", "by_measure", "--measure", "loudness")
    assert code == 0, err
    assert "options: measure loudness; fit quantile; clips 40; undefined 0; quantile 0.25" in out
    assert al.Directions.load("mine.safetensors").meta.seconds == 0.4


def test_models_says_what_works_offline(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert "etude" in out
    assert "facebook/musicgen-small" in out
    code, out, _ = run("models", "--json")
    assert {row["kind"] for row in json.loads(out)} >= {"bundled", "hub"}


def test_measure_tables_sound_files(run: Run, tmp_path: Path) -> None:
    seconds = np.arange(5 * 16_000) / 16_000
    clicks = np.sin(2 * np.pi * 880 * seconds) * np.exp(-30 * (seconds % 0.5))
    soundfile.write(tmp_path / "clicks.wav", clicks, 16_000)
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    code, out, err = run("measure", "clicks.wav", "silence.wav", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert rows[0]["tempo"] == pytest.approx(120, abs=2)
    assert rows[1]["tempo"] is None
    code, out, _ = run("measure", "clicks.wav")
    assert "tempo [BPM]" in out
    assert "loudness [dBFS]" in out
    code, out, _ = run("measure", "clicks.wav", "--measures", "loudness, pitch_class", "--seconds", "1:3", "--json")
    assert code == 0
    assert set(json.loads(out)[0]) == {"file", "seconds", "loudness", "pitch_class"}
    assert json.loads(out)[0]["seconds"] == 2


def test_measure_goes_on_where_files_are_bad_and_names_them(run: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000)), 16_000)
    soundfile.write(tmp_path / "six.wav", np.zeros((16_000, 6)), 16_000)
    (tmp_path / "empty.wav").touch()
    files = ("empty.wav", "a.wav", "none.wav", "six.wav")
    code, out, err = run("measure", *files, "--measures", "loudness")
    assert code == 2
    assert [line.split()[0] for line in out.splitlines()] == ["file", "a.wav"]
    reasons = ("empty.wav is empty", "none.wav: no such file", "six.wav has 6 channels")
    assert all(reason in line for reason, line in zip(reasons, err.splitlines(), strict=True))
    code, out, _ = run("measure", *files, "--measures", "loudness", "--json")
    assert code == 2
    assert [("loudness" in row, "error" in row) for row in json.loads(out)] == [(True, False), *[(False, True)] * 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "tempi"), "Did you mean 'tempo'"),
        (("study", "temp"), "Known: density, register, tempo, timbre; or"),
        (("study", "temp", "--measure", "pitch"), "Known: bells, density,"),
        (("study", "bells"), "'bells' has no measure"),
        (("study", "tempo", "--measure", "loudness"), "measure 'loudness': expected one whose change is a ratio"),
        (("study", "tempo", "-m", "etud"), "Did you mean 'etude'"),
        (("study", "tempo", "-m", "."), "contains no config.json"),
        (("study", "tempo", "-m", "facebook/musicgen-smal"), "works offline"),
        (("study", "tempo", "-m", "{checkpoint}", "--seconds", "nan"), "seconds=nan"),
        (("study", "tempo", "-m", "{checkpoint}", "--seconds", "500"), "expected 1 to"),
        (("study", "tempo", "-m", "{checkpoint}", "--seconds", "0.5"), "fewer than 4 onsets counts as failed"),
        (("study", "tempo", "--full", "--quick"), "--full and --quick exclude each other"),
        (("study", "tempo", "--quick", "--paper"), "--quick and --paper exclude each other"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "full"), "other than a study"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "full", "--force"), "other than a study"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "full/file/below"), "is a file"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "/proc/nothing/here"), "cannot be written"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "done"), "replace it with --force"),
        (("study", "tempo", "-m", "half"), "could not be loaded"),
        (("generate", "", "-m", "{checkpoint}"), "a prompt is empty: expected a text"),
        (("generate", "a song", " ", "-m", "{checkpoint}"), "a prompt is empty: expected a text"),
        (("generate", "song " * 500, "-m", "{checkpoint}"), "shorten it"),
        (("generate", "a song", "-m", "{checkpoint}", "--seconds", "0"), "seconds=0"),
        (("generate", "a song", "-m", "{checkpoint}", "--seconds", "nan"), "seconds=nan"),
        (("generate", "a song", "-m", "{checkpoint}", "-o", "full"), "exists and is not empty: choose another folder"),
        (("generate", "a song", "-m", "{checkpoint}", "-o", "done"), "exists and is not empty: choose another folder"),
        (("generate", "a song", "-m", "{checkpoint}", "--layer", "1"), "give one with --steer"),
        (("generate", "a song", "-m", "{checkpoint}", "--strategy", "one-to-one"), "give one with --steer"),
        (("generate", "a song", "-m", "{checkpoint}", "--branch", "cond"), "give one with --steer"),
        (("generate", "a song", "-m", "{checkpoint}", "--band", "0-1"), "give one with --steer"),
        (("generate", "a song", "-m", "{checkpoint}", "--orthogonal"), "give one with --steer"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:1", "--band", "4"), "expected FIRST-LAST"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:1", "--band", "1-9"), "layer 9 does not"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:3e38"), "overflowed in row 0, step 0"),
        (("directions", "tempo", "-m", "{checkpoint}", "--vocabulary", "french"), "Vocabularies: english, etude"),
        (("generate", "a song", "-m", "{checkpoint}", "--seed", "-1"), "seed -1"),
        (("generate", "a song", "-m", "{checkpoint}", "--guidance", "0.5"), "guidance_scale=0.5"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:nan"), "expected a finite number"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:much"), "is not a number"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}"), "expected FILE:STRENGTH"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "none.safetensors:1"), "no such file"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "full/file:1"), "not a complete safetensors file"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:1", "--layer", "9"), "layer 9 does not exist"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:1", "--strategy", "some"), "one-to-all"),
        (("generate", "a song", "-m", "{checkpoint}", "--steer", "{file}:1", "--branch", "nul"), "null"),
        (("directions", "tempi", "-m", "{checkpoint}"), "Did you mean 'tempo'"),
        (("directions", "none.csv", "-m", "{checkpoint}"), "none.csv"),
        (("directions", "tempo", "-m", "{checkpoint}", "--position", "eos"), "cross-attention"),
        (("directions", "tempo", "-m", "{checkpoint}", "-o", "full/file"), "replace it with --force"),
        (("directions", "tempo", "-m", "nowhere", "-o", "full"), "is a folder"),
        (("directions", "tempo", "-m", "nowhere", "-o", "full/file/below"), "is a file"),
        (("directions", "tempo", "-m", "nowhere", "-o", "/proc/here"), "cannot be written"),
        (("directions", "show", "full/file"), "not a complete safetensors file"),
        (("measure", "none.wav"), "no such file"),
        (("measure", "full/file"), "not a sound file"),
        (("measure", "full"), "give the sound files in it"),
        (("measure", "full/file", "--measures", "tempos"), "Did you mean 'tempo'"),
        (("measure", "full/file", "--seconds", "5"), "expected FROM:TO"),
        (("measure", "full/file", "--seconds", "5:1"), "0 <= from < to"),
        (("measure", "full/file", "--jobs", "0"), "--jobs 0"),
        (("study",), "name what to study"),
        (("study", "tempo", "--concepts", "tempo,timbre"), "name what to study"),
        (("study", "--concepts", "tempo"), "two or more different concepts"),
        (("study", "--concepts", "tempo,timbre", "--measure", "pitch"), "but each concept has its own measure"),
        (("study", "--concepts", "tempo,one.csv"), "study it separately"),
        (("study", "one.csv", "--measure", "pitch"), "one.csv: 'one' has 1 prompt for the pole 'fast'"),
        (("study", "one.csv"), "one.csv: 'one' has 1 prompt"),
        (("study", "--positive", "one.txt", "--negative", "two.txt"), "one.txt and two.txt: 'one-two' has 1 prompt"),
        (("study", "--concepts", "tempo,tempi"), "Did you mean 'tempo'"),
        (("study", "--positive", "full/file"), "go together"),
        (("study", "none.csv", "-m", "{checkpoint}", "--measure", "pitch"), "none.csv"),
        (("study", "tempo", "--words", "a,b", "-m", "{checkpoint}"), "applies only to your own prompts"),
        (("study", "one.csv", "--words", "fast,Fast"), "expected two different words"),
        (("study", "tempo", "--measure", "brightnes"), "Did you mean 'brightness'"),
        (("study", "timbre", "-m", "{checkpoint}", "--out", "begun"), "it is of 'tempo', not 'timbre'"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "begun"), "of another model ('mine'; this is"),
        (("study", "tempo", "-m", "{checkpoint}", "--out", "broken"), "is damaged"),
        (("stdy", "tempo"), "No such command 'stdy'"),
        (("study", "tempo", "--seconds", "abc"), "Invalid value for '--seconds'"),
        (("study", "tempo", "--ful"), "See audiolens study --help."),
        (("study", "tempo", "-m", "{checkpoint}", "--seed", "100"), "expected 0 to 99"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, checkpoint: Path, file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("years of work")
    (tmp_path / "one.csv").write_text("fast,slow\na fast song,a slow song\n")
    (tmp_path / "one.txt").write_text("a bright song\n")
    (tmp_path / "two.txt").write_text("a dark song\nmusic\n")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text(json.dumps({"format": "audiolens.study.1"}))
    for name, content in (("begun", sealed_json(BEGUN)), ("broken", sealed_json(BEGUN)[:40])):
        (tmp_path / name / "stages" / "scan-0").mkdir(parents=True)
        (tmp_path / name / "study.json").write_bytes(content)
        (tmp_path / name / ".lock").touch()
    half = tmp_path / "half"
    half.mkdir()
    for source in checkpoint.iterdir():
        content = source.read_bytes()
        (half / source.name).write_bytes(content[: len(content) // 2] if source.suffix == ".safetensors" else content)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    code, out, err = run(*(text.format(checkpoint=checkpoint, file=file) for text in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [(), ("directions",)])
def test_no_arguments_print_the_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, err = run(*command)
    assert (code, err) == (2, "")
    assert "Usage" in out


def test_stopping_is_said_and_told_by_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiolens.lens.AudioLens.from_pretrained", stopped)
    assert run("generate", "a song") == (130, "", "Stopped; nothing was written.\n")


def test_json_has_null_where_nothing_is_known() -> None:
    found = common.to_json({"norm": [float("nan"), 1.0], "rows": [{"auc": float("inf"), "file": Path("a")}]})
    assert json.loads(found) == {"norm": [None, 1.0], "rows": [{"auc": None, "file": "a"}]}


def test_a_bug_still_shows_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("audiolens.lens.AudioLens.generate", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("generate", "a song", "-m", checkpoint)


def test_study_writes_a_folder_and_says_the_finding(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A terminal that knows no colours and no width.
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1"), ("COLUMNS", "1"), ("LINES", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("analysis.study.experiment._run", lambda *_: planted.study())
    code, out, err = run("study", "tempo", "-m", checkpoint)
    assert code == 0, err
    assert f"{planted.study().finding}\n{planted.study().qualification}\n" in out
    assert "\x1b" not in out + err
    assert (tmp_path / "study-tempo" / "index.html").is_file()
    assert f"audiolens study tempo -m {checkpoint}" in (tmp_path / "study-tempo" / "index.html").read_text()
    code, out, _ = run("study", "tempo", "-m", checkpoint, "--force", "--json")
    assert code == 0
    assert json.loads(out)["concept"] == "tempo"


def test_a_stopped_study_says_what_is_kept(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.study.experiment._run", stopped)
    code, out, err = run("study", "tempo", "-m", checkpoint)
    assert (code, out) == (130, "")
    assert "finished stages are kept in study-tempo. Run the same command again to resume." in err
    assert (tmp_path / "study-tempo" / "study.json").is_file()
    monkeypatch.setattr("analysis.study.experiment._run", lambda *_: planted.study())
    assert run("study", "tempo", "-m", checkpoint)[0] == 0


def test_probe_gives_programs_every_place_and_baseline(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("-m", checkpoint, "--n", 12, "--seconds", 0.6, "--folds", 2, "--shuffles", 3)
    # The tiny checkpoint's own codec gives every sound the same codes: its activations do not vary.
    code, out, err = run("probe", "tempo", *arguments)
    assert code == 2
    assert "the same in every row" in err
    code, out, err = run("probe", "register", "-m", "etude", *arguments[2:], "--layers", "0,2-3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["place"] for row in found["rows"]] == ["block 0", "block 2", "block 3", "mel", "codec"]
    assert found["rows"][3]["layer"] is None
    assert "register" in found["finding"]


def test_probe_reads_own_sounds(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["file,kind"]
    for place in range(8):
        time_ = np.arange(9600) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * 220 * (1 + place) * time_)
        soundfile.write(tmp_path / f"{place}.wav", tone if place % 2 else 0.1 * rng.normal(size=9600), 16_000)
        lines.append(f"{place}.wav,{'noise' if place % 2 == 0 else 'tone'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    own = ("--audio", tmp_path, "--labels", tmp_path / "labels.csv", "--folds", 2, "--shuffles", 3)
    code, out, err = run("probe", "kind", *own, "--layers", 2, "-o", "out")
    assert code == 0, err
    assert "balanced accuracy" in out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"probe.csv", "probe.png", "probe.svg", "probe.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tempoo",), "Did you mean 'tempo'"),
        (("tempo", "--layers", "a"), "--layers=a: expected numbers"),
        (("tempo", "--audio", "."), "--audio and --labels go together"),
        (("mode", "--quantity"), "mode is not a quantity"),
        (("tempo", "--group", "artist"), "--group names a column"),
        (("tempo", "--n", 2), "each needs at least two clips"),
    ],
)
def test_probe_refuses_in_one_line(run: Run, checkpoint: Path, arguments: tuple, message: str) -> None:
    code, _, err = run("probe", *arguments, "-m", checkpoint)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
