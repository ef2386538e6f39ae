"""`audiolens cite` prints BibTeX for audiolens, and for what a result used."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

from pathlib import Path

from command_line import Run

from analysis.commands import cite
from audiolens.directions.estimators import _METHODS


def test_every_source_has_an_entry_and_every_estimator_a_name() -> None:
    keys = [*cite._ALWAYS, *cite._OF_ESTIMATOR.values(), *cite._OF_HEADS]
    for key, entry in zip(dict.fromkeys(keys), cite.entries(keys), strict=True):
        assert entry.startswith("@")
        assert key in entry.splitlines()[0]
        assert entry.count("{") == entry.count("}")
    assert set(cite._OF_ESTIMATOR) | {"by measure"} == {one.name for one in _METHODS.values()}


def test_the_methods_of_a_file_are_added(run: Run, file: Path, tmp_path: Path) -> None:
    code, plain, _ = run("cite")
    assert code == 0
    assert [line for line in plain.splitlines() if line.startswith("@software")] == ["@software{audiolens,"]
    code, found, _ = run("cite", file)
    assert code == 0
    assert set(found.split("\n\n")) > set(plain.strip().split("\n\n")[:-1])
    assert "marks2023" in found
    code, out, error = run("cite", tmp_path / "none.safetensors")
    assert (code, out) == (2, "")
    assert "no such file" in error
