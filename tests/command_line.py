"""Run the command line in-process for tests, in an empty folder, and return what it printed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import audiolens as al
from analysis import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audiolens", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directions read from the tiny checkpoint."""
    lens = al.AudioLens.from_pretrained(checkpoint)
    found = al.difference_in_means(lens, ["fast song"], ["slow song"], seconds=0.5, label="tempo", progress=False)
    return found.save(tmp_path_factory.mktemp("directions") / "tempo.safetensors")
