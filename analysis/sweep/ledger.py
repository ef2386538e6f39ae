"""Keep a sweep's finished batches in a folder, so that an interrupted sweep can be resumed.

`plan.json` describes the sweep (`planned`), and the batches are stored next to it (`batches`).
`analysis.store.resumable` contains the code that all resumable folders share. A sweep resumes only with the same plan,
weights and versions, because otherwise the new rows would not pair up with the finished ones. Damage is repaired: a
damaged batch is generated again, the table is rebuilt from the batches, and a missing plan is written again if the
batches match it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.store.resumable import OtherResultsError
from analysis.sweep import runs
from analysis.sweep.batch_files import BATCHES, SOUND, entries, finished, plans_of
from analysis.sweep.batches import TABLE, Batches
from analysis.sweep.config import FILE as CONFIG
from analysis.sweep.packing import merge_finished
from analysis.sweep.planned import ENGINES, PLAN, SWEEP, Used, difference, plan_hash, used_engine
from audiolens.checks import MOST
from audiolens.errors import DamagedError, DamageWarning, InputError
from audiolens.files.atomic import as_path, put
from audiolens.files.integrity import sealed_json
from audiolens.model.tokens import callers_level


@contextmanager
def ledger(folder: str | os.PathLike[str], facts: Mapping[str, Any], labels: pd.DataFrame, measured: Sequence[str],
           need: int = 0, config: str = "") -> Iterator[Batches]:  # fmt: skip
    """Open a new or existing folder to write batches into. No other process can open it until the block ends.

    Damaged batches are removed, with a `DamageWarning`, so that they are generated again.

    Args:
        folder: a new or empty folder, or one with a sweep of the same `facts`.
        facts: a description of the sweep, from `planned.facts_of`.
        labels: the labels of all rows, which are the first columns of the table.
        measured: the names of the other columns.
        need: approximate size of all batches in bytes. If the disk has less free space, an error is raised at the
            start.
        config: text to keep as `sweep.toml`. If it is empty, the file stays as it is.

    Raises:
        InputError: if the folder cannot be created or written to, or contains another sweep (the error names the
            difference) or anything other than a sweep.
        BusyError: if another process is writing to the folder.
        StoppedError: when writing, if the folder was removed, files in it have disappeared, or the disk is full.
    """
    place, facts = as_path(folder), _plain(facts)
    check(place)
    refuse_begun(place, facts)
    schema, n_batches = _schema(labels, measured), len(facts["batches"])
    # The labels of a large sweep take much memory, and the block can last for days.
    del labels

    def settled() -> dict[str, Any]:
        begun = refuse_begun(place, facts) or facts
        there = batches_of(place, begun)
        there.drop_damaged()
        missing, free = need * (1 - len(there.done) / max(1, n_batches)), shutil.disk_usage(place).free
        if missing > free:
            raise InputError(f"{place}: the sweep needs about {missing / 1e6:,.0f} MB, but only {free / 1e6:,.0f} "
                             "MB are free. Free some space, keep less sound, or choose another disk.")  # fmt: skip
        left = sorted(frozenset(range(n_batches)) - there.done)
        return runs.continued(begun, facts, left, place)

    with SWEEP.opened(place, settled, lambda: kept_of(place, n_batches)) as (lock, begun):
        # Damaged batches must be removed before this line, because this run generates them again.
        lock.keep(place / BATCHES, place / SOUND)
        if config:
            put(place / CONFIG, config.encode("utf-8"))
        batches = replace(batches_of(place, begun), schema=schema, held=lock)
        merge_finished(batches)
        yield batches


def refuse_begun(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the plan to resume in a folder, checked against `facts`, or `None` if nothing was generated there yet.

    Raises:
        OtherResultsError: if the folder does not match `facts`. The error names the first difference, or the damage.
    """
    facts = _plain(facts)
    path, own = folder / PLAN, plan_hash(facts)
    try:
        begun = SWEEP.read(folder)
        damage = f"{path} is gone"
    except DamagedError as error:
        begun, damage = None, str(error)
    plans = plans_of(folder)
    if begun is None:
        return _replanned(facts, plans, damage) if finished(folder) or path.exists() else None
    if (reason := difference(begun, facts)) is None:
        if plans and own not in plans:
            raise OtherResultsError(
                f"{path} is from this sweep, but {folder / BATCHES} is from another: remove it, so that the "
                "batches are generated again, or choose another folder."
            )
        if plans and begun["model"]["threads"] != plans[own]:
            return _replanned(facts, plans, f"{path} and the batches give different numbers of threads")
    elif set(plans) == {own}:
        return _replanned(facts, plans, f"{path} and the batches are of different sweeps")
    if not finished(folder) and not (folder / TABLE).exists():
        # Nothing was generated under the existing plan, so this one may replace it.
        return None
    SWEEP.refuse(folder, reason, "use the settings it was begun with.")
    # The first versions did not record the dtypes. With equal weights they are the same, so a resumed plan states them.
    own = {name: one for name, one in facts["model"].items() if name in begun["model"] or name.endswith("dtype")}
    return {**begun, "model": {**own, **begun["model"]}}


def _replanned(facts: dict[str, Any], plans: Mapping[str, int], damage: str) -> dict[str, Any]:
    """Restore the plan of a folder that has lost it, if the batches there match `facts`."""
    damage = damage.rstrip(".")
    if not plans:
        raise OtherResultsError(
            f"{damage}, and no intact batch is left to show what was swept: remove the folder, or choose another."
        )
    if set(plans) != {plan_hash(facts)}:
        raise OtherResultsError(
            f"{damage}, and its batches are of another sweep: choose another folder, or use that sweep's settings."
        )
    warnings.warn(DamageWarning(f"{damage}: it is written again."), stacklevel=callers_level())
    return {**facts, "model": {**facts["model"], "threads": plans[plan_hash(facts)]}}


def batches_of(folder: Path, facts: Mapping[str, Any]) -> Batches:
    """Return the batches of a folder with this plan."""
    sealed = facts["format"] == SWEEP.format
    return Batches(folder, tuple(facts["batches"]), plan_hash(facts) if sealed else None, facts["model"]["threads"])


def at_once_of(folder: str | os.PathLike[str]) -> int | None:
    """Return the number of rows of a batch that fitted in memory when a folder's sweep last ran; see `runs`."""
    return runs.at_once(read_facts(folder))


def note_run(kept: Batches, left: Sequence[int], **change: Any) -> None:
    """Record in the plan of an open folder how the batches that are left are generated; see `runs.changed`."""
    begun = read_facts(kept.folder)
    facts = runs.changed(begun, left, kept.folder, **change)
    if facts != begun:
        put(kept.folder / PLAN, sealed_json(facts))


def kept_of(folder: Path, n_batches: int) -> str:
    """Return a sentence about what a stopped sweep leaves in its folder, and how to resume the sweep."""
    return f"{len(finished(folder))} of {n_batches} batches are kept in {folder}; run the same sweep again to resume."


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts as they are after they have been written to JSON and read back."""
    return json.loads(json.dumps(facts, default=str))


def read_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a folder's `plan.json`.

    Raises:
        InputError: if there is no plan, or it has the format of another version.
        DamagedError: if the file is damaged.
    """
    place = Path(folder)
    again = "To restore it, repeat the command that wrote the sweep."
    try:
        begun = SWEEP.read(place)
    except DamagedError as error:
        raise DamagedError(f"{error} {again}") from None
    if begun is None:
        lost = f", only batches. {again}" if finished(place) else "."
        raise InputError(f"{place} contains no sweep: there is no {PLAN} in it{lost}")
    if begun["format"] not in (SWEEP.format, SWEEP.unsealed):
        raise InputError(f"{place} contains a sweep of format {begun['format']}; this version reads {SWEEP.format}.")
    return begun


def threads_of(folder: str | os.PathLike[str]) -> int | None:
    """Return the number of threads with which a folder's sweep was started, or `None` if there is no sweep."""
    place = Path(folder)
    plans = plans_of(place)
    with suppress(DamagedError):
        if (begun := SWEEP.read(place)) is not None and begun["format"] == SWEEP.format:
            return plans.get(plan_hash(begun), begun["model"]["threads"])
    return next(iter(plans.values()), None)


def engine_of(folder: str | os.PathLike[str], facts_with: Callable[[Used], Mapping[str, Any]]) -> Used | None:
    """Return the engine with which a folder's sweep was started, or `None` if nothing was generated there.

    Each batch names the hash of its plan, which covers the engine. The engine is therefore known even if the plan is
    lost. `facts_with` returns the facts of the present sweep with an engine.
    """
    place = Path(folder)
    if not finished(place):
        return None
    plans = plans_of(place)
    for engine in ENGINES:
        if plan_hash(_plain(facts_with(engine))) in plans:
            return engine
    with suppress(DamagedError):
        if (begun := SWEEP.read(place)) is not None:
            return used_engine(begun)
    return None


def check(folder: Path, rows: int = 0) -> None:
    """Check, before anything is generated, that a sweep of this many rows, if known, can be written to a folder.

    Raises:
        InputError: if the path is a file, if the folder contains links or anything other than a sweep, or cannot be
            written to, or if there are too many rows.
    """
    if rows > MOST:
        raise InputError(
            f"{rows:,} clips are too many for {folder}, which can hold {MOST:,}: sweep some of the conditions, or of "
            "the clips, in another folder."
        )
    made, others = False, []
    for entry in entries(folder):
        made = True
        if not entry.is_file(follow_symlinks=False):
            others.append(Path(entry.path))
    if SWEEP.check(folder, others):
        return
    # If the plan is missing, the batches still identify the sweep. There are no sound files without batches.
    own = (*SWEEP.files, SOUND) if finished(folder) else () if made else (SOUND,)
    if not SWEEP.holds_only(folder, BATCHES, *own):
        raise SWEEP.foreign(folder)


def _schema(labels: pd.DataFrame, measured: Sequence[str]) -> pa.Schema:
    """Return the column types of the whole table, so that every batch has the same types regardless of its content."""
    types: dict[str, pa.DataType] = {"onsets": pa.int64(), "failed": pa.bool_(), "file": pa.string()}
    try:
        known = pa.Schema.from_pandas(labels, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"a condition's labels do not fit in a table: {error}. Use numbers and strings.") from None
    return pa.schema([*known, *((name, types.get(name, pa.float64())) for name in measured)])
