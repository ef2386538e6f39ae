"""Downloads: tables that stand in a page, so that a page that was moved or mailed still has them all.

A short table is a link that holds it. A longer one is packed (gzip, as text) and unpacked by `downloads.js`, a few
lines that stand in the page with it; where no script runs, or none that can unpack, its link saves it packed.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.spreadsheets import csv_of

MOST_BYTES = 4_000_000
"""Of all packed tables, as text: what sounds and figures leave of 15 MB. 8,500 clips of a full study take 1.6 MB."""
_PLAIN_BYTES = 60_000
"""Of a table as it is: a longer one is packed."""


@dataclass(frozen=True)
class Download:
    """A table that the page can save.

    Attributes:
        name: of the table.
        rows: how many it has.
        link: where it is: itself, packed or not, or the file beside the page.
        packed: whether it is packed.
        beside: whether it is too long for the page, and lies beside it.
    """

    name: str
    rows: int
    link: str
    packed: bool = False
    beside: bool = False

    @property
    def file(self) -> str:
        """What it is called once it is saved."""
        return f"{self.name}.csv"

    @property
    def saved(self) -> str:
        """What the bare link saves it as, without the page's script."""
        return f"{self.file}.gz" if self.packed else self.file


def downloads(tables: Mapping[str, pd.DataFrame], places: Mapping[str, str]) -> dict[str, Download]:
    """The tables as downloads, in their order.

    Args:
        tables: by name.
        places: the file of each, seen from the page: where one is linked that finds no room, the longest ones first.
    """
    found, left = {}, MOST_BYTES
    contents = {name: csv_of(table).encode("utf-8") for name, table in tables.items()}
    for name in sorted(contents, key=lambda name: len(contents[name])):
        content, rows = contents[name], len(tables[name])
        if len(content) <= _PLAIN_BYTES:
            found[name] = Download(name, rows, data_link("text/csv;charset=utf-8", content))
            continue
        # Without the time of day: the same table is the same page.
        link = data_link("application/gzip", gzip.compress(content, mtime=0))
        left -= len(link)
        if left < 0:
            found[name] = Download(name, rows, places[name], beside=True)
        else:
            found[name] = Download(name, rows, link, packed=True)
    return {name: found[name] for name in tables}


def data_link(mime: str, content: bytes) -> str:
    """Content as a link that holds it."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
