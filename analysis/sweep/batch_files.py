"""Name, write and read the files of a sweep's batches: two files for a batch, or for a pack of neighbouring batches.

The file of rows (Parquet) is written last. Its metadata state the batches and the plan, and contain hashes of its own
bytes, of the file of codes (safetensors) and of the batches' sound files. For a pack, they also contain a hash of the
codes of each batch, so that the codes of one batch can be read alone. `batches` decides which files to read, and
`packing` merges batches into packs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load

from analysis.store import parquet
from audiolens.errors import DamagedError, InputError
from audiolens.files.bounded import json_of, read_header
from audiolens.files.integrity import check_bytes, check_seal, content_of, digest
from audiolens.files.json_shapes import refuse_other

BATCHES, SOUND = "batches", "audio"
SUFFIXES = (".parquet", ".safetensors", ".flac", ".wav")
"""The suffixes of the files in these two folders."""
MOST_CLIPS = 4096
"""The largest number of clips in a pack."""
MOST_THREADS = 1024
MOST_SOUNDS = 10_000
"""The largest number of sound files in a folder."""
REMEDY = "Run the same sweep again to restore it."
_COLUMNS: Mapping[str, parquet.Kind] = {"condition": "text", "prompt": "text", "seed": "number", "failed": "truth"}
_METADATA = {
    "batch?": int,
    "batches?": [int, int],
    "plan?": (str, None),
    "threads?": int,
    "files?": {str: str},
    "codes?": [str],
    "levels?": {str: {"rms": [float], "entropy": [float]}},
}
"""The schema of the metadata in a file of rows."""
_NAME = re.compile(r"(\d{5,})(?:-(\d{5,}))?")
_CODES = {"I16": np.dtype("<i2"), "I32": np.dtype("<i4")}


@dataclass(frozen=True, order=True)
class Part:
    """The two files of a batch, or of a pack of neighbouring batches.

    Attributes:
        first, last: numbers of the first and the last batch. They are equal unless the files are those of a pack.
    """

    first: int
    last: int

    @property
    def is_pack(self) -> bool:
        return self.first < self.last

    @property
    def numbers(self) -> range:
        """The numbers of the batches."""
        return range(self.first, self.last + 1)

    @property
    def rows_file(self) -> str:
        return f"{BATCHES}/{self._name}.parquet"

    @property
    def codes_file(self) -> str:
        return f"{BATCHES}/{self._name}.safetensors"

    @property
    def _name(self) -> str:
        return f"{self.first:05d}-{self.last:05d}" if self.is_pack else f"{self.first:05d}"


def single(batch: int) -> Part:
    """Return the files of a batch that is not in a pack."""
    return Part(batch, batch)


def parts_of(folder: Path, suffix: str = ".parquet") -> list[Part]:
    """Return the parts of which a sweep's folder contains the file with this suffix, packs first, in order."""
    found = []
    with suppress(OSError):
        for name in os.listdir(folder / BATCHES):
            named = _NAME.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
            if named is not None:
                part = Part(int(named[1]), int(named[2] or named[1]))
                # Other names, such as a pack of more batches than a pack has, are not those of a sweep.
                if 0 <= part.last - part.first < MOST_CLIPS and name in (part.rows_file[8:], part.codes_file[8:]):
                    found.append(part)
    return sorted(found, key=lambda part: (not part.is_pack, part))


def finished(folder: Path) -> frozenset[int]:
    """Return the numbers of the finished batches."""
    return frozenset(number for part in parts_of(folder) for number in part.numbers)


def plans_of(folder: Path) -> dict[str, int]:
    """Map each plan hash found in a folder's intact batches to the number of torch threads recorded with it."""
    found: dict[str, int] = {}
    for part in parts_of(folder):
        path = folder / part.rows_file
        with suppress(DamagedError), _as_damage(path):
            facts = _facts(path, parquet.read_metadata(path, _content(path, sealed=True)))
            if isinstance(facts.get("plan"), str) and are_threads(facts.get("threads")):
                found[facts["plan"]] = facts["threads"]
    return found


def are_threads(value: object) -> bool:
    """Return whether a value is a plausible number of threads."""
    return type(value) is int and 1 <= value <= MOST_THREADS


def read_frame(path: Path, *, sealed: bool, rows: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows of a file, and the metadata that identify it.

    Raises:
        DamagedError: if the file is damaged or does not have this number of rows.
    """
    with _as_damage(path):
        table, metadata = parquet.read(path, _content(path, sealed), _COLUMNS, rows)
        return table, _facts(path, metadata)


def read_rows(path: Path, part: Part, plan: str, rows: int) -> tuple[pa.Table, dict[str, Any]]:
    """Return the rows of a part as an Arrow table, and its metadata.

    Raises:
        DamagedError: if the file is damaged, belongs to other batches or another sweep, or does not have this number of
            rows.
    """
    with _as_damage(path):
        table, metadata = parquet.read_arrow(path, _content(path, sealed=True), rows)
        facts = _facts(path, metadata)
    own = facts.get("batches") == [part.first, part.last] if part.is_pack else facts.get("batch") == part.first
    if facts.get("plan") != plan or not own:
        raise damaged(path, "it belongs to another batch or sweep")
    hashes = facts.get("codes", ()) if part.is_pack else part.numbers
    if not are_threads(facts.get("threads")) or "files" not in facts or len(hashes) != len(part.numbers):
        raise damaged(path, "it does not list its files")
    return table, facts


def frame_of(path: Path, table: pa.Table) -> pd.DataFrame:
    """Return rows that `read_rows` returned as a data frame.

    Raises:
        DamagedError: if columns are missing or have another type.
    """
    with _as_damage(path):
        return parquet.frame_of(path, table, _COLUMNS)


def codes_of(path: Path, content: bytes, rows: int) -> np.ndarray:
    """Return the codes in a file of a batch, "row codebook frame", as they are stored.

    Raises:
        DamagedError: if the bytes are not codes of this number of rows.
    """
    try:
        found = load(content)["codes"]
    except (SafetensorError, KeyError) as error:
        raise damaged(path, error) from None
    if found.dtype.kind != "i" or found.ndim != 3 or len(found) != rows:
        raise damaged(path, f"it contains {found.dtype} {found.shape}, expected codes of {rows} rows")
    return found


def codes_in(path: Path, rows: int, which: range, expected: str) -> np.ndarray:
    """Return some rows of the codes in a file of a pack, "row codebook frame", without reading the others.

    Args:
        rows: number of rows of the whole file.
        which: the rows to read.
        expected: the hash of their bytes.

    Raises:
        DamagedError: if the file is missing or has other rows, or if these rows are damaged.
    """
    with _as_damage(path):
        if not path.is_file():
            raise DamagedError(f"{path} is gone.")
        header = read_header(path)
        shape, kind = header.shapes.get("codes", ()), _CODES.get(header.dtypes.get("codes", ""))
        if kind is None or len(shape) != 3 or shape[0] != rows or len(header.shapes) > 1:
            raise InputError(f"it contains {dict(header.shapes)}, expected codes of {rows} rows")
        size = header.data_bytes // rows
        with open(path, "rb") as file:
            file.seek(which.start * size - header.data_bytes, os.SEEK_END)
            content = file.read(len(which) * size)
        if digest(content) != expected:
            raise DamagedError(f"{path} is damaged: it is not what was written.")
    return np.frombuffer(content, kind).reshape(len(which), *shape[1:])


def checked_content(path: Path, expected: str) -> bytes:
    """Return the bytes of a file, after checking them against a hash.

    Raises:
        DamagedError: if the file is missing or damaged.
    """
    with _as_damage(path):
        return check_bytes(path, expected)


def sound_file(row: int, rows: int, suffix: str) -> str:
    """Return the name of a row's sound file. A sweep of more than 10,000 rows has a folder for each 10,000 of them."""
    return f"{SOUND}/{'' if rows <= MOST_SOUNDS else f'{row // MOST_SOUNDS:03d}/'}{row:06d}.{suffix}"


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file of batches and sound in a sweep's folder, and whatever else has the name of one."""
    inside = [folder / BATCHES, folder / SOUND]
    while inside:
        with suppress(OSError), os.scandir(inside.pop()) as found:
            for entry in found:
                if entry.name.endswith(SUFFIXES):
                    yield entry
                elif entry.is_dir(follow_symlinks=False):
                    inside.append(Path(entry.path))


def small(codes: np.ndarray) -> np.ndarray:
    """Return the codes in the smallest integer type that can represent them."""
    return np.ascontiguousarray(codes, dtype=np.int16 if codes.max(initial=0) < 2**15 else np.int32)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return the inode, size and time of change of a file, or `None` if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def damaged(path: Path, reason: object) -> DamagedError:
    return DamagedError(f"{path} is damaged ({' '.join(str(reason).split())[:120]}). {REMEDY}")


def listed(numbers: Sequence[int]) -> str:
    """Return the numbers of batches for a message, such as "batches 3, 4, 5 and 61 more"."""
    shown = ", ".join(str(number) for number in numbers[:3])
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"batch{'es' if len(numbers) > 1 else ''} {shown}{more}"


def _content(path: Path, sealed: bool) -> bytes:
    content = content_of(path)
    if sealed:
        check_seal(path, content)
    return content


def _facts(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    stated = json_of(path, metadata.get(parquet.SEALED, b"{}").decode())
    refuse_other(path, stated, _METADATA)
    return stated


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """Raise every error of a file as a `DamagedError` that states the remedy."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{error} {REMEDY}") from None
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise damaged(path, str(error).removeprefix(f"{path} ").rstrip(".")) from None
