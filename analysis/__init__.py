"""Experiments on an audiolens model: each takes a lens or a cache and returns a result you can table and plot.

Each has a package (`analysis.probing`, `from analysis import sweep`) that exports what users call, and whose other
modules are the parts it is made of. They load on first use, so the command line starts at once. `analysis` imports
`audiolens`, never the reverse.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

_MODULES = frozenset(module.name for module in iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f"analysis.{name}")
    raise AttributeError(f"module 'analysis' has no attribute {name!r}; it has {', '.join(sorted(_MODULES))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
