"""Test the supported versions of dependencies: `make versions`, or `python benchmarks/versions.py [--only lowest]`.

The tests that depend closely on transformers and nnsight run in separate environments: with the lowest versions that
`pyproject.toml` promises (of every package), with those of `constraints.txt`, and with the newest that pip finds. All
use the torch of this environment. A fourth environment is wrong on purpose: in a copy of transformers the decoder's
cache has another name, and every family must be rejected at load. The table goes into `docs/versions.md`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from pages import renewed
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "versions.md"
FOLDER = ROOT / ".venv-versions"
SHOWN = ("transformers", "nnsight", "torch", "numpy")
TESTS = ("identity", "raw_hooks", "clock", "melody")
"""Identity with bare transformers, edits compared with raw hooks, timed edits and recordings, and Melody."""
ENVIRONMENTS = ("lowest", "pinned", "newest", "wrong")
ROWS = FOLDER / "rows.json"
RENAMED = "renamed"
WRONG = f"newest, with the cache argument renamed to `{RENAMED}` in a copy of transformers"


def main(
    only: Annotated[list[str] | None, typer.Option(help="lowest, pinned or newest (default: all, and wrong).")] = None,
    whole: Annotated[bool, typer.Option(help="Run every test of the project, not only the exact ones.")] = False,
) -> None:
    """Build the environments, test in each, and write the table; exit with code 1 if one fails."""
    right = True
    # Rows of earlier calls stay, so that a single environment can be tested again.
    kept: dict[str, str] = json.loads(ROWS.read_text("utf-8")) if ROWS.is_file() else {}
    for name in tqdm(only or ENVIRONMENTS, desc="versions", unit="environment"):
        python = environment(name)
        passed, result = refused(python) if name == "wrong" else tested(python, whole)
        right &= passed
        kept[name] = row([WRONG if name == "wrong" else name, *versions(python), result])
        tqdm.write(kept[name])
        if not whole:
            ROWS.write_text(json.dumps(kept, indent=1), "utf-8")
    if not whole and kept.keys() >= set(ENVIRONMENTS):
        heads = ["", *SHOWN, "result"]
        table = [row(heads), row(["---"] * len(heads)), *(kept[name] for name in ENVIRONMENTS)]
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "versions", "\n".join(table) + "\n"), "utf-8")
    raise typer.Exit(0 if right else 1)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def requirements() -> list[Requirement]:
    """The project's dependencies without torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [found for found in map(Requirement, project["dependencies"]) if found.name != "torch"]


def lowest(requirement: Requirement) -> str:
    (least,) = (one.version for one in requirement.specifier if one.operator == ">=")
    return f"{requirement.name}=={least}"


def environment(name: str) -> Path:
    """The interpreter of a new environment that falls back to the packages of this one."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    own = packages(python)
    (own / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    specs = {
        "lowest": list(map(lowest, requirements())),
        "newest": ["--upgrade", "--upgrade-strategy", "eager", *(one.name for one in requirements())],
    }
    specs["wrong"] = specs["newest"]
    if name in specs:
        pin = folder / "torch.txt"
        # All environments use the same torch.
        pin.write_text(f"torch=={version('torch')}\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", pin]
        subprocess.run([*pip, *specs[name]], check=True)
    if name == "wrong":
        if not (own / "transformers").is_dir():
            # The newest version is the one in this environment.
            shutil.copytree(Path(sysconfig.get_path("purelib")) / "transformers", own / "transformers")
        rename(own / "transformers" / "models")
    return python


def packages(python: Path) -> Path:
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", asked], text=True).strip())


def versions(python: Path) -> list[str]:
    asked = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    return subprocess.check_output([python, "-c", asked], text=True).split()


def surroundings() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def tested(python: Path, whole: bool) -> tuple[bool, str]:
    """Whether the tests pass, and the text for the table."""
    report = python.parent / "report.xml"
    report.unlink(missing_ok=True)
    chosen = [] if whole else [str(path) for name in TESTS for path in sorted(ROOT.glob(f"tests/*/test_{name}.py"))]
    options = ["-q", "-n", "auto", "--maxprocesses", "8", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run([python, "-m", "pytest", *options, *chosen], cwd=ROOT, env=surroundings(), check=False)
    if not report.is_file():
        return False, "the tests did not run"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    wrong = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return not wrong and count > 0, f"{count - wrong - skipped} passed, {wrong} failed"


def refused(python: Path) -> tuple[bool, str]:
    """Whether every family is rejected at load because of the clock, and the text for the table."""
    program = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests")
import conftest
import audiolens as al
for melody in (False, True):
    with tempfile.TemporaryDirectory() as folder:
        try:
            al.AudioLens.from_pretrained(conftest.write_model(Path(folder), melody=melody))
        except al.errors.UnsupportedModelError as error:
            assert "the step that is running is unknown" in str(error), error
        else:
            sys.exit("a model opened although its clock cannot be read")
"""
    done = subprocess.run([python, "-c", program], cwd=ROOT, env=surroundings(), check=False)
    return done.returncode == 0, "rejected at load" if done.returncode == 0 else "NOT rejected at load"


def rename(models: Path) -> None:
    """Rename the cache argument in every family, only where the model calls its decoder."""
    for family, kind in {"musicgen": "Musicgen", "musicgen_melody": "MusicgenMelody"}.items():
        file = models / family / f"modeling_{family}.py"
        before, decoder = file.read_text("utf-8").split(f"class {kind}Decoder(", 1)
        decoder, model = decoder.split(f"class {kind}Model(", 1)
        first = "        if use_cache and cache is None"
        decoder = once(decoder, "        cache: Cache | None = None", f"        {RENAMED}: Cache | None = None", file)
        decoder = once(decoder, first, f"        cache = {RENAMED}\n{first}", file)
        model = once(model, "            cache=cache", f"            {RENAMED}=cache", file)
        file.write_text(f"{before}class {kind}Decoder({decoder}class {kind}Model({model}", "utf-8")


def once(text: str, old: str, new: str, file: Path) -> str:
    """The text with the first `old` replaced by `new`.

    Raises:
        ValueError: if `old` is missing, because the file differs from what is expected.
    """
    if old not in text:
        raise ValueError(f"{file}: expected {old.strip()!r}, to rename it")
    return text.replace(old, new, 1)


if __name__ == "__main__":
    typer.run(main)
