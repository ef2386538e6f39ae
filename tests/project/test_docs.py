"""The documentation works: its Python runs, its commands parse, and its links resolve.

The code blocks of a page run in order, in one namespace and an empty folder, on étude. Only sizes are reduced: fewer
prompts, clips, seconds and draws. A block whose first line is

    # needs the hub, # needs a GPU   runs on a checkpoint of the same family with random weights, on the CPU;
    # takes ...                      is too long to run here: it must compile, and its imports must exist.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from conftest import WORDS, write_model
from parsing import parsed

import audiolens as al
from analysis import attribution, cli, patching, placement, probing
from audiolens.groups import groups_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "SECURITY.md", "audiolens/etude/weights/README.md"))]
POLE, NEUTRAL, CLIPS, PAIRS, SECONDS = 3, 4, 16, 6, 2.0
"""Prompts a pole, neutral prompts, labelled clips, pairs and seconds of a clip that a page is given at the most."""

_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
_MODULE = re.compile(r"`((?:audiolens|analysis)(?:\.[a-z_]+)+)")
_FILE = re.compile(r"`((?:audiolens|analysis|benchmarks|tests|docs)/[\w./-]+\.(?:py|md|toml|png))`")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the line of its page on which its text begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def mark(self) -> str:
        """What keeps it from running as printed: "needs the hub", "takes an hour", or nothing."""
        first = self.text.split("\n", 1)[0]
        return first.removeprefix("# ") if re.match(r"# (needs|takes) ", first) else ""

    def code(self, flags: int = 0) -> Any:
        """Compiled, so that a traceback names the page and its line."""
        return compile("\n" * (self.line - 1) + self.text, str(self.page.relative_to(ROOT)), "exec", flags=flags)


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text("utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"])
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with random weights in the place of hub names, which read the words of the bundled prompts."""
    sets = al.prompts.load("tempo", "english")
    words = {word for prompt in (*sets.positive, *sets.negative) for word in re.findall(r"\w+|[^\w\s]+", prompt)}
    read = sorted({*WORDS, *words})
    plain = write_model(tmp_path_factory.mktemp("plain"), words=read)
    melody = write_model(tmp_path_factory.mktemp("melody"), words=read, melody=True)
    return {"facebook/musicgen-small": plain, "facebook/musicgen-melody": melody}


@pytest.fixture(scope="module")
def etude() -> al.AudioLens:
    """Opened once for all pages."""
    return al.AudioLens.from_pretrained("etude")


def at_most(function: Callable[..., Any], **most: float) -> Callable[..., Any]:
    """The same function, with these arguments cut to these values."""
    signature = inspect.signature(function)

    def smaller(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        # A length may be given in other words, and once only.
        groups = [group for argument, group in groups_of(function).items() if argument in options]
        other = {name for group in groups for own in group.loose.values() for name in own}
        # Windows are for long clips.
        whole = not {"max_new_tokens", "window"}.isdisjoint(options)
        cut = {} if whole else {name: most[name] for name in most.keys() - other}
        usual = {name: signature.parameters[name].default for name in cut}
        bound.arguments.update({name: min({**usual, **bound.arguments}[name], value) for name, value in cut.items()})
        return function(*bound.args, **bound.kwargs)

    return smaller


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_ins: dict[str, Path], etude: al.AudioLens) -> None:
    """An empty folder, small sizes, and the stand-ins behind the hub's names."""
    opened, loaded, tabled = al.AudioLens.from_pretrained, al.prompts.load, al.measure.table

    def from_pretrained(name: Any, **options: Any) -> al.AudioLens:
        if name == "etude" and not options:
            return etude
        if name in stand_ins:
            options = {key: value for key, value in options.items() if key == "dtype"}
        return opened(stand_ins.get(name, name), **options)

    def load(*asked: Any, **options: Any) -> Any:
        sets = loaded(*asked, **options)
        poles = {"positive": sets.positive[:POLE], "negative": sets.negative[:POLE]}
        return replace(sets, **poles, development=sets.development[:NEUTRAL], test=sets.test[:NEUTRAL])

    monkeypatch.setattr(al.AudioLens, "from_pretrained", from_pretrained)
    monkeypatch.setattr(al.prompts, "load", load)
    for home, name, most in (
        (al.AudioLens, "generate", {"seconds": SECONDS}),
        (patching, "pairs", {"n": PAIRS}),
        (probing.Dataset, "from_synth", {"n": CLIPS, "seconds": 1.0}),
        (probing, "probe", {"n_shuffles": 2, "n_bootstrap": 20}),
        (attribution, "attribute", {"check": 2}),
        (patching, "patch", {"n_bootstrap": 20, "n_permutations": 20}),
    ):
        monkeypatch.setattr(home, name, at_most(getattr(home, name), **most))
    placed = placement.place
    small = {"seconds": 1.0, "n_random": 1, "n_bootstrap": 20, "compute": (), "screen_seconds": 0}

    def place(lens: Any, concept: str, directions: Any = None, **options: Any) -> Any:
        return placed(
            lens, concept, directions, **{**small, "prompts": load(concept, lens=lens).development[:3], **options}
        )

    monkeypatch.setattr(placement, "place", place)
    monkeypatch.setattr(al.measure, "table", lambda *asked, **options: tabled(*asked, **{**options, "n_jobs": 1}))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """What pages take for granted: sound files, and a clip in hand."""
    rng = np.random.default_rng(0)
    clicks = np.where(np.arange(64_000) % 8_000 < 400, 0.5, 0.02) * rng.standard_normal(64_000)
    sounds = {"clip.wav": clicks, "a.wav": clicks[::-1], "b.flac": 0.5 * clicks}
    for name, samples in sounds.items():
        soundfile.write(tmp_path / name, samples, 16_000)
    folder = tmp_path / "songs"
    folder.mkdir()
    rows = ["file,genre,artist"]
    for place in range(12):
        name = f"{place:02d}.wav"
        soundfile.write(folder / name, clicks[place * 1000 : place * 1000 + 16_000] * (1 + place % 2), 16_000)
        rows.append(f"{name},{'loud' if place % 2 else 'soft'},artist {place // 2}")
    (tmp_path / "songs.csv").write_text("\n".join(rows))
    return {"paths": list(sounds), "samples": clicks}


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.usefixtures("shop")
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, given: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "page", **given}
    for block in blocks(page, "python"):
        if not block.mark.startswith("takes"):
            exec(block.code(), names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_too_long_to_run_imports_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(block.code(ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert all(imports(node.module, name.name) for name in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "al":
                assert hasattr(al, node.attr), f"{named(page)}: al.{node.attr}"


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.text.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_of_a_page_exist_and_take_what_they_are_given(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "audiolens":
            parsed(typer.main.get_command(cli.app), words[1:])
        elif words[0] == "make":
            assert set(words[1:]) <= targets, line
        elif words[:2] == ["python", "-m"] and words[2].startswith("audiolens"):
            assert importlib.util.find_spec(words[2]), line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text("utf-8")):
        place = (page.parent / target) if target else page
        assert place.exists(), f"{named(page)}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{named(page)}: {target}#{anchor}"


def test_the_source_archive_holds_what_its_pages_link_to_and_its_tests_read() -> None:
    from hatchling.builders.sdist import SdistBuilder

    held = {Path(file.path).resolve() for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {*LINKED, *(ROOT / ".binder").iterdir()} <= held
    for page in LINKED:
        for target, _ in _LINK.findall(page.read_text("utf-8")):
            place = (page.parent / target).resolve()
            assert place.is_dir() or place in held, f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_of_files_and_modules_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in _FILE.findall(text):
        assert (ROOT / path).is_file(), f"{named(page)}: {path}"
    for name in _MODULE.findall(text):
        assert resolves(name), f"{named(page)}: {name}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them, and anchors in HTML."""
    prose = _FENCE.sub("", page.read_text("utf-8"))
    heads = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    named = re.findall(r'<a id="([\w-]+)">', prose)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads} | {*named}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, last = name.rpartition(".")
    return imports(module, last)


def imports(module: str, name: str) -> bool:
    """Whether `from module import name` works."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    return hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None


def test_the_citation_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == version
