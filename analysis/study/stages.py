"""Stages: what a study has finished, kept in its folder under a hash of all that it follows from.

`study.json` says what the folder is a study of. A stage lies in `stages/NAME-KEY` as safetensors, Parquet and JSON with
a manifest of their hashes (a sweep: as `analysis.sweep.ledger` keeps it), made beside its place and renamed: it is
there whole or not at all, and made again if a byte of it changed. The key is a hash of weights, versions, the code
that makes it, and what it was asked; the same call takes it as it is, and another one makes its own beside it. One
process writes at a time; the lock is the system's and ends with its process. A folder that holds links is refused
before anything is written, and one that loses stages meanwhile is not written to any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from safetensors import SafetensorError
from soundfile import LibsndfileError

import analysis
import audiolens
from analysis.store.folder import LOCK, UNSEALED_STUDY, Held, check_in_place, disk_is_full, held, is_study
from audiolens.errors import DamagedError, DamageWarning, InputError, StoppedError
from audiolens.files.atomic import (
    UNFINISHED,
    as_path,
    new_folder,
    put,
    refuse_misplaced,
    refused,
    remove,
    remove_unfinished,
)
from audiolens.files.integrity import check_manifest, read_json, sealed_json, write_manifest
from audiolens.lens import AudioLens
from audiolens.model import provenance
from audiolens.model.tokens import callers_level
from audiolens.model.weight_hash import content_hash

FORMAT = "audiolens.run.2"
UNSEALED = "audiolens.run.1"
"""The format before, without hashes: still read, not gone on with."""
BEGUN, STAGES, SUMMARY = "study.json", "stages", "summary.json"
MADE = "made.json"
"""The stages that a page was made of, by name, and the hashes of what says so: other settings leave others there."""
SHOWN = ("index.html", "audio", "figures", "tables", "clips.csv", "clips.parquet", "directions.safetensors", MADE)
"""What a finished study shows beside its summary."""
_SECONDS = "seconds.json"
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, LibsndfileError, pa.ArrowException,
)  # fmt: skip
"""What reading a damaged stage raises."""
_ENTRY = re.compile(rf"({re.escape(UNFINISHED)})*[a-z-]+-[0-9a-f]{{16}}(\.{re.escape(_SECONDS)})?")
_STILL_KEPT = "the stages are kept, and the same study with --force goes on with them."
_PACE = {"n_jobs"}
"""Settings that change how long a study takes, and no bit of it."""
_MEASURING = ("librosa", "numpy", "scipy", "scikit-learn", "pandas")
# What draws and shows results does not change them.
_SHOWING = ("report", "commands", "figures", "cli", "plots", "screen", "spectrograms")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of a folder, or, with `folder=None`, of nothing but memory.

    Attributes:
        folder: of the study.
        common: what every stage follows from.
        used: the folders of the stages that this run asked for.
        seconds: how long each of them took to make, whenever that was.
        held: the folder as this run holds it.
    """

    folder: Path | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    held: Held | None = None

    def stage(self, name: str, follows: Mapping[str, Any]) -> Stage:
        """The stage that follows from these values.

        Raises:
            StoppedError: if the folder was removed, or lost what this run has put into it.
        """
        if self.folder is None:
            return Stage(name, None, self.seconds)
        self.check()
        entry = f"{name}-{hash_of({'stage': name, **self.common, **follows})}"
        self.used.add(entry)
        place = self.folder / STAGES / entry
        found = Stage(name, place, self.seconds, self.held)
        if place.exists() and not place.is_dir():
            found.discard(DamagedError(f"{place} is no folder"))
        return found

    def check(self) -> None:
        """Refuse to write on where what was written is gone."""
        if self.held is not None:
            self.held.check()


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage: `place` is its folder, `None` in memory; `seconds` and `held` are those of all stages."""

    name: str
    place: Path | None
    seconds: dict[str, float]
    held: Held | None = None

    @property
    def there(self) -> bool:
        """Whether something of it is kept: the whole, but for a sweep, which is kept batch by batch."""
        return self.place is not None and self.place.is_dir()

    def kept(self, make: Callable[[], T], write: Callable[[T, Path], object], read: Callable[[Path], T]) -> T:
        """Its result: as it is kept, or else made, written and read again, so that both are the same bits.

        One that is not what was written is made anew, with a `DamageWarning`.
        """
        if self.place is not None and self.place.exists():
            try:
                check_manifest(self.place, self.place.name)
                found = read(self.place)
            except DAMAGE as error:
                self.discard(error)
            else:
                self.took(0.0)
                return found
        started = time.perf_counter()
        made = make()
        if self.place is not None:
            if self.held is not None:
                self.held.check()
            with new_folder(self.place) as work:
                write(made, work)
                write_manifest(work, self.place.name)
            made = read(self.place)
        self.took(time.perf_counter() - started)
        return made

    def discard(self, error: Exception) -> None:
        """Remove what is kept of it, which is not what was written."""
        assert self.place is not None
        told = " ".join(str(error).split())[:200].rstrip(".")
        warnings.warn(DamageWarning(f"{told}: {self.name} is made again."), stacklevel=callers_level())
        if self.held is not None:
            self.held.release(self.place)
        remove(self.place)

    def took(self, seconds: float) -> None:
        """Add to how long it took: what was made before counts too, and is left out where that is not known."""
        if self.place is None:
            self.seconds[self.name] = seconds
            return
        # Beside the stage: inside it would make equal results unequal files.
        path, before = self.place.with_name(f"{self.place.name}.{_SECONDS}"), None
        with suppress(OSError, ValueError, KeyError, TypeError):
            before = float(read_json(path)["seconds"])
        if seconds or before is not None:
            self.seconds[self.name] = (before or 0.0) + seconds
        if self.held is not None:
            self.held.check()
        if seconds:
            put(path, sealed_json({"seconds": self.seconds[self.name]}))
        if self.held is not None:
            self.held.keep(self.place, path)


def hash_of(values: Mapping[str, Any]) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def common_of(lens: AudioLens) -> dict[str, Any]:
    """What every stage follows from: weights, device, versions, and the code that makes it."""
    return {
        "weights": content_hash(lens.model),
        "device": lens.device.type,
        "dtype": str(lens.dtype),
        "attention": str(getattr(lens.model.config, "_attn_implementation", None)),
        "versions": versions(),
        "code": code_hash(),
    }


def versions() -> dict[str, str]:
    """The installed versions of what a study's numbers depend on."""
    return {**provenance.versions(), **{name: version(name) for name in _MEASURING}}


@cache
def code_hash() -> str:
    """A hash of audiolens's own code, but for what only shows results: a change of it without a new version counts."""
    digest = hashlib.sha256()
    for package in (audiolens, analysis):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            if not any(part == word or part.endswith(f"_{word}") for part in names for word in _SHOWING):
                digest.update(f"{'/'.join(names)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place that no study can be written to, before a model is opened.

    Raises:
        InputError: if it is a file, holds links, something else or (without `overwrite`) a study of an earlier version,
            or cannot be written.
    """
    target = as_path(folder)
    check_in_place(target)
    if any((target / name).exists() for name in (BEGUN, STAGES, SUMMARY)):
        _refuse_misplaced(target)
    if not target.exists() or (target / BEGUN).is_file():
        return
    # What a process leaves that was killed before it had said what it begins.
    if all(entry.name == LOCK or entry.name.startswith(UNFINISHED) for entry in target.iterdir()):
        return
    if _has_stages(target):
        if not overwrite:
            raise DamagedError(f"{target / BEGUN} is gone: {_STILL_KEPT}")
        return
    if not is_study(target):
        raise InputError(f"{target} exists and holds something other than a study: choose another folder.")
    if not overwrite:
        raise InputError(
            f"{target} holds a finished study of an earlier version: choose another folder, or replace it with --force."
        )


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to replace what a finished study shows by a study of other settings.

    Raises:
        InputError: naming the first setting that differs.
    """
    try:
        shown = read_json(folder / SUMMARY, former=(UNSEALED_STUDY,))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        # Not what was written: the study is finished again.
        return
    if not isinstance(shown, dict):
        return
    mine = json.loads(json.dumps(settings, default=str))
    for name in sorted({*mine} & {*shown} - _PACE):
        if mine[name] != shown[name]:
            raise InputError(
                f"{folder} holds a finished study with {name}={shown[name]}, and this one has {mine[name]}: choose "
                "another folder, or replace it with --force."
            )


@contextmanager
def begun(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], common: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Stages]:
    """Open a folder for a study, begun here or before; no other process can until the block ends.

    Args:
        facts: what the study is of: a change of any of them is refused, unless `overwrite`.
        common: what every stage follows from.
        overwrite: let this study take the place of one that is there; when it ends well, stages that it did not use
            are removed.

    Raises:
        InputError: as `check`, or naming what the folder holds instead.
        BusyError: if another process is writing to it.
    """
    target, facts = Path(folder), {"format": FORMAT, **json.loads(json.dumps(facts, default=str))}
    check(target, overwrite=overwrite)
    with locked(target) as kept:
        if not overwrite:
            _refuse_other(target, facts)
        elif _begun(target) != facts:
            _clear(target)
        remove_unfinished(target)
        remove_unfinished(target / STAGES)
        # First: what holds stages must say of what.
        put(target / BEGUN, sealed_json(facts, ensure_ascii=False))
        with refused(target / STAGES):
            (target / STAGES).mkdir(exist_ok=True)
        kept.keep(target / BEGUN)
        stages = Stages(target, common, held=kept)
        yield stages
        if overwrite:
            for entry in (target / STAGES).iterdir():
                if entry.name.split(".")[0] not in stages.used:
                    remove(entry)


@contextmanager
def locked(target: Path) -> Iterator[Held]:
    """A folder that no other process writes to until the block ends; it is made if it is not there.

    Raises:
        BusyError: if another process is writing to it.
        InputError: if it cannot be written.
        StoppedError: if the disk is full, or the folder is removed meanwhile.
    """
    try:
        with held(target, "at work on this study") as kept:
            yield kept
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise StoppedError(f"{target}: the disk is full. What is finished is kept; run the same again.") from error


def show(work: Path, target: Path) -> None:
    """Move what `work` holds to `target`, over what is there under the same names, the summary last.

    A process that is killed meanwhile leaves a study without a summary: one that is not finished.
    """
    with suppress(FileNotFoundError):
        (target / SUMMARY).unlink()
    for entry in sorted(work.iterdir(), key=lambda one: one.name == SUMMARY):
        place = target / entry.name
        if place.is_dir() or entry.is_dir():
            remove(place)
        os.replace(entry, place)


def _refuse_misplaced(folder: Path) -> None:
    shown = [folder / name for name in SHOWN]
    times = (folder / STAGES).glob(f"*.{_SECONDS}")
    files = [folder / BEGUN, folder / SUMMARY, *(path for path in shown if path.suffix), *times]
    refuse_misplaced(files, [folder / STAGES, *(path for path in shown if not path.suffix)])


def _has_stages(folder: Path) -> bool:
    """Whether a folder holds stages of a study, and nothing among them that is not ours."""
    entries = list((folder / STAGES).glob("*")) if (folder / STAGES).is_dir() else []
    return bool(entries) and all(_ENTRY.fullmatch(entry.name) for entry in entries)


def _begun(folder: Path) -> Any:
    """What `study.json` says, or `None` where there is none that can be read."""
    try:
        return read_json(folder / BEGUN, former=(UNSEALED,))
    except (OSError, ValueError):
        return None


def _clear(folder: Path) -> None:
    """Remove what another study showed: stopped from here on, the folder claims none that it does not hold."""
    # The summary says that a study is finished; without `study.json` it is also all that says there is one.
    for name in (SUMMARY, *SHOWN) if (folder / BEGUN).is_file() else (*SHOWN, SUMMARY):
        remove(folder / name)


def _refuse_other(folder: Path, facts: Mapping[str, Any]) -> None:
    path = folder / BEGUN
    if not path.is_file():
        return
    otherwise = "choose another folder, or replace it with --force."
    try:
        there = read_json(path, former=(UNSEALED,))
        name, versions_there = there["format"], dict(there["versions"])
    except DamagedError as error:
        raise DamagedError(f"{str(error).rstrip('.')}: {_STILL_KEPT}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:80]}): {otherwise}") from None
    if name != FORMAT:
        raise InputError(f"{folder} holds a study of format {name}; this version writes {FORMAT}: {otherwise}")
    if there.get("concept") != facts["concept"]:
        raise InputError(f"{folder} holds a study of {there.get('concept')!r}, not {facts['concept']!r}: {otherwise}")
    if there.get("weights") != facts["weights"]:
        raise InputError(
            f"{folder} holds a study of another model ({there.get('model')!r}; this is {facts['model']!r} with other "
            f"weights): {otherwise}"
        )
    for package, installed in facts["versions"].items():
        if versions_there.get(package) != installed:
            raise InputError(
                f"{folder} was begun with {package} {versions_there.get(package)}, and this is {installed}: {otherwise}"
            )
