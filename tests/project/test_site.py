"""The documentation site names every page and every public name, and its own check of links finds what is broken."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hostile.drive.names import classes, modules, public

ROOT = Path(__file__).parents[2]
UNLISTED = ("README.md", "CODE_OF_CONDUCT.md", "docs/index.md")
"""Pages for visitors of the repository, and the list itself."""


def part(name: str) -> ModuleType:
    """A module of `docs/site`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_front_page_lists_every_page_once() -> None:
    lists = part("contents").contents((ROOT / "docs" / "index.md").read_text("utf-8"))
    listed = [path for pages in lists.values() for _, path in pages]
    assert len(listed) == len({*listed})
    written = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    missing = {path.relative_to(ROOT).as_posix() for path in written} - {*listed, *UNLISTED}
    assert not missing, f"add a line to one of the lists in docs/index.md for {', '.join(sorted(missing))}"
    assert all((ROOT / path).is_file() for path in listed)


def test_every_public_name_has_an_entry_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    reference = part("reference")
    unlisted = {*modules()} - {*reference.PUBLIC}
    assert not unlisted, f"add {', '.join(sorted(unlisted))} to PUBLIC in docs/site/reference.py"
    returned = {path for path in classes() if path.rpartition(".")[0] not in modules()}
    assert returned == {*reference.RETURNED}, "RETURNED in docs/site/reference.py must name them all"
    entries = reference.Reference.read(ROOT).names()
    # Operators such as `+` need no words of their own.
    missing = {name.path for name in public() if not name.last.startswith("__")} - entries
    assert not missing, f"the reference has no entry for {', '.join(sorted(missing))}"


def test_broken_links_and_files_from_elsewhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.html").write_text('<h1 id="there">B</h1><a href="../a.html#top">back</a>')
    good = (
        '<h1 id="top">A</h1><a href="folder/b.html#there">b</a><a href="https://example.org">c</a><a href="#top">d</a>'
    )
    (tmp_path / "a.html").write_text(good + '<img src="data:image/png;base64,AA==">')
    assert part("links").problems(tmp_path) == []
    bad = '<a href="folder/b.html#gone">b</a><a href="c.html">c</a><script src="https://cdn.example/x.js"></script>'
    (tmp_path / "a.html").write_text(good + bad)
    assert part("links").problems(tmp_path) == [
        "a.html loads https://cdn.example/x.js: keep a copy, pages work without a network",
        "a.html: no anchor folder/b.html#gone",
        "a.html: no file c.html",
    ]


def test_the_readme_is_short_and_says_how_to_test_and_what_was_not_run() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 150
    assert "\nmake test " in text
    assert "not* yet been run on the published weights" in text
