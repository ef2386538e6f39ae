"""Load the templates, styles and scripts in this folder. Templates escape every value that they insert."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def template(name: str) -> Any:
    """Load the template with this file name."""
    from jinja2 import Environment, FunctionLoader

    loader = FunctionLoader(text)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def text(name: str) -> str:
    """Return the contents of a file in this folder."""
    return files("analysis.report").joinpath(name).read_text("utf-8")
