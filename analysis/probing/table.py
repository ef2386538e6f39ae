"""A labelled table: a CSV's columns as text, labels as numbers where all of them are, and one kind in a column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiolens.checks import in_order, refuse_masked
from audiolens.errors import InputError, shortened
from audiolens.files.bounded import csv_rows, read_text

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_KINDS = {"b": "truth values", "U": "text", "S": "text"}


def read_columns(path: Path, *, filled: Sequence[str], blank: Sequence[str | None] = ()) -> dict[str, list[str]]:
    """Columns of a CSV, by name, as text; those of `blank` (`None` is none) may have empty cells.

    Raises:
        InputError: naming the column that is not there, or the line in which a cell of `filled` is empty.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV with columns {' and '.join(map(repr, filled))}.")
    rows = csv_rows(path, read_text(path))
    header = rows[0][1] if rows else []
    wanted = [*filled, *(name for name in blank if name is not None)]
    for name in wanted:
        if header.count(name) != 1:
            there = "no column" if name not in header else "more than one column"
            raise InputError(f"{path} has {there} {name!r}: it has {shortened(header)}.")
    columns = {name: [cells[header.index(name)] for _, cells in rows[1:]] for name in wanted}
    for name in filled:
        for (line, _), cell in zip(rows[1:], columns[name], strict=True):
            if not cell:
                raise InputError(f"{path}: line {line} has nothing under {name!r}: fill it in, or take the line out.")
    return columns


def numbers_or_text(cells: Sequence[str]) -> np.ndarray:
    """Cells as numbers if each is one and no two that differ become the same ("1" and "01", or "1.0"); else as text."""
    text = np.array(cells, dtype=str)
    if not all(map(_NUMBER.fullmatch, cells)):
        return text
    whole = all(re.fullmatch(r"-?\d+", cell) for cell in cells)
    try:
        numbers = np.array([int(cell) if whole else float(cell) for cell in cells], dtype=np.int64 if whole else float)
    except OverflowError:
        return text
    lossless = np.isfinite(numbers).all() and len(np.unique(numbers)) == len(np.unique(text))
    return numbers if lossless else text


def column(name: str, values: Any, rows: int) -> np.ndarray:
    """Labels or groups as an array, one a row, none missing and all of one kind.

    numpy by itself makes text of a number next to text, and so one label of 1 and "1", and a label 'nan' of a NaN.

    Raises:
        InputError: saying which is missing, how many there are, or which kinds are mixed.
        InputTypeError: for what has no order, or a masked array.
    """
    import pandas as pd

    refuse_masked(name, values)
    given = _array(values) if hasattr(values, "__array__") else [*map(_plain, in_order(name, values, name))]
    array = np.asarray(given)
    if array.ndim != 1 or len(array) != rows:
        raise InputError(f"{array.size} {name} for {rows} rows: give one per row.")
    each = np.empty(rows, dtype=object)
    each[:] = list(given)
    missing = np.asarray(pd.isna(each))
    if array.dtype.kind == "f":
        missing = ~np.isfinite(array)
    if missing.any():
        one = name.removesuffix("s")
        raise InputError(f"the {one} of row {int(np.argmax(missing))} is missing: leave the row out, or {one} it.")
    kinds = sorted({_KINDS.get(np.asarray(value).dtype.kind, "numbers") for value in each})
    if len(kinds) > 1:
        raise InputError(f"{name} mix {' and '.join(kinds)}: give {name} of one kind.")
    return array.astype(str) if array.dtype.kind == "O" else array


def _array(values: Any) -> np.ndarray:
    """An array of what can be one; numpy has no bfloat16."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _plain(value: Any) -> Any:
    """A label, or what a tensor without axes holds."""
    return value.item() if hasattr(value, "detach") and not value.ndim else value
