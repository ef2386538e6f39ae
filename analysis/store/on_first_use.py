"""Import a package's public names only when they are first used (PEP 562).

`from analysis.study import stages` then does not load the rest of the package, nor torch, so that the command line can
check a folder or an argument at once.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def exports(
    package: str, modules: Mapping[str, str], namespace: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: the package's `__name__`.
        modules: maps every public name to the module of the package that defines it.
        namespace: the package's `globals()`, in which a name is kept after its first use.
    """

    def found(name: str) -> Any:
        if name in modules:
            namespace[name] = getattr(import_module(f"{package}.{modules[name]}"), name)
            return namespace[name]
        # Modules of the package are attributes too, as they are after an eager import.
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*namespace, *modules})

    return found, listed
