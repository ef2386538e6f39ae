"""Load the templates, styles and scripts next to this file; templates escape everything that is filled in."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def template(name: str) -> Any:
    """A template by file name."""
    from jinja2 import Environment, FunctionLoader

    loader = FunctionLoader(text)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def text(name: str) -> str:
    """The contents of a file in this folder."""
    return files("analysis.report").joinpath(name).read_text("utf-8")
