"""Trees: the files of a case by name, before they are written; an entry may also be a link, a pipe or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Special:
    """An entry that is not an ordinary file: a link to `target`, a pipe, a folder, or a sparse file of 8 GB."""

    kind: Literal["link", "pipe", "folder", "sparse"]
    target: str = ""
    head: bytes = b""


Tree = dict[str, "bytes | Special"]
SPARSE_BYTES = 8 * 2**30


def taken(folder: Path) -> Tree:
    """The files in a folder, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def lay(tree: Mapping[str, bytes | Special], folder: Path) -> None:
    """Write a tree to a new folder; if one name is a parent folder of another, the first one is written."""
    made = {str(folder)}
    folder.mkdir()
    for name, content in tree.items():
        path = os.path.join(folder, name)
        above = os.path.dirname(path)
        try:
            if above not in made:
                os.makedirs(above, exist_ok=True)
                made.add(above)
            _put(path, content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


def _put(path: str, content: bytes | Special) -> None:
    if isinstance(content, bytes):
        with open(path, "xb") as file:
            file.write(content)
    elif content.kind == "link":
        os.symlink(content.target, path)
    elif content.kind == "pipe":
        os.mkfifo(path)
    elif content.kind == "folder":
        os.mkdir(path)
    else:
        with open(path, "xb") as file:
            file.write(content.head)
            file.truncate(SPARSE_BYTES)
