"""Write tables as Parquet files with their own hash, and read them with limits on their size and column types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audiolens.errors import DamagedError, InputError
from audiolens.files.bounded import json_of
from audiolens.files.integrity import OPEN_SEAL, check_seal, content_of, seal

SEALED = b"audiolens"
"""The entry of a file's metadata that contains its facts and its hash, as JSON."""
Kind = Literal["text", "number", "truth"]
MOST_ROWS = 1_000_000
MOST_CELLS = 50_000_000
MOST_BYTES = 2**29
"""The largest table to load, in bytes of memory as declared by its file. Even a small file can declare a huge table."""


def sealed(table: pd.DataFrame, schema: pa.Schema | None, facts: Mapping[str, Any]) -> bytes:
    """Return a table as the bytes of a Parquet file. Its metadata contain `facts` and a hash of the whole file."""
    return sealed_arrow(pa.Table.from_pandas(table, schema=schema, preserve_index=False), facts)


def sealed_arrow(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """Return an Arrow table, such as one that `read_arrow` returned, as `sealed` returns a data frame."""
    own = {SEALED: json.dumps({**facts, "seal": OPEN_SEAL})}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), buffer)
    return seal(buffer.getvalue().to_pybytes())


def read_sealed(path: Path, kinds: Mapping[str, Kind], rows: int | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the table and the facts in a file that `sealed` made. The other arguments are those of `read`.

    Raises:
        DamagedError: if the file is missing, or differs from what was written.
    """
    content = content_of(path)
    check_seal(path, content)
    try:
        table, metadata = read(path, content, kinds, rows)
        facts = json_of(path, metadata.get(SEALED, b"{}").decode())
    except (InputError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {str(error).removeprefix(f'{path} ')}") from None
    return table, facts if isinstance(facts, dict) else {}


def read(path: Path, content: bytes, kinds: Mapping[str, Kind], rows: int | None = None) -> tuple[pd.DataFrame, Any]:
    """Return the table stored in the bytes of a Parquet file, and the file's metadata.

    Args:
        path: path of the file, used in error messages.
        kinds: the columns that the table must have, with their types. The table can have other columns as well.
        rows: the expected number of rows, if known.

    Raises:
        InputError: if the bytes are not a Parquet file, or if the table lacks these columns, has a different number of
            rows, or is too large.
    """
    table, metadata = read_arrow(path, content, rows)
    return frame_of(path, table, kinds), metadata


def read_metadata(path: Path, content: bytes) -> Mapping[bytes, bytes]:
    """Return the metadata of a Parquet file, without its table.

    Raises:
        InputError: if the bytes are not a Parquet file.
    """
    try:
        return pq.read_metadata(pa.BufferReader(content)).metadata or {}
    except Exception as error:
        raise _unreadable(path, error) from None


def read_arrow(path: Path, content: bytes, rows: int | None = None) -> tuple[pa.Table, Mapping[bytes, bytes]]:
    """Return the Arrow table stored in the bytes of a Parquet file, and the file's metadata, within the same limits.

    Raises:
        InputError: if the bytes are not a Parquet file, or if the table has a different number of rows or is too large.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        facts = file.metadata
        held = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    except Exception as error:
        raise _unreadable(path, error) from None
    cells = facts.num_rows * facts.num_columns
    if rows is not None and facts.num_rows != rows:
        raise InputError(f"{path} cannot be used: it has {facts.num_rows} rows, expected {rows}.")
    if facts.num_rows > MOST_ROWS or cells > MOST_CELLS or held > MOST_BYTES:
        size = f"{facts.num_rows:,} rows of {facts.num_columns:,} columns, {held:,} bytes"
        raise InputError(f"{path} cannot be used: {size} exceed the limits for a table.")
    try:
        return file.read(use_threads=False), facts.metadata or {}
    except Exception as error:
        raise _unreadable(path, error) from None


def frame_of(path: Path, found: pa.Table, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """Return an Arrow table as a data frame, once its columns are checked.

    Raises:
        InputError: if the table lacks a column of `kinds`, or a column has another type.
    """
    try:
        table = found.to_pandas()
        columns = [(name, _kind(table.iloc[:, place])) for place, name in enumerate(table.columns) if name in kinds]
        own = {name: [kind for other, kind in columns if other == name] for name in kinds}
    except Exception as error:
        # pandas follows the metadata in the file, and can fail in many ways if the metadata are wrong.
        raise _unreadable(path, error) from None
    for name, kind in kinds.items():
        if own[name] != [kind]:
            there = " and ".join(own[name]) or "none"
            raise InputError(f"{path} cannot be used: its column {name!r} is {there}, expected {kind}.")
    return table


def _kind(column: Any) -> str:
    if pd.api.types.is_bool_dtype(column.dtype):
        return "truth"
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "number"
    return "text" if all(isinstance(value, str) for value in column.dropna()) else str(column.dtype)


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120].rstrip(".")
    return InputError(f"{path} cannot be read: it is not a Parquet file: {reason}.")
