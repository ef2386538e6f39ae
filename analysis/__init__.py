"""Experiments on audiolens models. Each takes a lens or a cache, and returns a result to tabulate and plot.

Each experiment is a package (`analysis.probing`, `from analysis import sweep`) that exports its public functions. The
other modules of the package contain the implementation. Packages load on first use, so the command line starts quickly.
`analysis` imports `audiolens`, never the reverse.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.resampling import Resampling as Resampling

__all__ = ["Resampling"]
_MODULES = frozenset(module.name for module in iter_modules(__path__))


def __getattr__(name: str) -> Any:
    if name == "Resampling":
        return import_module("analysis.resampling").Resampling
    if name in _MODULES:
        return import_module(f"analysis.{name}")
    raise AttributeError(f"module 'analysis' has no attribute {name!r}; it has {', '.join(sorted(_MODULES))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__all__})
