"""Write figures as vector files, and put them into a page as SVG that follows its colours and font."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib as mpl

from analysis.figures.literal import as_typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("svg", "pdf", "png")
"""The kinds of files in which figures can be written."""
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_INK, _PAPER = re.compile(r"#000000\b|\bblack\b"), re.compile(r"#ffffff\b|\bwhite\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_SHORTHAND = re.compile(r"font:[^;]*?([\d.]+px)[^;]*")
"""The font of a text, which older versions of matplotlib write in one property."""


def file_of(figure: Figure, kind: str, name: str) -> bytes:
    """Return a figure as the bytes of a file of this kind. The same figure always gives the same bytes."""
    buffer = io.BytesIO()
    # Without a fixed salt, the ids in an SVG are random. With these fonts, text stays text.
    with as_typed(), mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, metadata=_UNDATED[kind])
    return buffer.getvalue()


def inline(svg: bytes, name: str, label: str) -> str:
    """Return an SVG of matplotlib as an element of a page, named `label` for screen readers.

    Black and white become the page's colours of text and background, and the page's font replaces the figure's. Ids
    begin with `name`, so that several figures can be in one page. All text stays text.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [*parent]:
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = {found for element in root.iter() for found in _references(element)}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in given.items():
            if key == "id":
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif key == "href":
                element.set(key, f"#{name}-{value[1:]}" if value.startswith("#") else value)
            else:
                element.set(key, _themed(_REFERENCE.sub(rf"url(#{name}-\1)", value)) if key != "d" else value)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    found = [name for value in element.attrib.values() for name in _REFERENCE.findall(value)]
    return found + [value[1:] for key, value in element.attrib.items() if key.endswith("href") and value[:1] == "#"]


def _themed(value: str) -> str:
    value = _FAMILY.sub("", _SHORTHAND.sub(r"font-size: \1", value))
    return _PAPER.sub("var(--paper)", _INK.sub("currentColor", value))
