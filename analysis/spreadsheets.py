"""Export tables as CSV, in a form that keeps spreadsheets from running text cells as formulas.

A spreadsheet can interpret a cell that begins with =, +, -, @ or white space as a formula, and a formula can start
programs or send the contents of other cells elsewhere. An apostrophe in front of such a cell marks it as text. Numbers
are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from audiolens.checks import checked_flags

_BEGINNINGS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 (spreadsheets accept the full-width ones too)


def csv_of(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return a table as CSV text, with formula-like cells escaped."""
    checked_flags(index=index)
    return "".join(_parts(table, index=index))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table to a CSV file, with formula-like cells escaped."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(_parts(table))


def _parts(table: pd.DataFrame, *, index: bool = False, rows: int = 50_000) -> Iterator[str]:
    """Yield the text of `csv_of` for so many rows at a time, because a long table is several times as long as text."""
    for start in range(0, max(1, len(table)), rows):
        part = table.iloc[start : start + rows].rename(columns=_cell, index=_cell if index else None)
        for place, dtype in enumerate(part.dtypes):
            if not pd.api.types.is_numeric_dtype(dtype):
                # Most columns repeat a few texts, which are then looked at once.
                codes, found = pd.factorize(part.iloc[:, place], use_na_sentinel=False)
                cells: Any = pd.Series([_cell(value) for value in found], dtype=object).take(codes)
                part.isetitem(place, cells.set_axis(part.index))
        yield part.to_csv(index=index, header=start == 0)


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_BEGINNINGS) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()
