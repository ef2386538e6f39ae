"""The pages of the site, as the lists in `docs/index.md` name them."""

import os
import re
from pathlib import PurePosixPath

_PART = re.compile(r"^## (?P<caption>.+)\n(?P<text>(?:(?!## ).*\n?)*)", re.MULTILINE)
_ITEM = re.compile(r"^- \[(?P<title>[^]]+)\]\((?P<target>[^)#]+)\)", re.MULTILINE)


def contents(text: str) -> dict[str, list[tuple[str, str]]]:
    """The pages in the list under each heading, as (title, path from the root of the repository)."""
    parts = {part["caption"]: _ITEM.finditer(part["text"]) for part in _PART.finditer(text)}
    return {
        caption: [(one["title"], os.path.normpath(PurePosixPath("docs", one["target"]))) for one in items]
        for caption, items in parts.items()
    }
