"""Keep a sweep's finished batches in a folder, so that the sweep can resume after a stop at any moment.

`plan.json` is written first and states what is swept. The batches (`batches`) follow, each of them complete or absent.
One process writes at a time; the operating system releases the lock when that process ends. A folder that contains
links is refused before anything is written. If a folder loses batches during a run, nothing more is written to it.

A sweep resumes only with the same plan, weights and versions, because other rows would not pair up with the finished
ones. Damage is detected and repaired: a damaged batch is generated again, the table is rebuilt from the batches, and a
missing plan is written again if the batches match it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from analysis.store.folder import LOCK, Held, check_in_place, held
from analysis.sweep.batches import BATCHES, SOUND, TABLE, UNFINISHED, Batches, finished, plans_of
from analysis.sweep.conditions import Condition
from analysis.sweep.planned import are_threads, difference
from audiolens.checks import MOST, RATES_HZ
from audiolens.errors import DamagedError, DamageWarning, InputError
from audiolens.files import bounded, json_shapes
from audiolens.files.atomic import as_path, put, refuse_misplaced, refused, remove_unfinished
from audiolens.files.integrity import SEAL, read_json, sealed_json
from audiolens.interventions import Intervention
from audiolens.lens import AudioLens
from audiolens.model.tokens import callers_level
from audiolens.model.weight_hash import content_hash

FORMAT = "audiolens.sweep.2"
UNSEALED = "audiolens.sweep.1"
"""The previous format, which has no hashes. Such a sweep can be read but not resumed."""
PLAN = "plan.json"
_SUFFIXES = (".parquet", ".safetensors", ".flac", ".wav")
_SHAPE = {
    "format": str,
    "versions": {str: str},
    "model": {"name": str, "weights": str, "device": str, "attention": str, "threads": int},
    "settings": {"measures": [str], "also": [str]},
    "conditions": {str: str},
    "sample_rate": int,
    "rows": int,
    "batches": [int],
}
"""The schema of a plan in JSON."""


class AnotherSweepError(InputError):
    """The folder holds another sweep, or too little of a sweep to identify it."""


@dataclass(frozen=True)
class Ledger:
    """An open sweep folder with its plan and finished batches.

    Attributes:
        folder: the sweep's folder.
        facts: the contents of `plan.json`.
        schema: the schema of the whole table.
        held: the lock that this run holds on the folder.
    """

    folder: Path
    facts: Mapping[str, Any]
    schema: pa.Schema
    held: Held

    @property
    def batches(self) -> Batches:
        return batches_of(self.folder, self.facts)

    @property
    def done(self) -> frozenset[int]:
        """The numbers of the finished batches."""
        return self.batches.done

    def keep(self, batch: int, rows: pd.DataFrame, codes: np.ndarray, sounds: Mapping[str, bytes]) -> None:
        """Write a finished batch: its rows, codes "row codebook frame", and sound files by name.

        Raises:
            StoppedError: if the folder was removed, or files in it have disappeared.
        """
        self.held.check()
        if sounds:
            with refused(self.folder / SOUND):
                (self.folder / SOUND).mkdir(exist_ok=True)
        self.held.keep(*self.batches.keep(batch, rows, codes, sounds, self.schema))

    @property
    def codes_of_done(self) -> dict[int, Callable[[], np.ndarray]]:
        """For each finished batch, a function that reads its codes."""
        return {batch: partial(self.batches.codes, batch) for batch in self.done}

    def close(self) -> None:
        """Write the whole table, unless it is already complete.

        Raises:
            StoppedError: if the folder was removed, or files in it have disappeared.
        """
        self.held.check()
        self.batches.close(self.schema)


@contextmanager
def ledger(folder: str | os.PathLike[str], facts: Mapping[str, Any], labels: pd.DataFrame, measured: Sequence[str],
           need: int = 0) -> Iterator[Ledger]:  # fmt: skip
    """Open a new or existing folder to write batches into. No other process can open it until the block ends.

    Damaged batches are removed, with a `DamageWarning`, so that they are made again.

    Args:
        folder: a new or empty folder, or one with a sweep of the same `facts`.
        facts: a description of the sweep, from `facts_of`.
        labels: the labels of all rows, which are the first columns of the table.
        measured: the names of the other columns.
        need: approximate size of all batches in bytes. If the disk has less space, the sweep is refused at the start.

    Raises:
        InputError: if the folder holds something else, or another sweep (the error names the difference), or cannot be
            written.
        BusyError: if another process is writing to it.
        StoppedError: when writing, if the folder was removed or files in it have disappeared.
    """
    place = as_path(folder)
    facts = _plain(facts)
    check(place)
    refuse_begun(place, facts)
    with held(place, "sweeping into this folder") as kept:
        with refused(place / BATCHES):
            (place / BATCHES).mkdir(exist_ok=True)
        # Check again: another process may have started a sweep before this one got the lock.
        begun = refuse_begun(place, facts)
        for here in (place, place / BATCHES, place / SOUND):
            remove_unfinished(here)
        schema = _schema(labels, measured)
        there = batches_of(place, begun or facts)
        there.drop_damaged()
        missing = need * (1 - len(there.done) / max(1, len(facts["batches"])))
        free = shutil.disk_usage(place).free
        if missing > free:
            raise InputError(f"{place}: the sweep needs about {missing / 1e6:,.0f} MB, but only {free / 1e6:,.0f} "
                             "MB are free. Free some space, keep less sound, or choose another disk.")  # fmt: skip
        if begun is None or not _says(place / PLAN, begun):
            put(place / PLAN, sealed_json(begun or facts))
        # This comes after damaged batches are removed, because this run makes them again.
        kept.keep(place / PLAN, place / BATCHES, place / SOUND)
        yield Ledger(place, begun or facts, schema, kept)


def facts_of(
    lens: AudioLens, conditions: Sequence[Condition], settings: Mapping[str, Any], **others: Any
) -> dict[str, Any]:
    """Everything that a sweep's rows depend on, as plain values: versions, weights, settings and condition hashes."""
    from audiolens.model import provenance

    times = np.arange(round(settings["seconds"] * lens.config.frame_rate)) / lens.config.frame_rate
    return {
        "format": FORMAT,
        "versions": {**provenance.versions(), **_measuring_versions()},
        "model": {
            "name": lens.name,
            "weights": content_hash(lens.model),
            "device": lens.device.type,
            "attention": str(getattr(lens.model.config, "_attn_implementation", None)),
            "threads": torch.get_num_threads(),
        },
        "settings": dict(settings),
        "conditions": {one.name: _condition_hash(one, times) for one in conditions},
        **others,
    }


def refuse_begun(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan to resume in a folder, checked against `facts`; `None` if nothing has been generated there yet.

    Raises:
        AnotherSweepError: if the folder does not match `facts`. The error names the first difference, or the damage.
    """
    facts = _plain(facts)
    try:
        begun = _begun(folder)
        damage = f"{folder / PLAN} is gone"
    except DamagedError as error:
        begun, damage = None, str(error)
    made, plans = finished(folder), plans_of(folder)
    if begun is None:
        if made or (folder / PLAN).exists():
            return _replanned(facts, plans, damage)
        return None
    reason = difference(begun, facts)
    if reason is None and plan_hash(begun) != plan_hash(facts):
        reason = "its plan has other entries than this one"
    if reason is None:
        if plans and plan_hash(facts) not in plans:
            raise AnotherSweepError(
                f"{folder / PLAN} is from this sweep, but {folder / BATCHES} is from another: remove it, and its "
                "batches are made again, or choose another folder."
            )
        if plans and begun["model"]["threads"] != plans[plan_hash(facts)]:
            return _replanned(facts, plans, f"{folder / PLAN} gives another number of threads than its batches")
        return begun if made or (folder / TABLE).exists() else None
    if set(plans) == {plan_hash(facts)}:
        return _replanned(facts, plans, f"{folder / PLAN} and the batches are of different sweeps")
    if made or (folder / TABLE).exists():
        raise AnotherSweepError(
            f"{folder} holds another sweep: {reason}. Choose another folder, or use the settings it was begun with."
        )
    # Nothing was generated under the existing plan, so this one may replace it.
    return None


def _replanned(facts: dict[str, Any], plans: Mapping[str, int], damage: str) -> dict[str, Any]:
    """Restore the plan of a folder that has lost it, if the batches there match `facts`."""
    damage = damage.rstrip(".")
    if not plans:
        raise AnotherSweepError(
            f"{damage}, and no intact batch is left to show what was swept: remove the folder, or choose another."
        )
    if set(plans) != {plan_hash(facts)}:
        raise AnotherSweepError(
            f"{damage}, and its batches are of another sweep: choose another folder, or use that sweep's settings."
        )
    warnings.warn(DamageWarning(f"{damage}: it is written again."), stacklevel=callers_level())
    return {**facts, "model": {**facts["model"], "threads": plans[plan_hash(facts)]}}


def _says(plan: Path, facts: Mapping[str, Any]) -> bool:
    try:
        return read_json(plan) == facts
    except (DamagedError, OSError):
        return False


def plan_hash(facts: Mapping[str, Any]) -> str:
    """A hash of everything that a sweep's rows depend on: all facts except the model's name and number of threads."""
    model = {key: value for key, value in facts["model"].items() if key not in ("name", "threads")}
    return hashlib.sha256(json.dumps({**facts, "model": model}, sort_keys=True).encode()).hexdigest()


def batches_of(folder: Path, facts: Mapping[str, Any]) -> Batches:
    """The batches of a folder with this plan."""
    sealed = facts["format"] == FORMAT
    return Batches(folder, tuple(facts["batches"]), plan_hash(facts) if sealed else None, facts["model"]["threads"])


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in the form in which JSON returns them."""
    return json.loads(json.dumps(facts, default=str))


def read_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a folder's `plan.json`.

    Raises:
        InputError: if there is no plan, or it has the format of another version.
        DamagedError: if the file is damaged.
    """
    place = Path(folder)
    again = "Run the command that swept into this folder again to restore it."
    try:
        begun = _begun(place)
    except DamagedError as error:
        raise DamagedError(f"{error} {again}") from None
    if begun is None:
        lost = f", only batches. {again}" if finished(place) else "."
        raise InputError(f"{place} holds no sweep: there is no {PLAN} in it{lost}")
    if begun["format"] not in (FORMAT, UNSEALED):
        raise InputError(f"{place} holds a sweep of format {begun['format']}; this version reads {FORMAT}.")
    return begun


def threads_of(folder: str | os.PathLike[str]) -> int | None:
    """The number of threads that a folder's sweep was started with; `None` if there is no sweep."""
    place = Path(folder)
    try:
        begun = _begun(place)
    except DamagedError:
        begun = None
    plans = plans_of(place)
    if begun is None or begun["format"] != FORMAT:
        return next(iter(plans.values()), None)
    return plans.get(plan_hash(begun), begun["model"]["threads"])


def _condition_hash(condition: Condition, times: np.ndarray) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([dict(condition.labels), condition.reseed], default=str, sort_keys=True).encode())
    for step in condition.interventions:
        digest.update(type(step).__name__.encode())
        for entry in fields(step):
            if entry.name == "meta":
                # The origin of a vector does not affect how it is used.
                continue
            digest.update(f"{entry.name}=".encode())
            digest.update(_bytes(condition, step, entry.name, times))
    return digest.hexdigest()[:16]


def _bytes(condition: Condition, step: Intervention, name: str, times: np.ndarray) -> bytes:
    value: Any = getattr(step, name)
    if callable(value) and name == "schedule":
        schedule: Callable[[float], Any] = value
        value = torch.tensor([float(schedule(float(time))) for time in times], dtype=torch.float32, device="cpu")
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}".encode() + value.detach().cpu().double().contiguous().numpy().tobytes()
    if callable(value):
        raise InputError(
            f"condition {condition.name!r}: a folder cannot identify a function, so {type(step).__name__} with a "
            "function cannot be resumed. Sweep it without out=."
        )
    return repr(value).encode()


def _measuring_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("librosa", "numpy", "scipy")}


def _begun(folder: Path) -> dict[str, Any] | None:
    """The contents of `plan.json`; `None` if there is none."""
    path = folder / PLAN
    try:
        found = read_json(path, former=(UNSEALED,))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError:
        _refuse_foreign(path)
        raise
    if not str(found.get("format", "")).startswith("audiolens.sweep."):
        # The file has a hash of the kind that audiolens writes, so it is damaged rather than foreign.
        raise DamagedError(f"{path} is damaged: it is not the plan of a sweep.")
    if found["format"] in (FORMAT, UNSEALED):
        try:
            json_shapes.refuse_other(path, found, _SHAPE)
            _refuse_sizes(path, found)
        except InputError as error:
            raise DamagedError(str(error)) from None
    return found


def _refuse_sizes(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a plan whose batch sizes do not add up to its rows, or whose threads or sample rate are out of range."""
    sizes = facts["batches"]
    if min(sizes, default=1) < 1 or sum(sizes) != facts["rows"] or facts["rows"] > MOST:
        raise InputError(f"{path} cannot be used: {len(sizes)} batches do not add up to {facts['rows']} rows.")
    if not are_threads(facts["model"]["threads"]):
        raise InputError(f"{path} cannot be used: it was begun with {facts['model']['threads']} threads.")
    if not RATES_HZ[0] <= facts["sample_rate"] <= RATES_HZ[1]:
        raise InputError(f"{path} cannot be used: its sample rate is {facts['sample_rate']} Hz.")


def _refuse_foreign(path: Path) -> None:
    """Refuse a readable file that never had a hash. It is not damaged, but was written by another program."""
    try:
        found = bounded.read_json(path)
    except InputError:
        return
    ours = isinstance(found, dict) and (SEAL in found or str(found.get("format", "")).startswith("audiolens."))
    if not ours:
        raise _foreign(path)


def _foreign(path: Path) -> InputError:
    return AnotherSweepError(f"{path} is not the plan of a sweep: choose another folder.")


def check(folder: Path) -> None:
    """Check, before anything is generated, that a sweep can be written to a folder.

    Raises:
        InputError: if the path is a file, or if the folder contains links, holds something else, or cannot be written.
    """
    check_in_place(folder)
    made = [path for part in (BATCHES, SOUND) for path in (folder / part).glob("*") if path.suffix in _SUFFIXES]
    refuse_misplaced([folder / PLAN, folder / TABLE, *made], [folder / BATCHES, folder / SOUND])
    if not folder.exists() or (folder / PLAN).is_file():
        return
    # This was left by a process that was killed before it wrote its plan.
    own = {BATCHES, LOCK}
    # If the plan is missing, the batches still identify the sweep. There are no sound files without batches.
    if finished(folder):
        own |= {TABLE, SOUND}
    elif not made:
        own |= {SOUND}
    if any(entry.name not in own and not entry.name.startswith(UNFINISHED) for entry in folder.iterdir()):
        raise AnotherSweepError(f"{folder} exists and holds something other than a sweep: choose another folder.")


def _schema(labels: pd.DataFrame, measured: Sequence[str]) -> pa.Schema:
    """The column types of the whole table, so that every batch has the same types regardless of its content."""
    types: dict[str, pa.DataType] = {"onsets": pa.int64(), "failed": pa.bool_(), "file": pa.string()}
    try:
        known = pa.Schema.from_pandas(labels, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"a condition's labels do not fit in a table: {error}. Use numbers and strings.") from None
    return pa.schema([*known, *((name, types.get(name, pa.float64())) for name in measured)])
