"""Read captions of music from a list, a CSV file with a named column, or a text file with one caption per line."""

import ast
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from audiolens.checks import in_order, shown
from audiolens.errors import InputError, InputTypeError, PromptError, nearest, shortened
from audiolens.files.atomic import as_path
from audiolens.files.bounded import csv_rows, read_text

COLUMN = "caption"
"""The column that is read by default, which is MusicCaps' (Agostinelli et al. 2023) name for it."""
Numbered = list[tuple[int, str]]
"""Captions with their line in the file, or their number in the list; both count from 1."""


def read_captions(captions: str | os.PathLike[str] | Sequence[str], column: str | None = None) -> Numbered:
    """Return captions with their line, without blank ones.

    `captions` is a list of texts, a `.csv` file with a header, or any other text file, with one caption per line.
    `column` names a column of the CSV file. By default, this is "caption", or the only column. A cell that is a list
    in Python's notation, as in MusicCaps' column `aspect_list`, is joined with commas.

    Raises:
        InputError: if the file cannot be read, or has no such column; the message suggests the closest names.
        InputTypeError: if a caption in the list is not text.
        PromptError: if there are no captions.
    """
    if isinstance(captions, str | os.PathLike):
        path = as_path(captions)
        found = _of_csv(path, column) if path.suffix.lower() == ".csv" else _of_lines(path, column)
        name = str(path)
    else:
        found, name = _of_list(captions, column), "captions"
    kept = [(line, " ".join(text.split())) for line, text in found if text.strip()]
    if not kept:
        raise PromptError(f"{name}: there are no captions. Expected a text, or a cell, for each caption.")
    return kept


def _of_list(captions: Sequence[str], column: str | None) -> Numbered:
    if column is not None:
        raise InputError(f"column={shown(column)}: only a CSV file has columns, and captions is a list: leave it out.")
    texts = in_order("captions", captions, "captions")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"captions[{index}] is {type(text).__name__}: expected text.")
    return list(enumerate(texts, 1))


def _of_lines(path: Path, column: str | None) -> Numbered:
    if column is not None:
        raise InputError(f"{path}: only a .csv file has columns: leave out column={shown(column)}.")
    if path.suffix.lower() in (".tsv", ".json", ".jsonl", ".parquet", ".xlsx"):
        raise InputError(f"{path}: expected a .csv file with a header, or a .txt file with one caption per line.")
    return list(enumerate(read_text(path).split("\n"), 1))


def _of_csv(path: Path, column: str | None) -> Numbered:
    rows = csv_rows(path, read_text(path))
    if not rows:
        raise PromptError(f"{path} is empty: expected a header, and a caption in each line below.")
    header = rows[0][1]
    name = column if column is not None else header[0] if len(header) == 1 else COLUMN
    if header.count(name) != 1:
        reason = f"has the column {shown(name)} twice" if name in header else f"has no column {shown(name)}"
        raise InputError(f"{path} {reason}.{nearest(str(name), header)} Columns: {shortened(header)}.")
    place = header.index(name)
    return [(line, _joined(path, line, cells[place])) for line, cells in rows[1:]]


def _joined(path: Path, line: int, cell: str) -> str:
    """Return a cell as text: "['pop', 'fast tempo']" is "pop, fast tempo"."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        # A backslash in a caption is no reason to warn about Python's escapes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            parts = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return cell
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{path}: line {line} has a list that contains something other than text.")
    return ", ".join(parts)
