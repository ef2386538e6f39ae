"""Find all public names: the exported names of both packages, with their methods and properties.

A new name is tested as soon as it is exported; if it has no valid call, `test_drive` fails.
"""

import inspect
import pkgutil
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import analysis
import audiolens
from audiolens import measure, prompts, schedules

PARTS = {
    "cli": "the command line: `test_commands` calls it",
    "commands": "the command line: `test_commands` calls it",
    "figures": "what figures share; each is drawn by its result's plot() and figure()",
    "heard": "how a sweep measures a batch",
    "likelihood": "the window that patching, attribution and ablation score",
    "listening": "the processes in which a sweep generates and measures",
    "playground": "the page of `audiolens play`, which `tests/playground` opens in a browser",
    "resampling": "the bootstrap of statistics; `analysis` exports its settings",
    "site_grid": "the cells of patching and attribution",
    "spreadsheets": "tables as files, written by study and sweep",
    "store": "the folders of study and sweep, called by their save, run and load_folder",
    "wording": "how numbers are written in sentences",
    "workers": "the processes in which a sweep generates and measures",
}
"""Modules of `analysis` that users do not call."""
OPERATORS = (
    "__add__", "__array__", "__call__", "__contains__", "__dlpack__", "__getitem__", "__iter__", "__len__", "__mul__",
    "__neg__", "__radd__", "__rmul__", "__rsub__", "__sub__", "__truediv__",
)  # fmt: skip
REACHED = {
    "Timeline": "audiolens.model.timeline",
    "Components": "audiolens.cache.decomposition",
    "Hook": "audiolens.compatibility",
    "Calibration": "audiolens.directions.calibration",
    "Evidence": "audiolens.directions.evidence",
    "Eraser": "audiolens.directions.leace",
    "Heads": "audiolens.directions.heads",
    "Provenance": "audiolens.model.provenance",
    "SiteValue": "audiolens.tracing.trace",
    "LensConfig": "audiolens.model.config",
    "Samples": "audiolens.directions.samples",
}
"""Classes that no package exports, but that public calls return or pass to a caller's function."""
RETURNED = ("DoseResponse", "Front", "Limits", "Strategies", "LayerMap", "CrossEffects")
"""Further such classes, returned by methods of a `SweepResult`."""


@dataclass(frozen=True)
class Name:
    """A public name: "audiolens.AudioLens.generate"; `owner` is its class if it is a method or a property."""

    path: str
    kind: str
    owner: str | None = None

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]


def modules() -> dict[str, Any]:
    """The modules whose exported names are public."""
    found = {f"audiolens.{one.__name__.rpartition('.')[2]}": one for one in (measure, prompts, schedules)}
    found |= {"audiolens": audiolens, "analysis": analysis}
    for module in pkgutil.iter_modules(analysis.__path__):
        if module.name not in PARTS:
            found[f"analysis.{module.name}"] = import_module(f"analysis.{module.name}")
    return found


def exported(module: Any) -> list[str]:
    """`__all__`, or the public names that a module defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def classes() -> dict[str, type]:
    """Every public class, by its dotted path."""
    found = {
        f"{path}.{name}": value
        for path, module in modules().items()
        for name in exported(module)
        if inspect.isclass(value := getattr(module, name))
    }
    reached = {f"{module}.{name}": getattr(import_module(module), name) for name, module in REACHED.items()}
    returned = {}
    for module in pkgutil.iter_modules(import_module("analysis.sweep").__path__, "analysis.sweep."):
        for name in RETURNED:
            value = getattr(import_module(module.name), name, None)
            if value is not None and value.__module__ == module.name:
                returned[f"{module.name}.{name}"] = value
    return {**found, **reached, **returned}


def public() -> list[Name]:
    """Every public name that can be called or read."""
    found = []
    for path, module in modules().items():
        for name in exported(module):
            value = getattr(module, name)
            alias = isinstance(value, types.GenericAlias)
            if callable(value) and not inspect.isclass(value) and not alias:
                found.append(Name(f"{path}.{name}", "function"))
    for path, value in classes().items():
        found.append(Name(path, "class", path))
        found.extend(Name(f"{path}.{name}", kind, path) for name, kind in members(value))
    return found


def members(value: type) -> Iterator[tuple[str, str]]:
    """The methods and properties of a class, without those inherited from other libraries."""
    for name in dir(value):
        if name.startswith("_") and name not in OPERATORS:
            continue
        home = next(base for base in value.__mro__ if name in vars(base))
        if home.__module__.partition(".")[0] not in ("audiolens", "analysis"):
            continue
        found = inspect.getattr_static(value, name)
        if isinstance(found, classmethod | staticmethod):
            yield name, "classmethod"
        elif inspect.isfunction(found):
            yield name, "method"
        elif isinstance(found, property) or hasattr(found, "__get__"):
            yield name, "property"
