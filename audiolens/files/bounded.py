"""Read untrusted files within limits: text, JSON, TOML, CSV and safetensors headers.

Every loader uses these functions. They open only regular files, so that a pipe or a device cannot stall a program. The
limits on size, nesting, numbers and strings are far above what any file written by audiolens needs. Any problem raises
a one-line `InputError` that names the file.
"""

import csv
import io
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from audiolens.errors import InputError

Row = tuple[int, list[str]]
"""The number of the line at which a row of the CSV file begins, and the row's cells without surrounding spaces."""

MOST_BYTES = 64 * 2**20
"""The largest size of a text file."""
MOST_DEPTH = 64
MOST_DIGITS = 40
MOST_TEXT = 2**17
"""The largest number of characters in one string or key. Python's own CSV reader has the same limit for a cell."""
MOST_HEADER_BYTES = 100_000_000
"""The size in bytes of the largest header that safetensors itself accepts."""
MOST_TENSORS = 100_000
MOST_AXES = 16

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: the metadata of the file, and the shape and dtype of each tensor by name."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    data_bytes: int

    @property
    def elements(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read the bytes of a regular file.

    Raises:
        InputError: if the file cannot be read, is not a regular file, or is larger than `most` bytes.
    """
    try:
        _refuse_special(path)
        with open(path, "rb") as file:
            # Check the size before reading, so that a file that is too large takes no memory. Python reserves as many
            # bytes as it is asked to read, so ask for the size of the file, and for more only if it is growing.
            size = os.fstat(file.fileno()).st_size
            too_large = size > most
            content = b"" if too_large else file.read(size + 1)
            if len(content) > size:
                content += file.read(most + 1 - len(content))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    if too_large or len(content) > most:
        raise InputError(f"{path} is too large: expected at most {most / 2**20:,.0f} MB.")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Read the text of a file, removing any byte order mark and converting line endings to line feeds.

    Raises:
        InputError: for the same reasons as `read_bytes`, or if the file is not UTF-8.
    """
    try:
        text = read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        InputError: for the same reasons as `read_text` and `json_of`.
    """
    return json_of(path, read_text(path, most))


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        InputError: for the same reasons as `read_json`, or if the JSON is not an object.
    """
    found = read_json(path, most)
    if not isinstance(found, dict):
        raise InputError(f"{path} contains a {type(found).__name__}: expected a JSON object.")
    return found


def json_of(path: Path, text: str, most_text: int = MOST_TEXT) -> Any:
    """Parse the text of a JSON file; `path` is only used in error messages.

    Raises:
        InputError: if the text is not JSON, if an object repeats a key, or if the limits of this module are exceeded.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once_each, parse_int=_whole, parse_float=_real)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not JSON: {error}.") from None
    except RecursionError:
        raise _too_deep(path) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _refuse_beyond(path, found, most_text)
    return found


def toml_of(path: Path, text: str) -> dict[str, Any]:
    """Parse the text of a TOML file; `path` is only used in error messages.

    Raises:
        InputError: if the text is not TOML, or if the TOML exceeds the limits of this module.
    """
    # tomllib takes time quadratic in the number of parts of a dotted key, so long keys are rejected before parsing.
    marks = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|[\w \t-]+", "", text)
    if "." * MOST_DEPTH in marks:
        raise _too_deep(path)
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: it is not TOML: {error}.") from None
    _refuse_beyond(path, found)
    return found


def csv_rows(path: Path, text: str) -> list[Row]:
    """Parse the text of a CSV file. The rows include the header but no empty lines.

    Raises:
        InputError: if quotes are unmatched, a cell exceeds the limit, or a row has more or fewer cells than the header.
    """
    # `text.splitlines` would also split at form feeds and Unicode separators, which may be inside a cell.
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[Row] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}; put cells that contain commas or quotes in quotes.") from None
    for line, cells in rows:
        if len(cells) != len(rows[0][1]):
            raise InputError(
                f"{path}: line {line} has {len(cells)} cells, expected {len(rows[0][1])} (put a cell that contains a "
                "comma in quotes)."
            )
    return rows


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, and check that the size and layout of the data match the header exactly.

    Raises:
        InputError: if the file cannot be read, is not a regular file, or is not a complete safetensors file.
    """
    try:
        _refuse_special(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
                raise _not_whole(path, f"it has {size:,} bytes, but declares a header of {length:,}")
            content = file.read(length)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        entries = json_of(path, content.decode(), MOST_HEADER_BYTES)
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise TypeError("its metadata is not text")
        if len(entries) > MOST_TENSORS:
            raise ValueError(f"it lists {len(entries):,} tensors, expected at most {MOST_TENSORS:,}")
        shapes = {name: _shape(name, entry) for name, entry in entries.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
        _refuse_gaps(spans, size - 8 - length)
    except InputError as error:
        raise _not_whole(path, str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ").rstrip(".")) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_whole(path, str(error)) from None
    dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
    return Header(metadata, shapes, dtypes, size - 8 - length)


def _refuse_special(path: Path) -> None:
    """Reject anything except a regular file before opening it, because opening a pipe blocks until it has a writer."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} cannot be read: it is a folder.")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} cannot be read: it is not a regular file.")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, rejecting repeated keys, for which Python would silently use the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        doubled = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise InputError(f"it contains the key {_short(doubled)} twice: keep one.")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise InputError(f"a number of {len(digits):,} digits: expected at most {MOST_DIGITS}.")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > MOST_TEXT:
        raise InputError(f"a number of {len(digits):,} digits: expected at most {MOST_TEXT:,}.")
    return float(digits)


def _refuse_beyond(path: Path, value: Any, most_text: int = MOST_TEXT) -> None:
    """Reject deep nesting, long numbers and long strings. The check is iterative, because Python limits recursion."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += [*one, *one.values()]
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and len(one) > most_text:
                raise InputError(f"{path} contains a text of {len(one):,} characters: expected at most {most_text:,}.")
            elif isinstance(one, int) and one.bit_length() > 4 * MOST_DIGITS:
                raise InputError(f"{path} contains a number of more than {MOST_DIGITS} digits.")
        level = inner
        if not level:
            return
    raise _too_deep(path)


def _shape(name: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a tensor, after checking that its shape and dtype match its number of bytes."""
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    numbers = [*shape, start, stop]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise ValueError(f"the shape or offsets of {_short(name)} are not whole numbers")
    bits = _BITS.get(entry["dtype"])
    if bits is None or len(shape) > MOST_AXES or prod(shape) * bits != (stop - start) * 8:
        raise ValueError(f"{_short(name)} is {entry['dtype']} {_short(shape)} in {stop - start:,} bytes")
    return tuple(shape)


def _refuse_gaps(spans: list[tuple[int, ...]], size: int) -> None:
    """Reject a file whose tensors overlap, leave gaps, or do not end exactly at the end of the file."""
    end = 0
    for start, stop in spans:
        if start != end:
            raise ValueError("its tensors overlap or leave a gap")
        end = stop
    if end != size:
        raise ValueError(f"its header describes {end:,} bytes of data, but the file has {size:,}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _too_deep(path: Path) -> InputError:
    return InputError(f"{path} is nested too deeply: expected at most {MOST_DEPTH} levels.")


def _not_whole(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a complete safetensors file: {reason}.")
