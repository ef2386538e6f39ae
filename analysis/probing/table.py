"""Read labels from a CSV, as numbers if all of them are numbers, and check that each column has one kind of value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiolens.checks import as_array, in_order, refuse_masked, shown
from audiolens.errors import InputError, InputTypeError, shortened
from audiolens.files.bounded import csv_rows, read_text

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_KINDS = {"b": "Booleans", "U": "text", "S": "text"}


def read_columns(path: Path, *, filled: Sequence[str], blank: Sequence[str | None] = ()) -> dict[str, list[str]]:
    """Return the columns of a CSV by name, as text.

    Columns in `blank` can have empty cells, and a `None` in `blank` is ignored.

    Raises:
        InputError: if a column is missing, or a cell of a column in `filled` is empty. The error names the column or
            the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV with columns {' and '.join(map(repr, filled))}.")
    rows = csv_rows(path, read_text(path))
    header = rows[0][1] if rows else []
    wanted = [*filled, *(name for name in blank if name is not None)]
    for name in wanted:
        if header.count(name) != 1:
            there = "no column" if name not in header else "more than one column"
            raise InputError(f"{path} has {there} {shown(name)}: it has {shortened(header)}.")
    columns = {name: [cells[header.index(name)] for _, cells in rows[1:]] for name in wanted}
    for name in filled:
        for (line, _), cell in zip(rows[1:], columns[name], strict=True):
            if not cell:
                raise InputError(f"{path}: line {line} has an empty {shown(name)}: fill it in, or remove the line.")
    return columns


def numbers_or_text(cells: Sequence[str]) -> np.ndarray:
    """Return the cells as numbers if possible, else as text.

    Conversion is possible if all cells are numbers and no two different cells (such as "1" and "1.0") would become
    equal.
    """
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
    """Return labels or groups as an array, after checking that there is one value per row and all are of one kind.

    Without these checks, numpy would convert numbers to text if any value is text, merge the labels 1 and "1", and
    convert a NaN to the label 'nan'.

    Raises:
        InputError: if a value is missing, if the number of values does not match the rows, or if kinds are mixed.
        InputTypeError: if `values` has no order or is a masked array.
    """
    import pandas as pd

    refuse_masked(name, values)
    given = _array(values) if hasattr(values, "__array__") else [*map(_plain, in_order(name, values, name))]
    array = as_array(name, given)
    if array.ndim != 1 or len(array) != rows:
        raise InputError(f"{array.size} {name} for {rows} rows: give one per row.")
    if array.dtype.kind not in "biufUSO":
        raise InputTypeError(f"{name}: expected numbers, text or booleans, got values of type {array.dtype}.")
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
    """Convert values to an array. Low-precision floats become float32, because numpy has no bfloat16."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _plain(value: Any) -> Any:
    """Return the value of a tensor without axes, or any other label unchanged."""
    return value.item() if hasattr(value, "detach") and not value.ndim else value
