"""What every notebook begins with: badges that open it elsewhere, and a cell that installs audiolens if it is missing.

    python notebooks/opening.py    # write both again, for example when the repository has moved

`execute.py` gives them to a notebook that has none yet, and runs the cell with the others. The address is `Repository`
in `[project.urls]` of pyproject.toml. Without one there are no badges.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parent
CELL = "install"
"""The id of the cell that installs audiolens."""
_BADGES = re.compile(r"^\[!\[Open in Colab\].*\n\n", re.MULTILINE)


def repository() -> str | None:
    """The address of the repository on GitHub, if pyproject.toml names it."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def badges(name: str, address: str) -> str:
    """The badges of a notebook: one opens it on Colab, the other on Binder."""
    place = address.removeprefix("https://github.com/").removesuffix("/")
    colab = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{place}/main?labpath=notebooks%2F{name}.ipynb"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def install(address: str | None) -> str:
    """The code of the cell that installs audiolens, from the repository or else from the clone around the notebook."""
    where = "where it is missing, as on Colab" if address else "from this clone where it is missing"
    return (
        f"# Installs audiolens {where}, and does nothing elsewhere.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("audiolens") is None:\n'
        f"    %pip install --quiet {f'git+{address}' if address else '..'}"
    )


def open_with(notebook: Any, name: str, address: str | None) -> None:
    """Give a notebook its badges, below the title, and its cell that installs audiolens, in place of earlier ones."""
    title, text = _BADGES.sub("", notebook.cells[0].source).split("\n\n", 1)
    parts = [title, *([badges(name, address)] if address else []), text]
    notebook.cells[0].source = "\n\n".join(parts)
    cell = next((one for one in notebook.cells if one.id == CELL), None)
    if cell is None:
        cell = nbformat.v4.new_code_cell(id=CELL, metadata={"tags": ["hide-input"]})
        notebook.cells.insert(1, cell)
    cell.source = install(address)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if any(cell.id == CELL for cell in notebook.cells):
            open_with(notebook, path.stem, repository())
            nbformat.write(notebook, path)
