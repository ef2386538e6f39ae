"""Packaging: one version number, packaged data, light imports, and pins that agree with the version ranges."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import audiolens

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def run_python(code: str) -> str:
    """What `code` prints in a fresh interpreter, without the tests' import hook."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_written_once_in_effect():
    assert audiolens.__version__ == PROJECT["project"]["version"] == version("audiolens")


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="audiolens")
    assert command.value == "analysis.cli:main"


@pytest.mark.parametrize("package", ["audiolens", "analysis", "audiolens.measure"])
def test_importing_is_light(package):
    heavy = {"torch", "transformers", "nnsight", "librosa", "sklearn", "matplotlib", "plotly"}
    loaded = run_python(f"import sys, {package}; print(*sys.modules)").split()
    assert not heavy & set(loaded)


def test_every_dependency_is_pinned_within_its_range():
    optional = PROJECT["project"]["optional-dependencies"]
    pins = {canonical(name): pin for name, pin in PINS.items()}
    for line in (*PROJECT["project"]["dependencies"], *optional["dev"]):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), line


def test_no_lowest_version_is_one_that_another_dependency_excludes():
    """`make versions` installs all of them together, and pip would refuse."""
    lowest = {}
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        least = [one.version for one in requirement.specifier if one.operator == ">="]
        lowest[canonical(requirement.name)] = least[0]
    excluded = [
        f"{name} excludes {asked}, but {asked.name} may be {lowest[canonical(asked.name)]}"
        for name in lowest
        for asked in map(Requirement, requires(name) or ())
        if (asked.marker is None or asked.marker.evaluate({"extra": ""})) and canonical(asked.name) in lowest
        for one in asked.specifier
        if one.operator == "!=" and not SpecifierSet(str(one)).contains(lowest[canonical(asked.name)])
    ]
    assert not excluded


def test_pins_hold_on_any_machine():
    assert PINS["torch"] == "2.13.0"
    for name, pin in PINS.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", pin), f"{name}=={pin} is a local build"


def test_the_engines_that_may_change_beneath_us_have_upper_bounds():
    bounds = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["project"]["dependencies"])}
    assert "<0.8.2" in bounds["nnsight"]
    assert "<5.25" in bounds["transformers"]


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_every_data_file(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "audiolens", "analysis"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: nothing to compare the wheel with")
    assert not [path for path in tracked if (ROOT / path).exists() and path not in packed]


def make(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=check)


def test_help_names_every_target():
    text = make("help").stdout
    for target in ("study", "test", "evidence", "lint", "clean"):
        assert f"make {target}" in text


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_finished_study_is_repeated_only_when_asked(tmp_path):
    _script(tmp_path / "venv" / "bin" / "audiolens", 'echo ran "$@"')
    (tmp_path / "venv" / ".installed").touch()
    (tmp_path / "tempo").mkdir()
    (tmp_path / "tempo" / "summary.json").touch()
    study = (f"VENV={tmp_path / 'venv'}", f"OUT={tmp_path}", "study")
    text = make(*study).stdout
    assert "make study FORCE=1" in text
    ran = [f"ran study timbre --out {tmp_path}/timbre", f"ran report {tmp_path} --index"]
    assert re.findall("^ran .*$", text, re.MULTILINE) == ran
    text = make(*study, "FORCE=1").stdout
    assert f"ran study tempo --out {tmp_path}/tempo --force" in text


@pytest.mark.parametrize(("release", "made"), [((3, 9), True), ((3, 11), False)])
def test_an_environment_of_an_old_python_is_made_anew(tmp_path, release, made):
    told = f"import sys; sys.version_info = {release}; "
    # Answers questions about itself as that release, and does nothing else.
    python = f'[ "$1" = -c ] && exec {sys.executable} -c "{told}$2"\nexit 0'
    _script(tmp_path / "venv" / "bin" / "python", python)
    new = _script(tmp_path / "python3.11", "exit 0")
    done = make(f"PYTHON={new}", f"VENV={tmp_path / 'venv'}", "install")
    assert ("Creating" in done.stdout) is made


def test_an_old_python_is_refused_in_one_line(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "install", check=False)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
