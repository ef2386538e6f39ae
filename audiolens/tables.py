"""Files of text as they stand: a UTF-8 text, and the rows of a CSV with their lines, every cell text."""

import csv
import io
from pathlib import Path

from audiolens.errors import InputError

Row = tuple[int, list[str]]
"""The line a row begins in, and its cells without the spaces around them."""


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark, its lines ended by a line feed.

    Raises:
        InputError: if it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def csv_rows(path: Path, text: str) -> list[Row]:
    """The rows of a CSV, its header first; empty lines are left out.

    Raises:
        InputError: for quotes that do not match, and rows of more or fewer cells than the header has.
    """
    # Not the text's own `splitlines`: it also cuts at form feeds and at Unicode's separators, inside a cell.
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[Row] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}; quote a cell that holds commas or quotes, once.") from None
    for line, cells in rows:
        if len(cells) != len(rows[0][1]):
            raise InputError(
                f"{path}: line {line} has {len(cells)} cells, expected {len(rows[0][1])} (quote cells with commas)."
            )
    return rows
