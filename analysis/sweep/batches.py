"""Store a sweep's finished batches and the table of all rows in its folder, and protect these files with hashes.

A batch is a Parquet file of its rows, a file of its codes and, if requested, sound files. The Parquet file is written
last. It identifies the batch and the plan, and contains the hashes of its own bytes and of every other file of the
batch. A file that has changed, or that belongs to another batch or sweep, is therefore detected when it is read.
`ledger` opens the sweep's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analysis.store import parquet
from analysis.store.resumable import UNHELD, Held, drop
from audiolens.errors import DamagedError, InputError, StoppedError
from audiolens.files.atomic import is_name, put, refused
from audiolens.files.bounded import json_of
from audiolens.files.integrity import check_bytes, check_files, check_seal, content_of, digest
from audiolens.files.json_shapes import refuse_other

TABLE, BATCHES, SOUND = "clips.parquet", "batches", "audio"
MOST_THREADS = 1024
_COLUMNS: Mapping[str, parquet.Kind] = {"condition": "text", "prompt": "text", "seed": "number", "failed": "truth"}
_METADATA = {"batch?": int, "plan?": (str, None), "threads?": int, "files?": {str: str}}
"""The schema of the metadata in a file of rows."""


@dataclass(frozen=True)
class Batches:
    """The batches of one plan in a folder.

    Attributes:
        folder: the sweep's folder.
        sizes: number of rows of each batch of the plan.
        plan: the hash of the plan; `None` in folders of the previous format, whose files contain no hashes.
        threads: number of torch threads that the sweep was started with.
        schema, held: the schema of the whole table and the lock on the folder, if the folder is open for writing.
    """

    folder: Path
    sizes: tuple[int, ...]
    plan: str | None
    threads: int = 1
    schema: pa.Schema | None = None
    held: Held = UNHELD

    @property
    def done(self) -> frozenset[int]:
        """The numbers of the finished batches."""
        return finished(self.folder) & frozenset(range(len(self.sizes)))

    def keep(self, batch: int, rows: pd.DataFrame, codes: np.ndarray, sounds: Mapping[str, bytes]) -> None:
        """Write a finished batch: its rows, codes "row codebook frame", and sound files by name.

        Raises:
            StoppedError: if the folder was removed, or files in it have disappeared.
        """
        self.held.check()
        if sounds:
            with refused(self.folder / SOUND):
                (self.folder / SOUND).mkdir(exist_ok=True)
        files = {f"{SOUND}/{name}": content for name, content in sounds.items()}
        files[_codes_file(batch)] = save({"codes": small(codes)})
        held = {name: digest(content) for name, content in files.items()}
        facts = {"batch": batch, "plan": self.plan, "threads": self.threads, "files": held}
        # The rows are written last, because they mark the batch as finished.
        files[_rows_file(batch)] = parquet.sealed(rows, self.schema, facts)
        for name, content in files.items():
            put(self.folder / name, content)
        self.held.keep(*(self.folder / name for name in files))

    def rows(self, batch: int) -> pd.DataFrame:
        """Return the rows of a finished batch.

        Raises:
            DamagedError: if the file is damaged.
        """
        return self._opened(batch)[0]

    def codes(self, batch: int) -> np.ndarray:
        """Return the codes of a finished batch, "row codebook frame".

        Raises:
            DamagedError: if the file is damaged.
        """
        path = self.folder / _codes_file(batch)
        try:
            found = load(self._content(batch, _codes_file(batch)))["codes"]
        except (SafetensorError, KeyError, OSError) as error:
            raise _damaged(path, error) from None
        if found.dtype.kind != "i" or found.ndim != 3 or len(found) != self.sizes[batch]:
            raise _damaged(path, f"it contains {found.dtype} {found.shape}, expected codes of {self.sizes[batch]} rows")
        return found.astype(np.int64)

    def stamp(self, batch: int) -> tuple[tuple[int, int, int] | None, ...]:
        """Return the inode, size and time of change of the files that `codes` reads, or `None` for a missing file."""
        return tuple(_stamp(self.folder / name) for name in (_rows_file(batch), _codes_file(batch)))

    def sound(self, file: str) -> bytes:
        """Return the bytes of a row's sound file, given the file's name in the table.

        Raises:
            DamagedError: if the file is damaged.
        """
        sounds, _, name = file.partition("/")
        if sounds != SOUND or not is_name(name):
            raise DamagedError(f"{self.folder}: the table lists {file!r}, which is not a sound file of this sweep.")
        try:
            batch = int(np.searchsorted(np.cumsum(self.sizes), int(Path(name).stem), side="right"))
        except ValueError as error:
            raise _damaged(self.folder / file, error) from None
        return self._content(batch, file)

    def check(self, batch: int) -> None:
        """Read every file of a finished batch.

        Raises:
            DamagedError: if a file is missing or damaged. The error names the first such file.
        """
        if self.plan is not None:
            check_files(self.folder, self._opened(batch)[1].get("files"))

    def drop_damaged(self) -> None:
        """Remove damaged batches, with a warning for each, so that they are generated again."""
        for batch in sorted(self.done):
            try:
                self.check(batch)
            except DamagedError as error:
                damage = DamagedError(str(error).removesuffix(_REMEDY).rstrip())
                drop(f"batch {batch}", damage, self.folder / _rows_file(batch), self.folder / _codes_file(batch))

    def table(self) -> tuple[pd.DataFrame, tuple[int, ...]]:
        """Return the rows of all finished batches, and the numbers of these batches.

        Raises:
            InputError: if no batch is finished yet.
            DamagedError: if the table is damaged and cannot be rebuilt from the batches.
        """
        everything = tuple(range(len(self.sizes)))
        damage = None
        if (self.folder / TABLE).exists():
            try:
                return self._whole_table(), everything
            except DamagedError as error:
                damage = error
        done = tuple(sorted(self.done))
        if damage is not None and done != everything:
            raise damage
        if not done:
            raise InputError(f"{self.folder}: no batch is finished yet.")
        return pd.concat([self.rows(batch) for batch in done], ignore_index=True), done

    def close(self) -> None:
        """Write the whole table, unless it is already complete.

        Raises:
            StoppedError: if a finished batch is missing (an incomplete table is never written), or if the folder or
                files in it have disappeared.
        """
        self.held.check()
        lost = sorted(frozenset(range(len(self.sizes))) - self.done)
        if lost:
            more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise StoppedError(
                f"{self.folder / _rows_file(lost[0])} is gone{more}: something removed finished batches. Run the same "
                "sweep again to restore them."
            )
        with suppress(DamagedError):
            self._whole_table()
            return
        rows = pd.concat([self.rows(batch) for batch in range(len(self.sizes))], ignore_index=True)
        put(self.folder / TABLE, parquet.sealed(rows, self.schema, {"plan": self.plan}))

    def _whole_table(self) -> pd.DataFrame:
        rows, facts = _read(self.folder / TABLE, sealed=self.plan is not None, rows=sum(self.sizes))
        if self.plan is not None and facts.get("plan") != self.plan:
            raise _damaged(self.folder / TABLE, "it belongs to another sweep")
        return rows

    def _opened(self, batch: int) -> tuple[pd.DataFrame, dict[str, Any]]:
        path = self.folder / _rows_file(batch)
        rows, facts = _read(path, sealed=self.plan is not None, rows=self.sizes[batch])
        if self.plan is not None and (facts.get("plan"), facts.get("batch")) != (self.plan, batch):
            raise _damaged(path, "it belongs to another batch or sweep")
        if self.plan is not None and not (are_threads(facts.get("threads")) and _are_files(facts.get("files"))):
            raise _damaged(path, "it does not list its files")
        return rows, facts

    def _content(self, batch: int, name: str) -> bytes:
        path = self.folder / name
        if self.plan is None:
            return content_of(path)
        expected = self._opened(batch)[1].get("files", {}).get(name)
        if expected is None:
            raise _damaged(path, "its batch does not list it")
        try:
            return check_bytes(path, expected)
        except DamagedError as error:
            raise DamagedError(f"{error} {_REMEDY}") from None


_REMEDY = "Run the same sweep again to restore it."


def are_threads(value: object) -> bool:
    """Return whether a value is a plausible number of threads."""
    return type(value) is int and 1 <= value <= MOST_THREADS


def finished(folder: Path) -> frozenset[int]:
    """Return the numbers of the finished batches."""
    return frozenset(int(path.stem) for path in (folder / BATCHES).glob("*.parquet") if path.stem.isdigit())


def plans_of(folder: Path) -> dict[str, int]:
    """Map each plan hash found in a folder's intact batches to the number of torch threads recorded with it."""
    found: dict[str, int] = {}
    for batch in sorted(finished(folder)):
        with suppress(DamagedError):
            facts = _read(folder / _rows_file(batch), sealed=True)[1]
            if isinstance(facts.get("plan"), str) and are_threads(facts.get("threads")):
                found[facts["plan"]] = facts["threads"]
    return found


def small(codes: np.ndarray) -> np.ndarray:
    """Return the codes in the smallest integer type that can represent them."""
    return np.ascontiguousarray(codes, dtype=np.int16 if codes.max(initial=0) < 2**15 else np.int32)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _rows_file(batch: int) -> str:
    return f"{BATCHES}/{batch:05d}.parquet"


def _codes_file(batch: int) -> str:
    return f"{BATCHES}/{batch:05d}.safetensors"


def _read(path: Path, *, sealed: bool, rows: int | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows of a Parquet file, and the metadata that identify it.

    `rows` is the expected number of rows, if known.
    """
    try:
        content = content_of(path)
        if sealed:
            check_seal(path, content)
        found, facts = parquet.read(path, content, _COLUMNS, rows)
        stated = json_of(path, facts.get(parquet.SEALED, b"{}").decode())
        refuse_other(path, stated, _METADATA)
    except DamagedError as error:
        raise DamagedError(f"{error} {_REMEDY}") from None
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise _damaged(path, str(error).removeprefix(f"{path} ").rstrip(".")) from None
    return found, stated


def _are_files(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _damaged(path: Path, reason: object) -> DamagedError:
    return DamagedError(f"{path} is damaged ({' '.join(str(reason).split())[:120]}). {_REMEDY}")
