"""Export tables as CSV, in a form that keeps spreadsheets from running text cells as formulas.

A spreadsheet can interpret a cell that begins with =, +, -, @ or white space as a formula, and a formula can start
programs or send the contents of other cells elsewhere. An apostrophe in front of such a cell marks it as text. Numbers
are not changed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from audiolens.checks import checked_flags

_BEGINNINGS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 (spreadsheets accept the full-width ones too)


def csv_of(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return a table as CSV text, with formula-like cells escaped."""
    checked_flags(index=index)
    named = table.rename(columns=_cell, index=_cell if index else None)
    for place, dtype in enumerate(named.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            cells: Any = pd.Series([_cell(value) for value in named.iloc[:, place]], index=named.index, dtype=object)
            named.isetitem(place, cells)
    return named.to_csv(index=index)


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
