"""Hash the code that a function can run, so that a stored result is used only while that code is unchanged.

Starting at the function's own module, the search follows all imports of audiolens and analysis modules. This includes
imports inside functions, and imports for annotations, because the methods of an annotated value can run. A name that a
package re-exports leads to the module that defines the name, not to the rest of the package. A module that is imported
under a computed name (`import_module`) is not included. The hash ignores comments, docstrings and formatting, methods
that only draw (`DRAWING`), and imports that only those methods use.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

DRAWING = frozenset({"plot", "figure", "_repr_html_"})
"""Methods that only draw a result."""
_ROOT = Path(__file__).parents[2]
_WITHOUT_EFFECT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of a syntax tree that do not affect what runs."""

_Name = tuple[str, str | None]
"""The source of an imported name: a module and a name in it, or `None` if the module itself is imported."""


@dataclass(frozen=True)
class Code:
    """The code that some functions can run.

    Attributes:
        modules: the names of the modules, sorted.
        digest: a hash of their code.
    """

    modules: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Sources:
    """The modules of some packages, as a mapping from module name to file."""

    files: Mapping[str, Path]

    @classmethod
    def under(cls, *packages: Path) -> Sources:
        """Return the modules of packages, given the folders of the packages."""
        found = {path: path.relative_to(package.parent) for package in packages for path in package.rglob("*.py")}
        return cls({".".join(own.with_suffix("").parts).removesuffix(".__init__"): path for path, own in found.items()})

    def code_of(self, *values: Any) -> Code:
        """Return the code that functions, classes, other values or modules can run.

        A value that is not a function or class stands for its class, and a string names a module.
        """
        found: dict[str, str] = {}
        left = [value if isinstance(value, str) else home_of(value) for value in values]
        while left:
            if (name := left.pop()) not in found:
                module = self._module(name)
                found[name] = module.digest
                left += [other for source, used in module.imports for other in self._defining(*source, used)]
        listed = sorted(found.items())
        return Code(tuple(name for name, _ in listed), hashlib.sha256(repr(listed).encode()).hexdigest()[:16])

    def _module(self, name: str) -> _Module:
        # A function may belong to another package, for example to a test. Its module is then hashed as well, with
        # the modules of these packages that it imports.
        path = self.files.get(name) or _source_of(name)
        return _parsed("" if path is None else path.read_text("utf-8"))

    def _defining(self, module: str, name: str | None, used: frozenset[str] | None) -> Iterator[str]:
        """Yield the modules that define an imported name or, for a package, those that define the attributes in use."""
        whole = module if name is None else f"{module}.{name}"
        if whole in self.files:
            if used is None or self.files[whole].name != "__init__.py":
                yield whole
            else:
                yield from (other for attribute in used for other in self._defining(whole, attribute, None))
        elif name is not None and module in self.files:
            exported = [source for source in self._module(module).names.get(name, ()) if source[0] in self.files]
            yield from (other for source in exported for other in self._defining(*source, used))
            if not exported:
                yield module


@cache
def code_of(*values: Any) -> Code:
    """Return the code of audiolens and analysis that functions and classes can run, as it was on the first call."""
    return _ours().code_of(*values)


def home_of(value: Any) -> str:
    """Return the name of the module that defines a function or class, or the class of any other value."""
    while isinstance(value, partial):
        value = value.func
    named = inspect.isroutine(value) or isinstance(value, type)
    return inspect.unwrap(value).__module__ if named else type(value).__module__


def _source_of(name: str) -> Path | None:
    """Return the file of another package's module, or `None` if it is compiled, or typed into a notebook."""
    try:
        path = inspect.getsourcefile(sys.modules[name])
    except (KeyError, TypeError):
        return None
    return Path(path) if path is not None and Path(path).is_file() else None


@cache
def _ours() -> Sources:
    return Sources.under(_ROOT / "audiolens", _ROOT / "analysis")


@dataclass(frozen=True)
class _Module:
    """A hash of a module's code, the names that the module imports, and those that it uses.

    Attributes:
        names: the sources of each imported name.
        imports: the source of each imported name that the code uses, paired with the attributes of the name that are
            used, or with `None` if the name is used as a whole.
    """

    digest: str
    names: Mapping[str, Sequence[_Name]]
    imports: tuple[tuple[_Name, frozenset[str] | None], ...]


@cache
def _parsed(source: str) -> _Module:
    seen = _Seen()
    seen.visit(ast.parse(source))
    used = {name: None if name in seen.whole else frozenset(seen.attributes[name])
            for name in sorted(seen.names) if name in seen.whole or name in seen.attributes}  # fmt: skip
    words = "\0".join([*seen.words, *(f"{name} {seen.names[name]}" for name in used)])
    imports = tuple((source, attributes) for name, attributes in used.items() for source in seen.names[name])
    return _Module(hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest(), seen.names, imports)


@dataclass
class _Seen:
    """The results of walking a syntax tree: its code, word by word, and the names that it imports and uses."""

    words: list[str] = field(default_factory=list)
    names: dict[str, list[_Name]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    attributes: dict[str, set[str]] = field(default_factory=dict)

    def visit(self, node: Any) -> None:
        kind = type(node)
        if kind is ast.Import or kind is ast.ImportFrom:
            for alias in node.names:
                source = (alias.name, None) if kind is ast.Import else (str(node.module), alias.name)
                self.names.setdefault(alias.asname or alias.name.split(".")[0], []).append(source)
            return
        if kind is ast.Name:
            self.whole.add(node.id)
        elif kind is ast.Constant:
            # An annotation, or a list of public names, may contain a name as a string.
            self.whole.add(str(node.value))
        elif kind is ast.Attribute and type(node.value) is ast.Name:
            self.attributes.setdefault(node.value.id, set()).add(node.attr)
            self.words.append(f"{node.value.id}.{node.attr}")
            return
        self.words.append(kind.__name__)
        for part in node._fields:
            value = getattr(node, part)
            if value is None or part in _WITHOUT_EFFECT:
                continue
            self.words.append(part)
            for one in value if type(value) is list else (value,):
                if not isinstance(one, ast.AST):
                    self.words.append(repr(one))
                elif not _is_prose(one) and not (kind is ast.ClassDef and _draws(one)):
                    self.visit(one)
        self.words.append("end")


def _is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _draws(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name in DRAWING
