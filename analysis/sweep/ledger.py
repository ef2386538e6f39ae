"""The ledger: a folder of finished batches, from which a sweep goes on after it was stopped at any moment.

`plan.json` comes first and says what is swept; batches follow (`batches`), each there or not. One process writes at a
time; the lock is the system's and ends with its process. A folder that holds links is refused before anything is
written, and one that loses batches meanwhile is not written to any more.

A folder goes on only with the very plan, weights and versions that it was begun with: rows drawn otherwise would not
pair up with those that are there. What is damaged in it is noticed and made again: a batch anew, the table from the
batches, a plan that is gone from the batches that were made by it.
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
"""The format before, without hashes: still read, not gone on with."""
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
"""Of the plan of a sweep."""


class AnotherSweepError(InputError):
    """A folder holds another sweep, or too little of one to tell which."""


@dataclass(frozen=True)
class Ledger:
    """An open folder: what was begun in it, and the batches that are finished.

    Attributes:
        folder: where it is.
        facts: what `plan.json` holds.
        schema: of the table that the batches make.
        held: the folder as this run holds it.
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
        """The numbers of the batches that are finished."""
        return self.batches.done

    def keep(self, batch: int, rows: pd.DataFrame, codes: np.ndarray, sounds: Mapping[str, bytes]) -> None:
        """Add a finished batch: its rows, its codes "row codebook frame", and files of sound by name.

        Raises:
            StoppedError: if the folder was removed, or lost what was in it.
        """
        self.held.check()
        if sounds:
            with refused(self.folder / SOUND):
                (self.folder / SOUND).mkdir(exist_ok=True)
        self.held.keep(*self.batches.keep(batch, rows, codes, sounds, self.schema))

    @property
    def codes_of_done(self) -> dict[int, Callable[[], np.ndarray]]:
        """What gives the codes of each finished batch."""
        return {batch: partial(self.batches.codes, batch) for batch in self.done}

    def close(self) -> None:
        """Write the whole table, unless it is there and whole.

        Raises:
            StoppedError: if the folder was removed, or lost what was in it.
        """
        self.held.check()
        self.batches.close(self.schema)


@contextmanager
def ledger(folder: str | os.PathLike[str], facts: Mapping[str, Any], labels: pd.DataFrame, heard: Sequence[str],
           need: int = 0) -> Iterator[Ledger]:  # fmt: skip
    """Open a folder to write batches into, begun here or before; no other process can until the block ends.

    Finished batches that are not what was written are removed, with a `DamageWarning`: they are to be made again.

    Args:
        folder: a new or empty place, or one that was begun with the same `facts`.
        facts: what is swept, as `facts_of` tells it.
        labels: of all rows: the first columns of the table.
        heard: the names of the other columns.
        need: bytes that all batches will take, about; refused at the door where the disk has less.

    Raises:
        InputError: if the folder holds something else or a sweep that these rows do not belong to, naming what
            differs, or cannot be written.
        BusyError: if another process is writing to it.
        StoppedError: from a write, if the folder was removed meanwhile, or lost what was in it.
    """
    place = as_path(folder)
    facts = _plain(facts)
    check(place)
    refuse_begun(place, facts)
    with held(place, "sweeping into this folder") as kept:
        with refused(place / BATCHES):
            (place / BATCHES).mkdir(exist_ok=True)
        # Again: it may have been begun while this process came to the lock.
        begun = refuse_begun(place, facts)
        for here in (place, place / BATCHES, place / SOUND):
            remove_unfinished(here)
        schema = _schema(labels, heard)
        there = batches_of(place, begun or facts)
        there.drop_damaged()
        missing = need * (1 - len(there.done) / max(1, len(facts["batches"])))
        free = shutil.disk_usage(place).free
        if missing > free:
            raise InputError(f"{place}: the sweep needs about {missing / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
                             "free. Free some, keep less sound, or choose another place.")  # fmt: skip
        if begun is None or not _says(place / PLAN, begun):
            put(place / PLAN, sealed_json(begun or facts))
        # After the damaged batches are gone, which this run is to make again.
        kept.keep(place / PLAN, place / BATCHES, place / SOUND)
        yield Ledger(place, begun or facts, schema, kept)


def facts_of(
    lens: AudioLens, conditions: Sequence[Condition], settings: Mapping[str, Any], **others: Any
) -> dict[str, Any]:
    """What a sweep's rows follow from, as plain values: versions, weights, settings, and hashes of what is done."""
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
    """What a folder goes on with: the plan that it was begun with, `None` where nothing was made by one.

    Raises:
        AnotherSweepError: naming the first thing that differs from these facts, or what is damaged.
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
        reason = "its plan says more or less than this one's"
    if reason is None:
        if plans and plan_hash(facts) not in plans:
            raise AnotherSweepError(f"{folder / BATCHES} is of another sweep than {PLAN}, which is this one's: remove "
                                    "it, and its batches are made again, or choose another folder.")  # fmt: skip
        if plans and begun["model"]["threads"] != plans[plan_hash(facts)]:
            return _replanned(facts, plans, f"{folder / PLAN} says other threads than its batches")
        return begun if made or (folder / TABLE).exists() else None
    if set(plans) == {plan_hash(facts)}:
        return _replanned(facts, plans, f"{folder / PLAN} is of another sweep than its batches")
    if made or (folder / TABLE).exists():
        raise AnotherSweepError(
            f"{folder} holds another sweep: {reason}. Choose another folder, or sweep as it was begun."
        )
    # Nothing was drawn by the plan that is there, so this one may take its place.
    return None


def _replanned(facts: dict[str, Any], plans: Mapping[str, int], damage: str) -> dict[str, Any]:
    """The plan of a folder that has lost it, if the batches there were made by it."""
    damage = damage.rstrip(".")
    if not plans:
        raise AnotherSweepError(
            f"{damage}, and no whole batch is left to tell what was swept: remove the folder, or choose another."
        )
    if set(plans) != {plan_hash(facts)}:
        raise AnotherSweepError(
            f"{damage}, and its batches are of another sweep: choose another folder, or sweep as it was begun."
        )
    warnings.warn(DamageWarning(f"{damage}: it is written again."), stacklevel=callers_level())
    return {**facts, "model": {**facts["model"], "threads": plans[plan_hash(facts)]}}


def _says(plan: Path, facts: Mapping[str, Any]) -> bool:
    try:
        return read_json(plan) == facts
    except (DamagedError, OSError):
        return False


def plan_hash(facts: Mapping[str, Any]) -> str:
    """A hash of what a sweep's rows follow from: all but the model's name, and threads, which a folder keeps."""
    model = {key: value for key, value in facts["model"].items() if key not in ("name", "threads")}
    return hashlib.sha256(json.dumps({**facts, "model": model}, sort_keys=True).encode()).hexdigest()


def batches_of(folder: Path, facts: Mapping[str, Any]) -> Batches:
    """The batches of a folder whose plan says these facts."""
    sealed = facts["format"] == FORMAT
    return Batches(folder, tuple(facts["batches"]), plan_hash(facts) if sealed else None, facts["model"]["threads"])


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As a file gives them back."""
    return json.loads(json.dumps(facts, default=str))


def read_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder's `plan.json` says.

    Raises:
        InputError: if there is none, or it is not of this version.
        DamagedError: if it is not what was written.
    """
    place = Path(folder)
    again = "The command that swept into this folder writes it again."
    try:
        begun = _begun(place)
    except DamagedError as error:
        raise DamagedError(f"{error} {again}") from None
    if begun is None:
        lost = f", though batches: it is gone. {again}" if finished(place) else "."
        raise InputError(f"{place} holds no sweep: there is no {PLAN} in it{lost}")
    if begun["format"] not in (FORMAT, UNSEALED):
        raise InputError(f"{place} holds a sweep of format {begun['format']}; this version reads {FORMAT}.")
    return begun


def threads_of(folder: str | os.PathLike[str]) -> int | None:
    """How many threads the sweep of a folder was begun with; `None` where none was begun."""
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
            f"condition {condition.name!r}: a folder cannot tell one function from another, so {type(step).__name__} "
            "with one is not resumed. Sweep it without out=."
        )
    return repr(value).encode()


def _measuring_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("librosa", "numpy", "scipy")}


def _begun(folder: Path) -> dict[str, Any] | None:
    """What `plan.json` says; `None` where there is none."""
    path = folder / PLAN
    try:
        found = read_json(path, former=(UNSEALED,))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError:
        _refuse_foreign(path)
        raise
    if not str(found.get("format", "")).startswith("audiolens.sweep."):
        # It has a hash of ours.
        raise DamagedError(f"{path} is damaged: it is not the plan of a sweep.")
    if found["format"] in (FORMAT, UNSEALED):
        try:
            json_shapes.refuse_other(path, found, _SHAPE)
            _refuse_sizes(path, found)
        except InputError as error:
            raise DamagedError(str(error)) from None
    return found


def _refuse_sizes(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse batches of other rows than the whole has, or of more than any sweep."""
    sizes = facts["batches"]
    if min(sizes, default=1) < 1 or sum(sizes) != facts["rows"] or facts["rows"] > MOST:
        raise InputError(f"{path} cannot be used: {len(sizes)} batches do not make {facts['rows']} rows.")
    if not are_threads(facts["model"]["threads"]):
        raise InputError(f"{path} cannot be used: it was begun with {facts['model']['threads']} threads.")
    if not RATES_HZ[0] <= facts["sample_rate"] <= RATES_HZ[1]:
        raise InputError(f"{path} cannot be used: its sample rate is {facts['sample_rate']} Hz.")


def _refuse_foreign(path: Path) -> None:
    """What can be read and never had a hash was not damaged: it is another program's."""
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
    """Refuse a place that no sweep can be written to, before anything is measured or generated.

    Raises:
        InputError: if it is a file, holds links or something else, or cannot be written.
    """
    check_in_place(folder)
    made = [path for part in (BATCHES, SOUND) for path in (folder / part).glob("*") if path.suffix in _SUFFIXES]
    refuse_misplaced([folder / PLAN, folder / TABLE, *made], [folder / BATCHES, folder / SOUND])
    if not folder.exists() or (folder / PLAN).is_file():
        return
    # What a process leaves that was killed before its plan was there.
    own = {BATCHES, LOCK}
    # Or its plan is gone: batches say whose they are, and without them no sound is there.
    if finished(folder):
        own |= {TABLE, SOUND}
    elif not made:
        own |= {SOUND}
    if any(entry.name not in own and not entry.name.startswith(UNFINISHED) for entry in folder.iterdir()):
        raise AnotherSweepError(f"{folder} exists and holds something other than a sweep: choose another folder.")


def _schema(labels: pd.DataFrame, heard: Sequence[str]) -> pa.Schema:
    """The types of the whole table, so that each batch has them, whatever it holds."""
    types: dict[str, pa.DataType] = {"onsets": pa.int64(), "failed": pa.bool_(), "file": pa.string()}
    try:
        known = pa.Schema.from_pandas(labels, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"a condition's labels cannot stand in a table: {error}. Use numbers and texts.") from None
    return pa.schema([*known, *((name, types.get(name, pa.float64())) for name in heard)])
