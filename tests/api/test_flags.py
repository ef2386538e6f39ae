"""Every flag rejects strings before anything else is checked: "no" would count as True."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import analysis
import audiolens as al
from audiolens.errors import InputTypeError

MODULES = [
    "audiolens",
    "audiolens.measure",
    "audiolens.prompts",
    "analysis.study.study_set",
]
EXPERIMENTS = [f"analysis.{found.name}" for found in pkgutil.iter_modules(analysis.__path__) if found.name != "cli"]
CODES = torch.zeros(1, 4, 6, dtype=torch.long)
# Result classes with boolean fields, values that modules pass to each other, and helpers of the commands that write
# folders.
NO_DOORS = (
    "GridSite",
    "Wanted",
    "read",
    "takes",
    "Intervention",
    "Effect",
    "Scores",
    "Slope",
    "PCAResult",
    "ProbeResult",
    "check",
    "check_file",
    "fresh",
    "app",
    "main",
)


def _flags(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one.name for one in parameters if isinstance(one.default, bool) or one.annotation in (bool, "bool")]


def _doors() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield (name, function, flag) for every public function, class and method that takes a flag."""
    for module in map(importlib.import_module, [*MODULES, *EXPERIMENTS]):
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            if name.startswith("_") or name in NO_DOORS or not callable(value):
                continue
            if not str(getattr(value, "__module__", "")).startswith(("audiolens", "analysis")):
                continue
            yield from ((f"{module.__name__}.{name}", value, flag) for flag in _flags(value))
            if not inspect.isclass(value):
                continue
            for method, plain in vars(value).items():
                bound = getattr(plain, "__func__", plain)
                if method.startswith("_") or not inspect.isfunction(bound):
                    continue
                # Class methods are bound to their class; other methods need no instance, as flags are checked first.
                yield from ((f"{module.__name__}.{name}.{method}", bound, flag) for flag in _flags(bound))


DOORS = sorted({(name, flag): (name, function, flag) for name, function, flag in _doors()}.items())


def test_there_are_flags_in_both_packages() -> None:
    names = [name for (name, _), _ in DOORS]
    assert len(names) > 40
    assert {name.split(".")[0] for name in names} == {"audiolens", "analysis"}


@pytest.mark.parametrize("door", [found for _, found in DOORS], ids=[f"{name}-{flag}" for (name, flag), _ in DOORS])
@pytest.mark.parametrize("word", ["no", 0, None])
def test_a_flag_is_true_or_false(lens: al.AudioLens, door: tuple[str, Callable[..., Any], str], word: Any) -> None:
    name, function, flag = door
    own = [one.name for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    given: dict[str, Any] = {one: {"codes": CODES, "name": "hook_embed"}.get(one) for one in own if one != flag}
    if name.startswith("audiolens.AudioLens"):
        given["self"] = lens
    with pytest.raises(InputTypeError, match=f"{flag}={word!r}: expected True or False"):
        function(**given, **{flag: word})


def test_numpys_truth_values_are_flags(lens: al.AudioLens) -> None:
    assert lens.generate("calm", 0.2, seeds=0, decode=np.False_).audio is None  # pyright: ignore[reportArgumentType]
