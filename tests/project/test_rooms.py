"""Imports between packages follow one order, and no two modules import each other."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = (
    "errors", "arrays", "ranking", "checks", "kinds", "door", "groups", "characters", "tensors", "vectors", "files",
    "model", "gates", "interventions", "cache", "sound", "tracing", "compatibility", "lens", "measure", "prompts",
    "directions", "control", "etude",
)  # fmt: skip
"""Of `audiolens`, in reading order: a room imports from itself and from those before it."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("audiolens", "analysis")
    for path in (ROOT / package).rglob("*.py")
}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules of the project that a file imports when it runs, and whether it does so inside a function."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield whole if whole in MODULES else child.module, inside
            elif isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.Lambda))

    yield from ((name, inside) for name, inside in visit(ast.parse(path.read_text("utf-8")), False) if name in MODULES)


def room_of(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def test_every_module_stands_in_a_room() -> None:
    rooms = {module.split(".")[1] for module in MODULES if module.startswith("audiolens.")}
    assert rooms == set(ROOMS)


def test_imports_run_down_the_rooms_also_those_inside_functions() -> None:
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module.startswith("audiolens.")
        for other, _ in imported(path)
        if other.startswith("analysis") or (other != "audiolens" and room_of(other) > room_of(module))
    ]
    assert not upward


def test_no_modules_need_each_other_but_a_result_its_figures() -> None:
    """A result draws itself by importing its figures inside `.plot()` and `.figure()`: they may know it. In the same
    way, directions calibrate themselves, and a study uploads itself."""
    drawing = ("calibrating", "figures", "plots", "screen", "spectrograms", "crossing", "words", "hub")
    graph = {
        module: {
            other
            for other, inside in imported(path)
            if other != module and not (inside and other.rpartition(".")[2] in drawing)
        }
        for module, path in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())
