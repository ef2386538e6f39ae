"""A stored result depends on the code that can run to make it, and not on what only describes or draws it."""

import shutil
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

import analysis
import audiolens
from analysis import placement, sweep
from analysis.store.code import Sources, code_of, home_of
from analysis.study import side_effects, where
from audiolens import AudioLens, difference_in_means

ROOTS = [Path(str(package.__file__)).parent for package in (audiolens, analysis)]

PROJECT = {
    "__init__": "from toy.deep import far as far\nfrom toy.other import unasked as unasked\n",
    "run": (
        '"""Run it."""\n\nfrom toy.near import middle\n\n\n'
        'def make(x):\n    """Make it."""\n    return middle(x)  # now\n'
    ),
    "near": "def middle(x):\n    import toy\n    return toy.far(x)\n",
    "deep": "from toy.deeper import LIMIT\nLIMITS = [LIMIT]\n'''What is allowed.'''\n\n\ndef far(x):\n    return x\n",
    "deeper": "LIMIT = 1\n",
    "other": "def unasked():\n    return 2\n",
    "result": (
        "from typing import TYPE_CHECKING\n"
        "from toy.drawing import drawable, plotted\n"
        "if TYPE_CHECKING:\n    from toy.model import Model\n"
        "class Result:\n    @drawable\n    def plot(self):\n        return plotted(self)\n"
        "    def again(self, model: 'Model'):\n        return model.run()\n"
    ),
    "drawing": "def drawable(f):\n    return f\n\n\ndef plotted(x):\n    return x\n",
    "model": "class Model:\n    def run(self):\n        return 1\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package in which `run` reaches `deeper` through three imports."""
    for name, source in PROJECT.items():
        path = tmp_path / "toy" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return tmp_path / "toy"


def of(toy: Path, start: str = "toy.run") -> Any:
    return Sources.under(toy).code_of(start)


def test_imports_are_followed_into_functions_and_through_what_packages_export(toy: Path) -> None:
    assert of(toy).modules == ("toy.deep", "toy.deeper", "toy.near", "toy.run")
    assert of(toy, "toy.result").modules == ("toy.model", "toy.result")


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("run", "Make it.", "Makes it, as ever.", False),
        ("run", "  # now", "", False),
        ("run", "(x)", "( x )", False),
        ("deep", "What is allowed.", "Limits.", False),
        ("other", "2", "3", False),
        ("__init__", "unasked as", "unasked as ", False),
        ("deeper", "1", "2", True),
        ("deeper", "1", "1.0", True),
        ("deeper", "1", "True", True),
        ("deeper", "1", "0", True),
        ("deeper", "1", "None", True),
        ("near", "toy.far(x)", "toy.far(-x)", True),
        ("near", "toy.far(x)", "toy.unasked()", True),
        ("deep", "[LIMIT]", "[LIMIT, LIMIT]", True),
        ("deep", "[LIMIT]", "(LIMIT,)", True),
    ],
)
def test_only_a_change_of_what_runs_changes_the_hash(toy: Path, file: str, old: str, new: str, changes: bool) -> None:
    before, path = of(toy), toy / f"{file}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (of(toy).digest != before.digest) == changes


def test_what_only_draws_is_left_out_and_what_an_annotation_names_is_not(toy: Path) -> None:
    before = of(toy, "toy.result")
    path = toy / "result.py"
    path.write_text(path.read_text().replace("return plotted(self)", "return plotted(self, 7)"))
    (toy / "drawing.py").write_text("colours = 3\n")
    assert of(toy, "toy.result") == before
    (toy / "model.py").write_text(PROJECT["model"].replace("return 1", "return 2"))
    assert of(toy, "toy.result").digest != before.digest


def test_the_same_name_imported_from_elsewhere_is_other_code(toy: Path) -> None:
    path = toy / "run.py"
    path.write_text("from toy.deep import far as f\nfrom toy.near import middle as g\nmake = f, g\n")
    before = of(toy)
    path.write_text("from toy.near import middle as f\nfrom toy.deep import far as g\nmake = f, g\n")
    assert of(toy).modules == before.modules
    assert of(toy).digest != before.digest


def test_the_module_of_a_function_class_or_value() -> None:
    @wraps(sweep.play)
    def wrapped() -> None: ...

    assert home_of(wrapped) == home_of(partial(partial(sweep.play), progress="x")) == "analysis.sweep.experiment"
    assert home_of(lambda: 0) == home_of(test_the_module_of_a_function_class_or_value) == __name__
    assert home_of(AudioLens) == "audiolens.lens"
    assert home_of(Sources({})) == "analysis.store.code"
    assert home_of(3) == "builtins"
    assert __name__ in code_of(lambda: placement.place).modules


# The project's own code

MAKES: dict[str, Callable[..., Any]] = {
    "directions": difference_in_means, "patching": where.find, "placement": placement.place, "sweep": sweep.play,
    "lost": side_effects.score,
}  # fmt: skip
EVERY, NONE = set(MAKES), set[str]()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source."""
    place = tmp_path_factory.mktemp("source")
    for root in ROOTS:
        for path in root.rglob("*.py"):
            target = place / path.relative_to(root.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return place


def digests(place: Path) -> dict[str, str]:
    sources = Sources.under(place / "audiolens", place / "analysis")
    return {name: sources.code_of(home_of(make)).digest for name, make in MAKES.items()}


@pytest.fixture(scope="module")
def before(copied: Path) -> dict[str, str]:
    return digests(copied)


def changed(copied: Path, before: dict[str, str], file: str, change: Callable[[str], str]) -> set[str]:
    """The stages that are no longer kept after a change of a file, which is then undone."""
    path = copied / file
    source = path.read_text("utf-8")
    assert change(source) != source
    path.write_text(change(source), "utf-8")
    try:
        return {name for name, digest in digests(copied).items() if digest != before[name]}
    finally:
        path.write_text(source, "utf-8")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("analysis/figures/style.py", NONE),
        ("analysis/figures/canvas.py", NONE),
        ("analysis/patching/figures.py", NONE),
        ("analysis/sweep/plots.py", NONE),
        ("analysis/report/writer.py", NONE),
        ("analysis/attention/lags.py", NONE),
        ("analysis/commands/study.py", NONE),
        ("analysis/study/pipeline.py", NONE),
        ("analysis/study/result.py", NONE),
        ("audiolens/__init__.py", NONE),
        ("audiolens/tracing/sampling.py", EVERY),
        ("audiolens/model/families/melody.py", EVERY),
        ("audiolens/files/bounded.py", EVERY),
        ("audiolens/measure/timbre.py", EVERY),
        ("audiolens/directions/difference_in_means.py", {"directions", "placement"}),
        ("analysis/patching/engine.py", {"patching", "placement"}),
        ("analysis/listening.py", {"sweep"}),
        ("analysis/workers.py", {"sweep"}),
        ("analysis/heard.py", {"sweep"}),
        ("analysis/study/side_effects.py", {"lost"}),
    ],
)
def test_a_change_of_the_project_reaches_the_stages_that_run_it(
    copied: Path, before: dict[str, str], file: str, expected: set[str]
) -> None:
    assert changed(copied, before, file, lambda source: f"{source}\n_MORE = 1\n") == expected
    assert changed(copied, before, file, lambda source: f'{source}# more\n"""More about it."""\n') == NONE


def test_a_figure_of_a_result_is_no_part_of_what_a_stage_runs(copied: Path, before: dict[str, str]) -> None:
    drawn = "from analysis.sweep import plots"
    more = changed(copied, before, "analysis/sweep/dose.py", lambda one: one.replace(drawn, f"{drawn}, screen"))
    assert more == NONE
    assert changed(copied, before, "analysis/sweep/dose.py", lambda one: one.replace("def to_frame", "def frame"))


def test_modules_are_imported_under_computed_names_only_where_nothing_depends_on_it() -> None:
    """Such imports are not followed. These packages are lazy, and state their names for type checkers too."""
    paths = [path for root in ROOTS for path in root.rglob("*.py") if "import_module(" in path.read_text("utf-8")]
    names = {str(path.relative_to(ROOTS[0].parent)) for path in paths}
    assert names == {"audiolens/__init__.py", "audiolens/kinds.py", "audiolens/measure/__init__.py",
                     "analysis/__init__.py", "analysis/store/on_first_use.py"}  # fmt: skip
