"""Every public name is guarded and has a valid call, and a sample of wrong calls is rejected with audiolens errors."""

from __future__ import annotations

import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from audiolens.door import INNER, is_guarded
from hostile.drive import names
from hostile.drive.baselines import ARGUMENTS, EXEMPT, FURTHER, INSTANCES
from hostile.drive.run import driven, signature

TESTS = Path(__file__).parents[1]
PUBLIC = names.public()


def test_every_module_of_the_analyses_is_driven_or_says_why_not() -> None:
    known = {module.name for module in pkgutil.iter_modules(analysis.__path__)}
    driven_ones = {path.removeprefix("analysis.") for path in names.modules() if path.startswith("analysis.")}
    assert driven_ones | set(names.PARTS) == known
    assert not driven_ones & set(names.PARTS)


@pytest.mark.parametrize("name", driven(), ids=lambda name: name.path)
def test_every_public_name_has_a_valid_call(name: names.Name) -> None:
    """A new public name fails here until `baselines` has a valid call for it."""
    if name.owner is not None and name.kind != "classmethod":
        assert name.owner in INSTANCES
    needed = [
        one.name
        for one in signature(name)
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    assert not needed or name.path in ARGUMENTS or name.kind == "class"


def test_no_valid_call_is_of_a_name_that_is_gone() -> None:
    public = {name.path for name in PUBLIC}
    assert {*ARGUMENTS, *EXEMPT, *FURTHER} <= public
    assert set(INSTANCES) <= set(names.classes())


CALLED = [one.path for one in PUBLIC if one.kind in ("function", "method", "classmethod") and one.last not in INNER]


@pytest.mark.parametrize("path", CALLED)
def test_every_public_call_has_a_door(path: str) -> None:
    owner, _, last = path.rpartition(".")
    home = names.classes().get(owner) or names.modules()[owner]
    found = inspect.getattr_static(home, last)
    found = getattr(found, "__func__", found)
    assert is_guarded(found) or last.startswith("__"), f"@guarded is missing at {path}"


def test_a_drawn_part_of_all_wrong_calls_is_refused_in_our_own_words() -> None:
    """Runs in its own process, whose memory is limited; `make drive` makes all calls."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-m", "hostile.drive", "--calls", "150", "--quick"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "0 went wrong" in done.stdout
