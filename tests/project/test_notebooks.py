"""The notebooks run from top to bottom, their committed outputs are current, and the names in their text exist."""

import copy
import importlib.util
import os
import re
import shlex
import sys
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
from analysis.figures.offline import PLOTLY

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
    return module("execute")


@pytest.fixture(scope="module")
def opening() -> ModuleType:
    return module("opening")


def module(name: str) -> ModuleType:
    """A module of `notebooks/`, which is no package."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def environment(**others: str) -> dict[str, str]:
    """This process's, offline, without a GPU (none was there for what is stored), and with this copy of the packages in
    front of any other."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "", **others}  # fmt: skip


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


def test_all_seven_are_there(runner: ModuleType) -> None:
    assert [path.stem[0] for path in PATHS] == list("1234567")
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


def test_figures_have_a_picture_store_no_library_and_offer_no_upload() -> None:
    data = [
        output.data for path in PATHS for cell in code(nbformat.read(path, as_version=4)) for output in cell.outputs
    ]
    figures = [one for one in data if PLOTLY in one]
    assert len(figures) > 10
    for figure in figures:
        assert {*figure} == {PLOTLY, "image/png", "text/plain"}
        assert figure[PLOTLY]["config"]["showSendToCloud"] is False
    html = [one["text/html"] for one in data if "text/html" in one]
    assert not [text for text in html if re.search(r"plotly|cdn\b", text, re.IGNORECASE)]


def installs(path: Path) -> bool:
    """Whether a notebook has the cell that installs audiolens, which it gets when it is next run."""
    return any(cell.id == "install" for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", [path for path in PATHS if installs(path)], ids=named)
def test_it_begins_with_its_badges_and_the_cell_that_installs(path: Path, opening: ModuleType) -> None:
    committed = nbformat.read(path, as_version=4)
    again = copy.deepcopy(committed)
    opening.open_with(again, path.stem, opening.repository())
    assert again == committed, "run `python notebooks/opening.py`"
    opening.open_with(again, path.stem, "https://github.com/someone/place")
    badges = again.cells[0].source.split("\n\n")[1]
    notebook = f"notebooks/{path.name}"
    assert f"(https://colab.research.google.com/github/someone/place/blob/main/{notebook})" in badges
    assert f"(https://mybinder.org/v2/gh/someone/place/main?labpath={notebook.replace('/', '%2F')})" in badges
    assert "%pip install --quiet git+https://github.com/someone/place" in again.cells[1].source
    opening.open_with(again, path.stem, opening.repository())
    assert again == committed


def test_the_cell_that_installs_does_so_only_where_audiolens_is_missing(
    opening: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    asked: list[Any] = []
    shell = type("Shell", (), {"run_line_magic": lambda _, *words: asked.append(words)})()
    for address, source in ((None, ".."), ("https://github.com/a/b", "git+https://github.com/a/b")):
        cell = TransformerManager().transform_cell(opening.install(address))
        exec(cell, {"get_ipython": lambda: shell})
        assert not asked
        with monkeypatch.context() as context:
            context.setattr(importlib.util, "find_spec", lambda _: None)
            exec(cell, {"get_ipython": lambda: shell})
        assert asked == [("pip", f"install --quiet {source}")]
        asked.clear()


def test_binder_installs_what_the_notebooks_need() -> None:
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text("utf-8").splitlines()
    assert ".[notebooks]" in lines
    pins = next(line.removeprefix("--constraint ") for line in lines if line.startswith("--constraint "))
    assert (folder / pins).resolve() == ROOT / "constraints.txt"
    assert re.fullmatch(r"python-3\.1[123]\n", (folder / "runtime.txt").read_text("utf-8"))


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
