"""Embed tables in a page as downloads, so that they stay with the page when it is moved or mailed.

A short table is embedded as a data link. A longer table is compressed (gzip, base64) and unpacked by `downloads.js`,
which is embedded too. If scripts are off or the browser cannot decompress, the link saves the compressed file.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.spreadsheets import csv_of

MOST_BYTES = 1_800_000
"""Maximum total size of the compressed tables in base64, which keeps the page below 10 MB.

The table of the 8,500 clips of a full study takes 1.6 MB.
"""
_SAMPLE = 2_000
"""Number of rows of a long table that are compressed to find out whether the whole table could fit."""
_PLAIN_BYTES = 60_000
"""Maximum size of a table that is embedded without compression."""


@dataclass(frozen=True)
class Download:
    """A table that the reader of the page can save.

    Attributes:
        name: name of the table.
        rows: number of rows.
        link: a data link with the table, or the path of its file next to the page.
        packed: whether the data link is compressed.
        external: whether the table is too long to embed, so that the link leads to its file.
    """

    name: str
    rows: int
    link: str
    packed: bool = False
    external: bool = False

    @property
    def file(self) -> str:
        """The file name under which the table is saved."""
        return f"{self.name}.csv"

    @property
    def saved(self) -> str:
        """The file name under which the link saves the table if the page's script does not run."""
        return f"{self.file}.gz" if self.packed else self.file


def downloads(tables: Mapping[str, pd.DataFrame], paths: Mapping[str, str]) -> dict[str, Download]:
    """Return the tables as downloads, in the same order.

    Args:
        tables: the tables by name.
        paths: path of each table's file, relative to the page. If not all tables fit, the page links to the files of
            the longest tables.
    """
    found, left, contents = {}, MOST_BYTES, {}
    for name, table in tables.items():
        if _is_too_long(table):
            found[name] = Download(name, len(table), paths[name], external=True)
        else:
            contents[name] = csv_of(table).encode("utf-8")
    for name in sorted(contents, key=lambda name: len(contents[name])):
        content, rows = contents[name], len(tables[name])
        if len(content) <= _PLAIN_BYTES:
            found[name] = Download(name, rows, data_link("text/csv;charset=utf-8", content))
            continue
        link = _packed(content)
        left -= len(link)
        if left < 0:
            found[name] = Download(name, rows, paths[name], external=True)
        else:
            found[name] = Download(name, rows, link, packed=True)
    return {name: found[name] for name in tables}


def _is_too_long(table: pd.DataFrame) -> bool:
    """Return whether a table is so long that it would not fit, even if the rest compresses twice as well as a part."""
    if len(table) <= 2 * _SAMPLE:
        return False
    sample = table.iloc[:: len(table) // _SAMPLE]
    return len(_packed(csv_of(sample).encode("utf-8"))) * len(table) / len(sample) / 2 > MOST_BYTES


def _packed(content: bytes) -> str:
    # Omit the timestamp, so that the same table always gives the same page.
    return data_link("application/gzip", gzip.compress(content, mtime=0))


def data_link(mime: str, content: bytes) -> str:
    """Return a data URI with this content."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
