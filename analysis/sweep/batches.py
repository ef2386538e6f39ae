"""Store a sweep's finished batches and the table of all rows in its folder, and protect these files with hashes.

A batch is a Parquet file of its rows, a file of its codes and, if requested, sound files. In a large sweep, the files
of neighbouring batches are merged (`packing`). A file that has changed, or that belongs to another batch or sweep, is
detected when it is read (`batch_files`). `ledger` opens the sweep's folder.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors.numpy import save

from analysis.store import parquet
from analysis.store.resumable import UNHELD, Held, drop
from analysis.sweep import packing
from analysis.sweep.batch_files import (
    REMEDY,
    SOUND,
    Part,
    checked_content,
    codes_in,
    codes_of,
    damaged,
    frame_of,
    listed,
    parts_of,
    read_frame,
    read_rows,
    single,
    small,
    stamp,
)
from audiolens.errors import DamagedError, InputError, StoppedError
from audiolens.files.atomic import is_name, put, refused
from audiolens.files.integrity import check_files, content_of, digest

if TYPE_CHECKING:
    from audiolens.measure.failure import Levels

TABLE = "clips.parquet"
_T = TypeVar("_T")


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
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def done(self) -> frozenset[int]:
        """The numbers of the finished batches."""
        return frozenset(self._listed())

    def keep(
        self,
        batch: int,
        rows: pd.DataFrame,
        codes: np.ndarray,
        sounds: Mapping[str, bytes],
        levels: Levels | None = None,
    ) -> None:
        """Write a finished batch, and merge its group into a pack if it was the last one (`packing`).

        Args:
            rows: the rows of the table.
            codes: "row codebook frame".
            sounds: the sound files by name, such as "audio/000005.flac".
            levels: numbers of the rows with which other rows are compared, if they are baselines.

        Raises:
            StoppedError: if the folder was removed, or files in it have disappeared.
        """
        self.held.check()
        for place in sorted({(self.folder / name).parent for name in sounds}):
            with refused(place):
                place.mkdir(parents=True, exist_ok=True)
        own, stored = single(batch), small(codes)
        files = {**sounds, own.codes_file: save({"codes": stored})}
        held = {name: digest(content) for name, content in files.items()}
        facts: dict[str, Any] = {"batch": batch, "plan": self.plan, "threads": self.threads, "files": held}
        if levels is not None and np.isfinite([levels.rms, levels.entropy]).all():
            facts["levels"] = {str(batch): {"rms": levels.rms.tolist(), "entropy": levels.entropy.tolist()}}
        # The rows are written last, because they mark the batch as finished.
        files[own.rows_file] = parquet.sealed(rows, self.schema, facts)
        for name, content in files.items():
            put(self.folder / name, content)
        self.held.keep(*(self.folder / name for name in files))
        if "done" not in self._known:
            self._known["done"] = set(self.done)
        done: set[int] = self._known["done"]
        done.add(batch)
        group = self._group(batch, stored.nbytes // len(stored))
        if group is not None and done.issuperset(group.numbers):
            packing.merge(self, group)

    def rows(self, batch: int) -> pd.DataFrame:
        """Return the rows of a finished batch.

        Raises:
            DamagedError: if the file is damaged.
        """
        return next(self._frames([batch]))

    def codes(self, batch: int) -> np.ndarray:
        """Return the codes of a finished batch, "row codebook frame".

        Raises:
            DamagedError: if the file is damaged.
        """

        def read(part: Part) -> np.ndarray:
            if self.plan is None:
                path = self.folder / part.codes_file
                return codes_of(path, content_of(path), self.sizes[batch])
            return self.stored_codes(part, batch, self._facts(part))

        return self._from(batch, read).astype(np.int64)

    def levels(self, batch: int) -> Levels | None:
        """Return the numbers of a batch's rows with which other rows are compared, if they were stored.

        Raises:
            DamagedError: if the file is damaged.
        """
        from audiolens.measure.failure import Levels

        def read(part: Part) -> Levels | None:
            stored = None if self.plan is None else self._facts(part).get("levels", {}).get(str(batch))
            if stored is None:
                return None
            found = Levels(np.array(stored["rms"], dtype=float), np.array(stored["entropy"], dtype=float))
            if not len(found.rms) == len(found.entropy) == self.sizes[batch]:
                raise damaged(self.folder / part.rows_file, "its levels are not those of its rows")
            return found

        return self._from(batch, read)

    def stamp(self, batch: int) -> tuple[tuple[int, int, int] | None, ...]:
        """Return the inode, size and time of change of the files that `codes` reads, or `None` for a missing file."""
        part = self._placed(batch)
        return tuple(stamp(self.folder / name) for name in (part.rows_file, part.codes_file))

    def sound(self, file: str) -> bytes:
        """Return the bytes of a row's sound file, given the file's name in the table.

        Raises:
            DamagedError: if the file is damaged.
        """
        sounds, *names = file.split("/")
        if sounds != SOUND or len(names) not in (1, 2) or not all(is_name(name) for name in names):
            raise DamagedError(f"{self.folder}: the table lists {file!r}, which is not a sound file of this sweep.")
        if (batch := self.owner(file)) is None:
            raise damaged(self.folder / file, "it has no number of a row")
        if self.plan is None:
            return content_of(self.folder / file)
        return self._from(batch, lambda part: self._content(self._facts(part), file))

    def owner(self, file: str) -> int | None:
        """Return the number of the batch that a sound file belongs to, given its name."""
        name = Path(file).stem
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            return None
        batch = bisect_right(self._starts, int(name)) - 1
        return batch if batch < len(self.sizes) else None

    def check(self, batch: int) -> None:
        """Read every file of a finished batch and, if it is in a pack, of the pack.

        Raises:
            DamagedError: if a file is missing or damaged. The error names the first such file.
        """
        self._from(batch, self._check)

    def drop_damaged(self) -> None:
        """Remove damaged batches, with a warning for each, so that they are generated again.

        The intact batches of a damaged pack get files of their own.
        """
        # Whatever is left of a merge that was interrupted must not be checked, because it is in a pack.
        for packs in (True, False):
            for part in [part for part in self._parts() if part.is_pack == packs]:
                try:
                    self._check(part)
                except DamagedError as error:
                    damage = DamagedError(str(error).removesuffix(REMEDY).rstrip())
                    lost = packing.rescued(self, part) if part.is_pack else [part.first]
                    places = (self.folder / part.rows_file, self.folder / part.codes_file)
                    drop(listed(lost) if lost else "the pack", damage, *places, several=len(lost) > 1)
            if packs:
                packing.tidy(self.folder)

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
        return pd.concat(self._frames(done), ignore_index=True), done

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
                f"{self.folder / single(lost[0]).rows_file} is gone{more}: something removed finished batches. Run the "
                "same sweep again to restore them."
            )
        with suppress(DamagedError):
            self._whole_table()
            return
        rows = pd.concat(self._frames(range(len(self.sizes))), ignore_index=True)
        put(self.folder / TABLE, parquet.sealed(rows, self.schema, {"plan": self.plan}))

    def opened(self, part: Part) -> tuple[pa.Table, dict[str, Any]]:
        """Return the rows and the metadata of a part.

        Raises:
            DamagedError: if its file of rows is damaged.
        """
        assert self.plan is not None
        return read_rows(self.folder / part.rows_file, part, self.plan, self._rows_in(part))

    def stored_codes(self, part: Part, batch: int, facts: Mapping[str, Any]) -> np.ndarray:
        """Return the codes of one batch of a part as they are stored, given the part's metadata.

        Raises:
            DamagedError: if they are damaged.
        """
        path = self.folder / part.codes_file
        if not part.is_pack:
            return codes_of(path, self._content(facts, part.codes_file), self.sizes[batch])
        start = self._starts[batch] - self._starts[part.first]
        which = range(start, start + self.sizes[batch])
        return codes_in(path, self._rows_in(part), which, facts["codes"][batch - part.first])

    @cached_property
    def _starts(self) -> list[int]:
        """The number of the first row of each batch, and the number of all rows."""
        return np.cumsum([0, *self.sizes]).tolist()

    def _rows_in(self, part: Part) -> int:
        return self._starts[part.last + 1] - self._starts[part.first]

    def _parts(self) -> list[Part]:
        """The parts in the folder, packs first. The previous format had no packs."""
        found = (part for part in parts_of(self.folder) if part.last < len(self.sizes))
        return [part for part in found if self.plan is not None or not part.is_pack]

    def _listed(self) -> dict[int, Part]:
        """Map the number of every finished batch to the part that it is read from: its pack, if there is one."""
        index = {number: part for part in reversed(self._parts()) for number in part.numbers}
        self._known["index"] = index
        return index

    def _placed(self, batch: int) -> Part:
        index: Mapping[int, Part] = self._known.get("index", {})
        return index[batch] if batch in index else self._listed().get(batch, single(batch))

    def _from(self, batch: int, read: Callable[[Part], _T]) -> _T:
        """Return what `read` returns of the part that a batch is in.

        Another process can merge the batch at this moment, so that it is then in another part.
        """
        part = self._placed(batch)
        try:
            return read(part)
        except DamagedError:
            now = self._listed().get(batch, part)
            if now == part:
                raise
            return read(now)

    def _frames(self, numbers: Sequence[int]) -> Iterator[pd.DataFrame]:
        """Yield the rows of batches, which are in ascending order, part by part."""
        place = 0
        while place < len(numbers):
            frame, n = self._from(numbers[place], partial(self._frame, numbers, place))
            yield frame
            place += n

    def _frame(self, numbers: Sequence[int], place: int, part: Part) -> tuple[pd.DataFrame, int]:
        """Return the rows of neighbouring batches from a place on that a part contains, and the number of batches."""
        path, first = self.folder / part.rows_file, numbers[place]
        if self.plan is None:
            return read_frame(path, sealed=False, rows=self.sizes[first])[0], 1
        end = place + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1 <= part.last:
            end += 1
        start = self._starts[first] - self._starts[part.first]
        stop = self._starts[numbers[end - 1] + 1] - self._starts[part.first]
        return frame_of(path, self.opened(part)[0].slice(start, stop - start)), end - place

    def _facts(self, part: Part) -> dict[str, Any]:
        """Return the metadata of a part. Those of a pack are read only once, until its file changes."""
        now = part, stamp(self.folder / part.rows_file)
        if not part.is_pack or self._known.get("stamp") != now:
            table, facts = self.opened(part)
            frame_of(self.folder / part.rows_file, table)
            self._known.update(stamp=now, facts=facts)
        return self._known["facts"]

    def _check(self, part: Part) -> None:
        if self.plan is not None:
            table, facts = self.opened(part)
            frame_of(self.folder / part.rows_file, table)
            check_files(self.folder, facts["files"])

    def _content(self, facts: Mapping[str, Any], name: str) -> bytes:
        if (expected := facts["files"].get(name)) is None:
            raise damaged(self.folder / name, "its batch does not list it")
        return checked_content(self.folder / name, expected)

    def _group(self, batch: int, clip_bytes: int) -> Part | None:
        if self._known.get("clip_bytes") != clip_bytes:
            groups = packing.groups(self.sizes, clip_bytes) if self.plan is not None else []
            self._known.update(clip_bytes=clip_bytes, groups={one: group for group in groups for one in group.numbers})
        return self._known["groups"].get(batch)

    def _whole_table(self) -> pd.DataFrame:
        rows, facts = read_frame(self.folder / TABLE, sealed=self.plan is not None, rows=self._starts[-1])
        if self.plan is not None and facts.get("plan") != self.plan:
            raise damaged(self.folder / TABLE, "it belongs to another sweep")
        return rows
