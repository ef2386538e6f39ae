"""The templates, styles and scripts next to this file: what a page is filled into. Whatever is filled in is text."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def template(name: str) -> Any:
    """One of the templates."""
    from jinja2 import Environment, FunctionLoader

    loader = FunctionLoader(text)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def text(name: str) -> str:
    """A file as it stands."""
    return files("analysis.report").joinpath(name).read_text("utf-8")
