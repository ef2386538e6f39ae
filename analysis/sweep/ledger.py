"""The ledger: a folder of finished batches, from which a sweep goes on after it was stopped at any moment.

`plan.json` comes first and says what is swept; a batch is a Parquet of its rows and a file of its codes, written beside
their places and renamed, the Parquet last: a batch is there or is not. Nothing is ever changed in place, so another
process may read meanwhile. One process writes at a time; the lock is the system's and ends with its process. A folder
that holds links is refused before anything is written, and one that loses batches meanwhile is not written to any more.

A folder goes on only with the very plan, weights and versions that it was begun with: rows drawn otherwise would not
pair up with those that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from analysis.folder import LOCK, Held, check_in_place, held
from analysis.sweep.conditions import Condition
from audiolens.bounded_files import read_header, read_json
from audiolens.errors import InputError
from audiolens.files import UNFINISHED as _UNFINISHED
from audiolens.files import as_path, refused, remove_unfinished
from audiolens.files import put as _put
from audiolens.interventions import Intervention
from audiolens.provenance import content_hash

FORMAT = "audiolens.sweep.1"
PLAN, TABLE, BATCHES, SOUND = "plan.json", "clips.parquet", "batches", "audio"


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
    def done(self) -> frozenset[int]:
        """The numbers of the batches that are finished."""
        return finished(self.folder)

    def keep(self, batch: int, rows: pd.DataFrame, codes: np.ndarray, sounds: Mapping[str, bytes]) -> None:
        """Add a finished batch: its rows, its codes "row codebook frame", and files of sound by name.

        Raises:
            StoppedError: if the folder was removed, or lost what was in it.
        """
        self.held.check()
        if sounds:
            with refused(self.folder / SOUND):
                (self.folder / SOUND).mkdir(exist_ok=True)
        for name, content in sounds.items():
            _put(self.folder / SOUND / name, content)
        _put(_codes_file(self.folder, batch), save({"codes": small(codes)}))
        # Last: with it the batch is there.
        _put(_rows_file(self.folder, batch), _parquet(rows, self.schema))
        self.held.keep(*(self.folder / SOUND / name for name in sounds))
        self.held.keep(_codes_file(self.folder, batch), _rows_file(self.folder, batch))

    @property
    def codes_of_done(self) -> dict[int, Callable[[], np.ndarray]]:
        """What gives the codes of each finished batch."""
        return {batch: partial(read_codes, self.folder, batch) for batch in self.done}

    def close(self) -> pd.DataFrame:
        """Write the whole table, if it is not there yet, and return it."""
        self.held.check()
        if not (self.folder / TABLE).is_file():
            rows = read_rows(self.folder, sorted(self.done))
            _put(self.folder / TABLE, _parquet(rows, self.schema))
        return read_table(self.folder)


@contextmanager
def ledger(folder: str | os.PathLike[str], facts: Mapping[str, Any], labels: pd.DataFrame, heard: Sequence[str],
           need: int = 0) -> Iterator[Ledger]:  # fmt: skip
    """Open a folder to write batches into, begun here or before; no other process can until the block ends.

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
        if not finished(place):
            # Nothing was drawn by the plan that is there, so this one may take its place.
            begun = None
        for here in (place, place / BATCHES, place / SOUND):
            remove_unfinished(here)
        schema = _schema(labels, heard)
        missing = need * (1 - len(finished(place)) / max(1, len(facts["batches"])))
        free = shutil.disk_usage(place).free
        if missing > free:
            raise InputError(f"{place}: the sweep needs about {missing / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
                             "free. Free some, keep less sound, or choose another place.")  # fmt: skip
        if begun is None:
            _put(place / PLAN, json.dumps(facts, indent=1).encode())
        kept.keep(place / PLAN, place / BATCHES, place / SOUND)
        yield Ledger(place, begun or facts, schema, kept)


def facts_of(lens: Any, conditions: Sequence[Condition], settings: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """What a sweep's rows follow from, as plain values: versions, weights, settings, and hashes of what is done."""
    from audiolens import provenance

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
    """What a folder was begun with, if it was; raise unless that is these facts.

    Raises:
        InputError: naming the first thing that differs.
    """
    begun = _begun(folder)
    reason = None if begun is None else _difference(begun, _plain(facts))
    if reason is not None and finished(folder):
        raise InputError(f"{folder} holds another sweep: {reason}. Choose another folder, or sweep as it was begun.")
    return begun


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As a file gives them back."""
    return json.loads(json.dumps(facts, default=str))


def read_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder's `plan.json` says.

    Raises:
        InputError: if there is none, or it is not of this version.
    """
    place = Path(folder)
    begun = _begun(place)
    if begun is None:
        raise InputError(f"{place} holds no sweep: there is no {PLAN} in it.")
    if begun["format"] != FORMAT:
        raise InputError(f"{place} holds a sweep of format {begun['format']}; this version reads {FORMAT}.")
    return begun


def threads_of(folder: str | os.PathLike[str]) -> int | None:
    """How many threads the sweep of a folder was begun with; `None` where none was begun."""
    begun = _begun(Path(folder))
    return None if begun is None else begun.get("model", {}).get("threads")


def finished(folder: Path) -> frozenset[int]:
    """The numbers of the batches that are there."""
    return frozenset(int(path.stem) for path in (folder / BATCHES).glob("*.parquet") if path.stem.isdigit())


def read_table(folder: Path) -> pd.DataFrame:
    """The rows of a folder, those of the finished batches while it is not whole."""
    if (folder / TABLE).is_file():
        return _read(folder / TABLE)
    done = sorted(finished(folder))
    return read_rows(folder, done)


def read_rows(folder: Path, batches: Sequence[int]) -> pd.DataFrame:
    """The rows of some batches, one below the other."""
    if not batches:
        raise InputError(f"{folder}: no batch is finished yet.")
    return pd.concat([_read(_rows_file(folder, batch)) for batch in batches], ignore_index=True)


def read_codes(folder: Path, batch: int) -> np.ndarray:
    """The codes of a finished batch: row codebook frame."""
    path = _codes_file(folder, batch)
    try:
        read_header(path)
        return load_file(path)["codes"].astype(np.int64)
    except (OSError, InputError, SafetensorError, KeyError) as error:
        raise _damaged(path, batch, error) from None


def n_rows(folder: Path, batch: int) -> int:
    """How many rows a finished batch has."""
    return pq.read_metadata(_rows_file(folder, batch)).num_rows


def small(codes: np.ndarray) -> np.ndarray:
    """Codes in as few bytes as hold them."""
    return np.ascontiguousarray(codes, dtype=np.int16 if codes.max(initial=0) < 2**15 else np.int32)


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


def _difference(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """The first thing that differs, in words; what only names or times things is left out."""
    if begun.get("format") != facts["format"]:
        return f"it is of format {begun.get('format')}, and this version writes {facts['format']}"
    for section, told in (("versions", "version of {}"), ("settings", "{}")):
        for name in {**begun[section], **facts[section]}:
            there, here = begun[section].get(name), facts[section].get(name)
            if there != here:
                return f"it was begun with {told.format(name)} {_short(there)}, and this one has {_short(here)}"
    if begun["model"]["weights"] != facts["model"]["weights"]:
        return f"it was begun with other weights ({begun['model']['name']!r}, this is {facts['model']['name']!r})"
    for name in ("device", "attention"):
        if begun["model"][name] != facts["model"][name]:
            return f"it was begun with {name} {begun['model'][name]}, and this is {facts['model'][name]}"
    there, here = begun["conditions"], facts["conditions"]
    for one, other, words in ((there, here, "has a condition that this one lacks"), (here, there, "lacks a condition")):
        missing = [name for name in one if name not in other]
        if missing:
            return f"it {words}: {missing[0]!r}, and {len(missing) - 1} more"
    changed = [name for name in there if there[name] != here[name]]
    if changed:
        return f"other vectors are added in its condition {changed[0]!r}, and {len(changed) - 1} more"
    if list(there) != list(here):
        return "its conditions come in another order"
    for name in ("clips", "asked", "batches"):
        if begun.get(name) != facts.get(name):
            return f"its {name} are others"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _measuring_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("librosa", "numpy", "scipy")}


def _begun(folder: Path) -> dict[str, Any] | None:
    path = folder / PLAN
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not str(found.get("format", "")).startswith("audiolens.sweep."):
        raise InputError(f"{path} is not the plan of a sweep: choose another folder.")
    return found


def check(folder: Path) -> None:
    """Refuse a place that no sweep can be written to, before anything is measured or generated.

    Raises:
        InputError: if it is a file, holds links or something else, or cannot be written.
    """
    check_in_place(folder)
    if not folder.exists() or (folder / PLAN).is_file():
        return
    # What a process leaves that was killed before its plan was there.
    own = {BATCHES, LOCK}
    if any(entry.name not in own and not entry.name.startswith(_UNFINISHED) for entry in folder.iterdir()):
        raise InputError(f"{folder} exists and holds something other than a sweep: choose another folder.")


def _schema(labels: pd.DataFrame, heard: Sequence[str]) -> pa.Schema:
    """The types of the whole table, so that each batch has them, whatever it holds."""
    types: dict[str, pa.DataType] = {"onsets": pa.int64(), "failed": pa.bool_(), "file": pa.string()}
    try:
        known = pa.Schema.from_pandas(labels, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"a condition's labels cannot stand in a table: {error}. Use numbers and texts.") from None
    return pa.schema([*known, *((name, types.get(name, pa.float64())) for name in heard)])


def _parquet(rows: pd.DataFrame, schema: pa.Schema) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False), buffer)
    return buffer.getvalue().to_pybytes()


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, path.stem, error) from None


def _damaged(path: Path, batch: object, error: Exception) -> InputError:
    told = " ".join(str(error).split())[:120]
    return InputError(f"{path} is damaged ({told}): remove {path.parent.name}/{batch}.* and sweep again to remake it.")


def _rows_file(folder: Path, batch: int) -> Path:
    return folder / BATCHES / f"{batch:05d}.parquet"


def _codes_file(folder: Path, batch: int) -> Path:
    return folder / BATCHES / f"{batch:05d}.safetensors"
