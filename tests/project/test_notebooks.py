"""The notebooks run from top to bottom, their committed outputs are current, and the names in their text exist."""

import importlib.util
import os
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import typer
from conftest import WORDS, write_model
from parsing import parsed

import audiolens as al
from analysis import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
ANY_MODEL = FOLDER / "6_own_concept_and_checkpoints.ipynb"
LARGEST_BYTES = 1_500_000


def named(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """`notebooks/execute.py`, which `make notebooks` runs them with."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(**others: str) -> dict[str, str]:
    """This process's, offline, and with this copy of the packages in front of any other."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **others}


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook: Any) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def shown(cell: Any) -> list[list[str]]:
    """The kinds of what a cell shows; what libraries say on the side is left out."""
    return [sorted(output.data) for output in cell.outputs if output.output_type in ("execute_result", "display_data")]


def said(notebook: Any) -> str:
    """All plain text that cells show."""
    data = [output.data for cell in code(notebook) for output in cell.outputs if "data" in output]
    return "\n".join(one["text/plain"] for one in data if "text/plain" in one)


def worded(cell: Any) -> list[str]:
    """The plain text of what a cell shows, without its numbers (which differ between machines) and its spacing."""
    data = [output.data for output in cell.outputs if "data" in output]
    words = [re.sub(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?", "#", one.get("text/plain", "")) for one in data]
    return [" ".join(re.sub(r"0x[#a-f]+|-{3,}", "#", one).split()) for one in words]


def test_all_six_are_there(runner: ModuleType) -> None:
    assert [path.stem[0] for path in PATHS] == list("123456")
    assert runner.notebooks() == PATHS


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_what_is_committed_was_run_in_order_and_shows_something(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [kind for cell in cells for output in shown(cell) for kind in output]
    assert {"image/png", "text/html", "text/plain"} <= set(kinds)
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"execute_result", "display_data"}
    assert path.stat().st_size < LARGEST_BYTES


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_it_runs_from_top_to_bottom_and_shows_what_is_committed(path: Path, runner: ModuleType) -> None:
    committed, again = nbformat.read(path, as_version=4), runner.executed(path, environment(AUDIOLENS_CHECKPOINT=""))
    for before, after in zip(code(committed), code(again), strict=True):
        assert shown(after) == shown(before), after.source
        assert worded(after) == worded(before), after.source


def test_the_last_one_runs_on_any_checkpoint(tmp_path: Path, runner: ModuleType) -> None:
    """Random weights, and a tokenizer that knows what the notebook's prompts are made of."""
    sources = "\n".join(cell.source for cell in code(nbformat.read(ANY_MODEL, as_version=4)))
    bundled = [al.prompts.load(concept) for concept in ("tempo", "timbre")]
    prompts = " ".join(prompt for sets in bundled for prompt in (*sets.positive, *sets.negative))
    words = sorted({*WORDS, *re.findall(r"[a-z]+", f"{sources} {prompts}")})
    checkpoint = write_model(tmp_path / "checkpoint", words=words)
    told = said(runner.executed(ANY_MODEL, environment(AUDIOLENS_CHECKPOINT=str(checkpoint))))
    assert f"AudioLens('{checkpoint}': MusicGen, 3 blocks, d_model 48" in told


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_each_says_first_what_one_learns_and_how_long_it_takes(path: Path) -> None:
    opening = nbformat.read(path, as_version=4).cells[0]
    assert opening.cell_type == "markdown"
    assert opening.source.startswith(f"# {path.stem[0]}. ")
    assert "What you learn here" in opening.source
    assert re.search(r"It takes about .* on two CPU\s+cores", opening.source)


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_its_links_lead_somewhere_and_its_commands_exist(path: Path) -> None:
    prose = text(nbformat.read(path, as_version=4))
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / target).exists(), target
    for line in re.findall(r"^    audiolens (.*)$", prose, re.MULTILINE):
        parsed(typer.main.get_command(cli.app), shlex.split(line))


def test_a_cell_that_fails_is_not_passed_over(tmp_path: Path, runner: ModuleType) -> None:
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "broken.ipynb"
    cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("raise ValueError('no such block')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(CellExecutionError, match="no such block"):
        runner.executed(path)
