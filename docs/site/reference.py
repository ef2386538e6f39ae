"""Write the reference: a page of every public module, from signatures and docstrings, which are read without importing.

`PUBLIC` lists the modules and `RETURNED` the classes that public calls return although no package exports them; a test
compares both with what is exported. The pages are Markdown with the directives of Sphinx's Python domain.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe

PUBLIC = (
    "audiolens", "audiolens.measure", "audiolens.prompts", "audiolens.schedules", "audiolens.errors", "analysis",
    "analysis.attention", "analysis.attribution", "analysis.comparison", "analysis.distributed", "analysis.features",
    "analysis.harvest", "analysis.methods",
    "analysis.layer_attribution", "analysis.listening_test", "analysis.logit_lens", "analysis.patching", "analysis.pca",
    "analysis.placement", "analysis.pooling", "analysis.probing", "analysis.reading_comparison", "analysis.report",
    "analysis.similarity", "analysis.statistics", "analysis.study", "analysis.sweep", "analysis.trackers",
)  # fmt: skip
"""Every module that users import from, in the order of the reference."""
RETURNED = (
    "audiolens.cache.decomposition.Components", "audiolens.compatibility.Hook",
    "audiolens.directions.calibration.Calibration", "audiolens.directions.evidence.Evidence",
    "audiolens.directions.heads.Heads", "audiolens.directions.leace.Eraser", "audiolens.directions.samples.Samples",
    "audiolens.model.config.LensConfig", "audiolens.model.provenance.Provenance", "audiolens.model.timeline.Timeline",
    "audiolens.tracing.trace.SiteValue", "analysis.sweep.dose.CrossEffects", "analysis.sweep.dose.DoseResponse",
    "analysis.sweep.tradeoff.LayerMap", "analysis.sweep.tradeoff.Front", "analysis.sweep.tradeoff.Limits",
    "analysis.sweep.tradeoff.Strategies",
)  # fmt: skip
"""Classes of values that public calls return, or pass to a caller's function."""
OTHER = {"returned": "Values that calls return", "types": "Types in signatures"}
"""The pages that belong to no module."""
MOVED = {"audiolens.schedules": "audiolens.directions.schedules"}
"""Modules that are reached under a shorter name."""
OPERATORS = ("__call__", "__contains__", "__getitem__", "__iter__", "__len__")
"""What users call through an operator. It has an entry if it has a docstring."""

_WRITTEN = {griffe.Kind.FUNCTION: "function", griffe.Kind.CLASS: "class", griffe.Kind.ATTRIBUTE: "data"}
_DISPLAYED = {griffe.DocstringSectionKind.returns: "Returns", griffe.DocstringSectionKind.yields: "Yields"}


@dataclass(frozen=True)
class Entry:
    """A public name: the path that users write, and what was read of it."""

    path: str
    value: Any

    @property
    def kind(self) -> str:
        return _WRITTEN[self.value.kind]


@dataclass(frozen=True)
class Reference:
    """Both packages as they were read, with the public path of every object that has one."""

    found: Any
    modules: dict[str, Any]
    entries: dict[str, list[Entry]]
    public: dict[str, str]

    @classmethod
    def read(cls, root: Path) -> "Reference":
        loader = griffe.GriffeLoader(search_paths=[str(root)], docstring_parser="google")
        for package in ("audiolens", "analysis"):
            loader.load(package)
        loader.resolve_aliases(implicit=False, external=False)
        found = loader.modules_collection
        unpack(found["audiolens.lens.AudioLens"])
        modules = {path: found[MOVED.get(path, path)] for path in PUBLIC}
        entries = {path: list(exported(path, module)) for path, module in modules.items()}
        entries["returned"] = [Entry(path, found[path]) for path in RETURNED]
        public = {entry.value.canonical_path: entry.path for group in entries.values() for entry in group}
        return cls(found, modules, entries, public)

    def pages(self) -> dict[str, str]:
        """The text of every page by its name; the page `index` lists the others."""
        written = {path: self._page(path) for path in self.entries}
        own = {entry.path: self._alone(entry) for entry in self.entries["audiolens"] if entry.kind == "class"}
        return {**written, **own, "types": self._types()}

    def overview(self) -> str:
        """A table of the modules, with the first sentence of each."""
        rows = [
            f"| [{path}](reference/{path}.md) | {_cell(summary(module))} |" for path, module in self.modules.items()
        ]
        rows += [f"| [{title}](reference/{name}.md) | |" for name, title in OTHER.items()]
        return "\n".join(["\n| module | purpose |", "|---|---|", *rows])

    def names(self) -> set[str]:
        """Every name that has an entry, with methods, properties and fields."""
        text = "\n".join(self.pages().values())
        return set(re.findall(r"^:+\{py:(?:function|class|data|method|property|attribute)\} ([\w.]+)", text, re.M))

    def _page(self, path: str) -> str:
        entries = self.entries[path]
        if path in OTHER:
            head = [f"# {OTHER[path]}", "No package exports these classes: public calls return them, or pass them on."]
        else:
            # The entries below state their whole path, which Sphinx would otherwise put behind that of the module.
            module = f"```{{py:module}} {path}\n```\n\n```{{py:currentmodule}} None\n```"
            head = [f"# {path}", module, described(self.modules[path].docstring)]
        # The classes of the first module are large, so each has a page of its own.
        alone = [entry for entry in entries if path == "audiolens" and entry.kind == "class"]
        rows = "\n".join(f"| {{py:obj}}`~{one.path}` | {_cell(summary(one.value))} |" for one in entries)
        table = f"| name | purpose |\n|---|---|\n{rows}" if entries else ""
        below = tree(f"{one.path.rpartition('.')[2]} <{one.path}>" for one in alone)
        return "\n\n".join([*head, table, below, *(self._entry(one) for one in entries if one not in alone)]) + "\n"

    def _alone(self, entry: Entry) -> str:
        return f"# {entry.path.rpartition('.')[2]}\n\n{self._entry(entry)}\n"

    def _types(self) -> str:
        """The aliases that signatures name, with what they stand for."""
        aliases = self._aliases()
        rows = [
            f":::{{py:data}} {path}\n:canonical: {path}\n\n```python\n{value.name} = {value.value}\n```\n\n"
            f"{described(value.docstring)}\n:::" for path, value in sorted(aliases.items(), key=lambda one: one[1].name)
        ]  # fmt: skip
        return "\n\n".join([f"# {OTHER['types']}", "Signatures use these names. They need not be imported.", *rows])

    def _aliases(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in (one for group in self.entries.values() for one in group):
            inside = [member for _, member in members(entry.value)] if entry.kind == "class" else []
            for value in (entry.value, *inside):
                for name in named(value):
                    alias = self._alias(name)
                    if alias is not None:
                        found[alias.canonical_path] = alias
        return found

    def _entry(self, entry: Entry) -> str:
        value = entry.value
        if entry.kind != "class":
            return self._directive(entry.kind, entry.path, value)
        body = [described(value.docstring)]
        for name, member in members(value):
            path = f"{entry.path}.{name}"
            if member.is_function:
                flags = {"classmethod", "staticmethod"} & member.labels
                body.append(self._directive("method", path, member, [f":{flag}:" for flag in sorted(flags)]))
            else:
                kind = "property" if "property" in member.labels else "attribute"
                if kind == "property" or member.docstring:
                    body.append(self._directive(kind, path, member))
        inner = "\n\n".join(filter(None, body))
        return f"::::{{py:class}} {entry.path}{self._arguments(value)}\n\n{inner}\n::::"

    def _directive(self, kind: str, path: str, value: Any, options: Iterable[str] = ()) -> str:
        signature = ""
        lines = list(options)
        if value.is_function:
            signature = self._arguments(value)
            if value.returns is not None:
                signature += f" -> {self._typed(value.returns)}"
        elif value.annotation is not None:
            lines.append(f":type: {self._typed(value.annotation)}")
        head = "\n".join([f":::{{py:{kind}}} {path}{signature}", *lines])
        return f"{head}\n\n{described(value.docstring)}\n:::"

    def _arguments(self, value: Any) -> str:
        """The arguments in brackets, with types and defaults, of a function or of a class's constructor."""
        parts: list[str] = []
        seen_star = False
        for one in value.parameters:
            if one.name in ("self", "cls"):
                continue
            kind = one.kind
            if kind is griffe.ParameterKind.keyword_only and not seen_star:
                parts.append("*")
            seen_star |= kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
            star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
            text = star + one.name
            if one.annotation is not None:
                text += f": {self._typed(one.annotation)}"
            if one.default is not None and not star:
                text += f" = {one.default}" if one.annotation is not None else f"={one.default}"
            parts.append(text)
        return f"({', '.join(parts)})"

    def _typed(self, annotation: Any) -> str:
        """An annotation, in which names of ours are links to their entries."""
        if isinstance(annotation, str):
            return annotation
        parts = []
        for part in annotation.iterate(flat=True):
            if isinstance(part, str):
                parts.append(part)
                continue
            alias = self._alias(part)
            path = self.public.get(part.canonical_path) or (alias and alias.canonical_path)
            parts.append(f"~{path}" if path else part.name)
        return " ".join("".join(parts).split())

    def _alias(self, name: Any) -> Any:
        """The alias of a type in our packages that a name in an annotation leads to, if it leads to one."""
        path = name.canonical_path
        if not path.startswith(("audiolens.", "analysis.")) or path in self.public:
            return None
        try:
            value = self.found[path]
            value = value.final_target if value.is_alias else value
        except (KeyError, griffe.AliasResolutionError):
            return None
        return value if value.is_attribute else None


def summary(value: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join(value.docstring.value.split("\n\n")[0].split()) if value.docstring else ""


def exported(path: str, module: Any) -> Iterator[Entry]:
    """The names in `__all__`, or those that a module without one defines itself."""
    listed = [str(name).strip("'\"") for name in module.exports or ()]
    own = [name for name, member in module.members.items() if not (name.startswith("_") or member.is_alias)]
    for name in listed or own:
        member = module.members.get(name)
        if member is not None and member.is_module and name in module.imports:
            # A function hides the module of the same name that it is imported from.
            member = module.modules_collection[module.imports[name]]
        value = member.final_target if member is not None and member.is_alias else member
        if value is not None and value.kind in _WRITTEN and (listed or not value.is_attribute):
            yield Entry(f"{path}.{name}", value)


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """The public methods, properties and fields of a class, its own first, then those of its bases in both packages."""
    for name, member in sorted(value.all_members.items(), key=lambda one: one[0] not in value.members):
        found = member.final_target if member.is_alias else member
        if name.startswith("_") and not (name in OPERATORS and found.docstring):
            continue
        if found.is_function or found.is_attribute:
            yield name, found


def named(value: Any) -> Iterator[Any]:
    """The names in the annotations of a function, a class's constructor or an attribute."""
    annotations = [one.annotation for one in getattr(value, "parameters", ())]
    annotations += [getattr(value, "returns", None), getattr(value, "annotation", None)]
    for annotation in annotations:
        if annotation is not None and not isinstance(annotation, str):
            yield from (part for part in annotation.iterate(flat=True) if not isinstance(part, str))


def unpack(value: Any) -> None:
    """Add the attributes that a class sets as `a, b = module.function(...)`, with the function's docstring."""
    parsed: Any = ast.parse(dedent(value.source))
    for node in parsed.body[0].body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Call):
            module, _, name = ast.unparse(node.value.func).partition(".")
            function = value.modules_collection[value.parent.resolve(module)][name]
            for target in node.targets[0].elts:
                attribute = griffe.Attribute(ast.unparse(target), parent=value, docstring=function.docstring)
                attribute.labels.add("property")
                value.set_member(attribute.name, attribute)


def described(docstring: Any) -> str:
    """A docstring as Markdown: its prose as written, its arguments and errors as lists of terms."""
    if docstring is None:
        return ""
    parts = []
    for section in docstring.parse("google", warnings=False):
        kind = section.kind
        if kind is griffe.DocstringSectionKind.text:
            parts.append(section.value)
        elif kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
            parts.append(_terms("Arguments" if kind.value == "parameters" else "Attributes",
                                ((one.name, one.description) for one in section.value)))  # fmt: skip
        elif kind is griffe.DocstringSectionKind.raises:
            parts.append(_terms("Raises", ((str(one.annotation), one.description) for one in section.value)))
        elif kind in _DISPLAYED:
            text = "\n\n".join(one.description for one in section.value)
            parts.append(f"**{_DISPLAYED[kind]}**\n\n{text}")
        elif kind is griffe.DocstringSectionKind.admonition:
            parts.append(f"**{section.title}**\n\n{section.value.description}")
        else:
            raise ValueError(f"{docstring.parent.path}: a section of its docstring has no form here: {kind.value}")
    return "\n\n".join(parts)


def _terms(title: str, rows: Iterable[tuple[str, str]]) -> str:
    terms = []
    for name, text in rows:
        names = ", ".join(f"`{one.strip()}`" for one in name.split(","))
        terms.append(f"{names}\n: " + text.strip().replace("\n", "\n  "))
    return f"**{title}**\n\n" + "\n\n".join(terms)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def tree(pages: Iterable[str], caption: str = "") -> str:
    """A table of contents for Sphinx, which only the navigation shows."""
    listed = "\n".join(pages)
    head = f":hidden:\n:caption: {caption}\n" if caption else ":hidden:\n"
    return f"\n\n```{{toctree}}\n{head}\n{listed}\n```\n" if listed else ""


def write(reference: Reference, folder: Path) -> None:
    """Write all pages into `folder`, only those that changed, and remove pages of names that are gone."""
    pages = {f"{name}.md": text for name, text in reference.pages().items()}
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
