"""Commands on untrusted files: a bad file does not stop the others, errors take one line, names print safely."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from analysis import cli
from audiolens import prompts
from audiolens.characters import printable
from audiolens.errors import InputError
from audiolens.model.provenance import Provenance

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in its own folder; return the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["audiolens", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return called


def test_measure_goes_on_past_every_kind_of_bad_file(run: Run, tmp_path: Path) -> None:
    wave = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    for name in ("first.wav", "last.wav"):
        soundfile.write(tmp_path / name, wave, 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "first.wav").read_bytes()[:9000])
    soundfile.write(tmp_path / "short.wav", wave[:20], 16_000)
    soundfile.write(tmp_path / "broken.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    bad = ["text.wav", "cut.wav", "none.wav", "x" * 300, ".", "short.wav", "broken.wav"]
    code, out, err = run("measure", "first.wav", *bad, "last.wav", "--measures", "loudness")
    assert code == 2
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["first.wav", "last.wav"]
    assert len(err.splitlines()) == len(bad)
    assert all(name in line for name, line in zip(bad, err.splitlines(), strict=True))
    code, out, _ = run("measure", "first.wav", *bad, "last.wav", "--measures", "loudness", "--json")
    assert code == 2
    assert ["error" in row for row in json.loads(out)] == [False, False, *len(bad) * [True]]


ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_a_terminal_obeys_no_name(run: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a{ESCAPE}.wav", np.zeros(16_000), 16_000)
    lost = os.fsdecode(b"\xff\x9b31m.wav")
    code, out, err = run("measure", f"a{ESCAPE}.wav", lost, "--measures", "loudness")
    assert code == 2
    for text in (out, err):
        assert printable(text) == text
    assert r"a\x1b]0;owned\x07\x1b[2J.wav" in out
    assert r"\udcff\udc9b31m.wav: no such file" in err


def test_every_output_of_the_commands_is_printable() -> None:
    """All output goes through `say`, tables or JSON."""
    folder = Path(cli.__file__).parent
    lines = [
        f"{path.name}: {line.strip()}"
        for path in (folder / "cli.py", *(folder / "commands").glob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if "typer.echo(" in line or "print(" in line.replace("console.print(", "")
    ]
    assert lines == [
        "common.py: typer.echo(printable(text), err=err)",
        'common.py: typer.echo(json.dumps(json.loads(file.read_text("utf-8")), indent=2))',
    ]


@pytest.mark.parametrize("sign", ["\x00", "\x07", "\x1b", "\x7f", "\x9b", "\ud800"])
def test_labels_and_prompts_hold_no_control_characters(sign: str) -> None:
    good: dict[str, Any] = {"concept": "own", "poles": ("a", "b"), "positive": ["a tune"], "negative": ["a song"]}
    changes = {"concept": f"x{sign}y", "poles": (f"a{sign}z", "b"), "positive": [f"a{sign}tune"]}
    for name, value in changes.items():
        with pytest.raises(InputError, match=f"{name}.* which is not allowed in text"):
            prompts.PromptSet(**{**good, name: value})
    with pytest.raises(InputError, match="label contains"):
        Provenance(model="m", weights="0", n_layers=1, label=f"x{sign}y")


def test_letters_of_all_tongues_are_text() -> None:
    for text in ("une mélodie gaie", "速い曲", "нежная мелодия", "a 🎵 tune", "هادئ", "a\u200dtune"):
        made = prompts.PromptSet("own", ("a", "b"), (text,), ("other",))
        assert made.positive == (text,)
        assert printable(text) == text


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "blocks without end": (("sweep", "tempo", "-o", "x", "--layers", "0-99999999999999"), "--layers"),
    "digits without end": (("sweep", "tempo", "-o", "x", "--layers", "1" * 5000), "--layers"),
    "strengths without end": (("sweep", "tempo", "-o", "x", "--strengths", "0:1:999999"), "--strengths"),
    "a band of digits": (("generate", "a", "--steer", "d.safetensors:1", "--band", "1" * 5000 + "-2"), "--band"),
    "nested JSON": (("report", "nested"), "nested"),
    "half a character": (("report", "half"), "half"),
    "a way up": (("report", "up"), "'..' cannot name a folder"),
    "no name": (("report", "number"), "names no studies"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_that_names_argument_or_file(run: Run, tmp_path: Path, case: str) -> None:
    (tmp_path / "d.safetensors").write_bytes(b"")
    index = '{"format": "audiolens.studies.1", "concepts": %s}'
    texts = {"nested": "[" * 100_000, "half": index % r'["\ud800"]', "up": index % '[".."]', "number": index % "[3]"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
        (tmp_path / name / "study.json").write_text("{}")
    arguments, message = REFUSED[case]
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
