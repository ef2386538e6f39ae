"""Merge runs of finished batches of a sweep into packs, so that a large sweep does not leave very many files.

A plan's batches are divided into groups of neighbours, of at most 4,096 clips. Once all batches of a group are
finished, their rows are merged into one file and their codes into another (`batch_files`). The last group stays as it
is, so that small sweeps have no packs. Groups depend only on the plan and the size of a clip's codes, so the files of a
finished sweep do not depend on the order in which its batches were finished.

The file of a pack's rows is written last, and the files of its batches are removed only then. Whenever a process is
killed, every batch is therefore either in its own files or in a pack. `tidy` removes what is left over.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors.numpy import save

from analysis.store import parquet
from analysis.store.resumable import UNHELD, Held
from analysis.sweep import batch_files
from analysis.sweep.batch_files import BATCHES, Part, frame_of, parts_of, single
from audiolens.errors import DamagedError, DamageWarning
from audiolens.files.atomic import put, remove
from audiolens.files.bounded import read_header
from audiolens.files.integrity import check_files, digest
from audiolens.model.tokens import callers_level

if TYPE_CHECKING:
    from analysis.sweep.batches import Batches

MOST_BYTES = 2**27
"""The largest size of the codes in a pack."""


def groups(sizes: Sequence[int], clip_bytes: int) -> list[Part]:
    """Return the groups of batches that become packs, given the rows of each batch and the bytes of a clip's codes."""
    most = min(batch_files.MOST_CLIPS, MOST_BYTES // max(1, clip_bytes))
    found, first, rows = [], 0, 0
    for batch, size in enumerate(sizes):
        if rows + size > most:
            found.append(Part(first, batch - 1))
            first, rows = batch, 0
        rows += size
    return [group for group in found if group.is_pack]


def merge(batches: Batches, group: Part) -> None:
    """Merge the files of finished batches into those of a pack.

    If a file is damaged, a warning names it, and the batches keep their own files. The damaged batch is generated again
    when the sweep is resumed.
    """
    folder, parts = batches.folder, [single(batch) for batch in group.numbers]
    if not all((folder / part.rows_file).is_file() for part in parts):
        # Some are in a pack already, in a folder of a version with other groups.
        return
    try:
        opened = [batches.opened(part) for part in parts]
        frames = [frame_of(folder / part.rows_file, rows) for part, (rows, _) in zip(parts, opened, strict=True)]
        codes = [batches.stored_codes(part, part.first, facts) for part, (_, facts) in zip(parts, opened, strict=True)]
    except DamagedError as error:
        told = f"{error} Until then, {batch_files.listed(group.numbers)} keep files of their own."
        warnings.warn(DamageWarning(told), stacklevel=callers_level())
        return
    described = [facts for _, facts in opened]
    if len({facts["threads"] for facts in described}) > 1:
        # The metadata of a pack state one number.
        return
    joined = batch_files.small(np.concatenate(codes))
    bounds = np.cumsum([0, *(len(one) for one in codes)]).tolist()
    merged = save({"codes": joined})
    replaced = {part.codes_file for part in parts}
    sounds = {name: own for facts in described for name, own in facts["files"].items() if name not in replaced}
    levels = {number: own for facts in described for number, own in facts.get("levels", {}).items()}
    facts = {
        "batches": [group.first, group.last],
        "plan": batches.plan,
        "threads": described[0]["threads"],
        "files": {group.codes_file: digest(merged), **sounds},
        "codes": [digest(joined[start:stop].tobytes()) for start, stop in pairwise(bounds)],
        **({"levels": levels} if levels else {}),
    }
    rows = pd.concat(frames, ignore_index=True)
    schema = pa.unify_schemas([table.schema.remove_metadata() for table, _ in opened], promote_options="permissive")
    put(folder / group.codes_file, merged)
    # Once the rows are written, the pack is complete.
    put(folder / group.rows_file, parquet.sealed(rows, schema, facts))
    _sync(folder / BATCHES)
    batches.held.keep(folder / group.codes_file, folder / group.rows_file)
    for part in parts:
        _remove(folder, part, batches.held)


def merge_finished(batches: Batches) -> None:
    """Merge all groups whose batches are finished, as when a folder is opened in which they were not merged."""
    there = [part.first for part in parts_of(batches.folder) if not part.is_pack and part.last < len(batches.sizes)]
    if there:
        first = batches.folder / single(there[0]).codes_file
        clip_bytes = read_header(first).data_bytes // batches.sizes[there[0]]
        numbers = frozenset(there)
        for group in groups(batches.sizes, clip_bytes):
            if numbers.issuperset(group.numbers):
                merge(batches, group)


def tidy(folder: Path) -> None:
    """Remove what a process left that was killed while it merged: files of batches in a pack, and unfinished packs."""
    there = {*parts_of(folder)}
    packed = {number for part in there if part.is_pack for number in part.numbers}
    for part in {*there, *parts_of(folder, ".safetensors")}:
        if part.first in packed if not part.is_pack else part not in there:
            _remove(folder, part, UNHELD)


def rescued(batches: Batches, pack: Part) -> list[int]:
    """Give the intact batches of a damaged pack files of their own, and return the numbers of the others.

    If the rows of a pack are damaged, the pack is lost, because only they state what is intact.
    """
    folder, lost = batches.folder, []
    there = {part.first for part in parts_of(folder) if not part.is_pack}
    try:
        rows, facts = batches.opened(pack)
    except DamagedError:
        return [number for number in pack.numbers if number not in there]
    start, files = 0, dict[int | None, dict[str, str]]()
    for name, one in facts["files"].items():
        files.setdefault(batches.owner(name), {})[name] = one
    for number in pack.numbers:
        own, size, sounds = single(number), batches.sizes[number], files.get(number, {})
        try:
            codes = save({"codes": batches.stored_codes(pack, number, facts)})
            check_files(folder, sounds)
        except DamagedError:
            lost += [number] if number not in there else []
        else:
            levels = {str(number): facts["levels"][str(number)]} if str(number) in facts.get("levels", {}) else {}
            told = {
                **{"batch": number, "plan": batches.plan, "threads": facts["threads"]},
                "files": {**sounds, own.codes_file: digest(codes)},
                **({"levels": levels} if levels else {}),
            }
            put(folder / own.codes_file, codes)
            put(folder / own.rows_file, parquet.sealed_arrow(rows.slice(start, size), told))
        start += size
    return lost


def _remove(folder: Path, part: Part, held: Held) -> None:
    # The rows are removed first, because they mark a batch as finished.
    for name in (part.rows_file, part.codes_file):
        held.release(folder / name)
        remove(folder / name)


def _sync(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can, so that a power failure does not undo a new name."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
