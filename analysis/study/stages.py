"""Store the finished stages of a study in its folder, each under a hash of everything that it depends on.

`study.json` states the subject of the study. A stage is a folder `stages/NAME-KEY` of safetensors, Parquet and JSON
files with a manifest of their hashes. A sweep is stored as in `analysis.sweep.ledger`. A stage is written elsewhere
and then renamed, so that it is either complete or absent, and it is made again if a byte of it has changed. The key is
a hash of weights, versions, code and arguments, so that the same call reuses the stage and any other call adds its
own. Only one process writes at a time, and the operating system releases the lock when that process ends. A folder
that contains links is refused before anything is written. If stages disappear from a folder during a run, nothing more
is written to it.
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
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from safetensors import SafetensorError
from soundfile import LibsndfileError

import analysis
import audiolens
from analysis.store.folder import LOCK, SUMMARY, UNSEALED_STUDY, Held, check_in_place, disk_is_full, held, is_study
from analysis.store.versions import versions
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
from audiolens.model.tokens import callers_level
from audiolens.model.weight_hash import content_hash

FORMAT = "audiolens.run.2"
UNSEALED = "audiolens.run.1"
"""The previous format, which has no hashes. Such a study can be read but not resumed."""
BEGUN, STAGES = "study.json", "stages"
MADE = "made.json"
"""The file that lists, with hashes, the stages behind a page. The folder may also hold stages of other settings."""
SHOWN = ("index.html", "audio", "figures", "tables", "clips.csv", "clips.parquet", "directions.safetensors", MADE)
"""The outputs of a finished study, apart from its summary."""
_SECONDS = "seconds.json"
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, LibsndfileError, pa.ArrowException,
)  # fmt: skip
"""Exceptions that can be raised when a damaged stage is read."""
_ENTRY = re.compile(rf"({re.escape(UNFINISHED)})*[a-z-]+-[0-9a-f]{{16}}(\.{re.escape(_SECONDS)})?")
_STILL_KEPT = "the stages are kept; run the same study with --force to resume from them."
_PACE = {"n_jobs"}
"""Settings that change how long a study takes, but not its results."""
# Changes to code that only draws or shows results do not invalidate stages.
_SHOWING = ("report", "commands", "figures", "cli", "plots", "screen", "spectrograms")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages in a study's folder, or only in memory with `folder=None`.

    Attributes:
        folder: the study's folder.
        common: the values that every stage depends on.
        used: folder names of the stages that this run requested.
        seconds: the time that each stage took to compute, in this run or an earlier one.
        held: the lock that this run holds on the folder.
    """

    folder: Path | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    held: Held | None = None

    def stage(self, name: str, follows: Mapping[str, Any]) -> Stage:
        """Return the stage whose result depends on the values in `follows` and in `common`.

        Raises:
            StoppedError: if the folder was removed, or files that this run wrote have disappeared.
        """
        if self.folder is None:
            return Stage(name, None, self.seconds)
        self.check()
        entry = f"{name}-{hash_of({'stage': name, **self.common, **follows})}"
        self.used.add(entry)
        place = self.folder / STAGES / entry
        found = Stage(name, place, self.seconds, self.held)
        if place.exists() and not place.is_dir():
            found.discard(DamagedError(f"{place} is not a folder"))
        return found

    def check(self) -> None:
        """Raise `StoppedError` if files that this run wrote have disappeared."""
        if self.held is not None:
            self.held.check()


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage. `place` is its folder (`None` in memory). All stages share `seconds` and `held`."""

    name: str
    place: Path | None
    seconds: dict[str, float]
    held: Held | None = None

    @property
    def there(self) -> bool:
        """Whether the stage is stored. A sweep may be stored only in part."""
        return self.place is not None and self.place.is_dir()

    def kept(self, make: Callable[[], T], write: Callable[[T, Path], object], read: Callable[[Path], T]) -> T:
        """Read the stage's result from its folder, or else make it.

        A new result is written and read back, so that both ways give bit-identical results. A damaged stage is made
        again, with a `DamageWarning`.
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
        """Remove a damaged stage, with a warning that states the damage."""
        assert self.place is not None
        reason = " ".join(str(error).split())[:200].rstrip(".")
        warnings.warn(DamageWarning(f"{reason}: {self.name} is made again."), stacklevel=callers_level())
        if self.held is not None:
            self.held.release(self.place)
        remove(self.place)

    def took(self, seconds: float) -> None:
        """Add to the stage's total time, which includes earlier runs. If no time is known, none is recorded."""
        if self.place is None:
            self.seconds[self.name] = seconds
            return
        # The time is stored next to the stage, because inside it, equal results would have different files.
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
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def common_of(lens: AudioLens) -> dict[str, Any]:
    """Return the values that every stage depends on, which are weights, device, versions and code."""
    return {
        "weights": content_hash(lens.model),
        "device": lens.device.type,
        "dtype": str(lens.dtype),
        "attention": str(getattr(lens.model.config, "_attn_implementation", None)),
        "versions": versions(),
        "code": code_hash(),
    }


@cache
def code_hash() -> str:
    """Return a hash of audiolens's own code, except for code that only shows results."""
    digest = hashlib.sha256()
    for package in (audiolens, analysis):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            if not any(part == word or part.endswith(f"_{word}") for part in names for word in _SHOWING):
                digest.update(f"{'/'.join(names)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check, before a model is opened, that a study can be written to a folder.

    Raises:
        InputError: if it is a file, contains links, cannot be written, or holds something else. Without `overwrite`,
            a study of an earlier version is refused too.
    """
    target = as_path(folder)
    check_in_place(target)
    if any((target / name).exists() for name in (BEGUN, STAGES, SUMMARY)):
        _refuse_misplaced(target)
    if not target.exists() or (target / BEGUN).is_file():
        return
    # Such a folder was left by a process that was killed before it wrote `study.json`.
    if all(entry.name == LOCK or entry.name.startswith(UNFINISHED) for entry in target.iterdir()):
        return
    if _has_stages(target):
        if not overwrite:
            raise DamagedError(f"{target / BEGUN} is missing: {_STILL_KEPT}")
        return
    if not is_study(target):
        raise InputError(f"{target} exists and holds something other than a study: choose another folder.")
    if not overwrite:
        raise InputError(
            f"{target} holds a finished study of an earlier version: choose another folder, or replace it with --force."
        )


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to overwrite a finished study with one that has different settings.

    Raises:
        InputError: naming the first setting that differs.
    """
    try:
        shown = read_json(folder / SUMMARY, former=(UNSEALED_STUDY,))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        # The summary is missing or damaged, so the study is finished again.
        return
    if not isinstance(shown, dict):
        return
    mine = json.loads(json.dumps(settings, default=str))
    for name in sorted({*mine} & {*shown} - _PACE):
        if mine[name] != shown[name]:
            raise InputError(
                f"{folder} holds a finished study with {name}={shown[name]}, but this one has {mine[name]}: choose "
                "another folder, or replace it with --force."
            )


@contextmanager
def begun(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], common: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Stages]:
    """Open a folder for a new or resumed study. No other process can open it until the `with` block ends.

    Args:
        facts: the subject of the study. A folder with different facts is refused without `overwrite`.
        common: the values that every stage depends on.
        overwrite: replace a study that is in the folder. On success, stages that this study did not use are removed.

    Raises:
        InputError: as `check`, or if the folder holds a different study.
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
        # `study.json` is written first, because a folder with stages must state which study they belong to.
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
    """Lock a folder against other processes until the `with` block ends. A missing folder is created.

    Raises:
        BusyError: if another process is writing to it.
        InputError: if it cannot be written.
        StoppedError: if the disk is full, or the folder is removed inside the block.
    """
    try:
        with held(target, "at work on this study") as kept:
            yield kept
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise StoppedError(f"{target}: the disk is full. Finished stages are kept; run the same again.") from error


def show(work: Path, target: Path) -> None:
    """Move the contents of `work` to `target`, replacing entries of the same name. The summary is moved last.

    If the process is killed during the move, the study has no summary and counts as unfinished.
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
    """Whether a folder holds the stages of a study and nothing else."""
    entries = list((folder / STAGES).glob("*")) if (folder / STAGES).is_dir() else []
    return bool(entries) and all(_ENTRY.fullmatch(entry.name) for entry in entries)


def _begun(folder: Path) -> Any:
    """Return the contents of `study.json`, or `None` if it is missing or cannot be read."""
    try:
        return read_json(folder / BEGUN, former=(UNSEALED,))
    except (OSError, ValueError):
        return None


def _clear(folder: Path) -> None:
    """Remove the outputs of the previous study, so that a later stop leaves no page without its stages."""
    # The summary is removed last. It marks a study as finished, and without `study.json` nothing else identifies one.
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
        raise InputError(f"{folder} holds a study of format {name}, but this version writes {FORMAT}: {otherwise}")
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
                f"{folder} was begun with {package} {versions_there.get(package)}, but this is {installed}: {otherwise}"
            )
