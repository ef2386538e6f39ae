"""Store the finished stages of a study in its folder, each under a hash of everything that it depends on.

`study.json` states the subject of the study. A stage is a folder `stages/NAME-KEY` of safetensors, Parquet and JSON
files with a manifest of their hashes, or a sweep (`analysis.sweep.ledger`). The folder is written under another name
and then renamed. The key is a hash of weights, versions, arguments and the code that the stage runs, so that the same
call reuses the stage and a different call adds a new one. `analysis.store.resumable` contains the code that all
resumable folders share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import pyarrow as pa
from safetensors import SafetensorError
from soundfile import LibsndfileError

from analysis.store.code import code_of, home_of
from analysis.store.folder import SUMMARY, UNSEALED_STUDY, is_study
from analysis.store.resumable import UNHELD, Held, Kind, drop, first_difference, held
from analysis.store.versions import versions
from audiolens.errors import DamagedError, InputError
from audiolens.files.atomic import UNFINISHED, as_path, new_folder, put, remove
from audiolens.files.integrity import check_manifest, read_json, sealed_json, write_manifest

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

BEGUN, STAGES, MADE = "study.json", "stages", "made.json"
"""The names of a study's description, its folder of stages, and its list of the stages and hashes behind its page."""
SHOWN = ("index.html", "audio", "figures", "tables", "clips.csv", "clips.parquet", "directions.safetensors",
         "study.toml", MADE)  # fmt: skip
"""The outputs of a finished study, apart from its summary."""
STUDY = Kind(
    noun="study",
    busy="at work on this study",
    description=BEGUN,
    format="audiolens.run.2",
    unsealed="audiolens.run.1",
    shape={"format": str, "concept": str, "model": str, "weights": str, "versions": {str: str}},
    entries=STAGES,
    files=(SUMMARY, *(name for name in SHOWN if "." in name)),
    folders=tuple(name for name in SHOWN if "." not in name),
)
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, LibsndfileError, pa.ArrowException,
)  # fmt: skip
"""Exceptions that can be raised when a damaged stage is read."""
_SECONDS = "seconds.json"
_ENTRY = re.compile(rf"({re.escape(UNFINISHED)})*[a-z-]+-[0-9a-f]{{16}}(\.{re.escape(_SECONDS)})?")
_TOLD = (
    ("format", "it has format {there}, but this version writes {here}"),
    ("concept", "it is of {there!r}, not {here!r}"),
    ("weights", "it is of another model ({begun[model]!r}; this is {facts[model]!r} with other weights)"),
    ("versions.*", "it was begun with {name} {there}, but this is {here}"),
)
_REPLACE = "replace it with --force."
_STILL_KEPT = "the stages are kept; run the same study with --force to resume from them."
_PACE = {"n_jobs", "engine"}
"""Settings that change how long a study takes, but not its results."""
_FORMER_NAMES = {"heard_by": "measured_by"}
"""The present names of settings that folders of earlier versions store under another name."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of a study, which are in its folder or, with `folder=None`, only in memory.

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
    held: Held = UNHELD

    def stage(
        self, name: str, follows: Mapping[str, Any], make: Callable[..., T], write: Any = None, read: Any = None
    ) -> Stage[T]:
        """Return the stage whose result depends on `follows`, on `common` and on the code of the functions given.

        Args:
            make: a function that computes the result.
            write, read: functions that store the result in a folder and read it from there; `None` if `make` stores its
                own result.

        Raises:
            StoppedError: if the folder was removed, or files that this run wrote have disappeared.
        """
        if self.folder is None:
            return Stage(name, make, write, read, seconds=self.seconds)
        self.check()
        code = code_of(*(one for one in (make, write, read) if one is not None), "audiolens.lens")
        entry = f"{name}-{hash_of({'stage': name, **self.common, 'code': code.digest, **follows})}"
        self.used.add(entry)
        place = self.folder / STAGES / entry
        stage = Stage(name, make, write, read, place, self.seconds, self.held, code.modules)
        if place.exists() and not stage.there:
            stage.discard(DamagedError(f"{place} is not a folder"))
        return stage

    def check(self) -> None:
        """Raise `StoppedError` if files that this run wrote have disappeared."""
        self.held.check()


@dataclass(frozen=True, eq=False)
class Stage(Generic[T]):
    """One stage, with the functions that make, write and read its result.

    Attributes:
        place: the stage's folder, or `None` if the stage is only in memory.
        seconds, held: as in `Stages`.
        modules: the modules whose code is in the stage's key; `None` if arguments are not checked against the key.
    """

    name: str
    make: Callable[..., T]
    write: Callable[[T, Path], object] | None = None
    read: Callable[[Path], T] | None = None
    place: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    held: Held = UNHELD
    modules: tuple[str, ...] | None = None

    @property
    def there(self) -> bool:
        """Whether the stage is stored. A sweep can be stored only in part."""
        return self.place is not None and self.place.is_dir()

    def kept(self, *given: Any, **named: Any) -> T:
        """Return the stage's result, read from its folder or else computed with these arguments.

        A new result is written and read back, so both ways give bit-identical results. A damaged stage is recomputed,
        with a `DamageWarning`.
        """
        write, read = cast(Any, self.write), cast(Any, self.read)
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
        made = self.made(*given, **named)
        if self.place is not None:
            self.held.check()
            with new_folder(self.place) as work:
                write(made, work)
                write_manifest(work, self.place.name)
            made = read(self.place)
        self.took(time.perf_counter() - started)
        return made

    def made(self, *given: Any, **named: Any) -> T:
        """Return the result of the stage's function for these arguments.

        Raises:
            TypeError: if an argument's own code is not covered by the stage's key.
        """
        for home in map(home_of, (*given, *named.values())):
            if self.modules is not None and home.startswith(("audiolens.", "analysis.")) and home not in self.modules:
                raise TypeError(f"stage {self.name!r}: its key does not cover an argument's code in {home}.")
        return self.make(*given, **named)

    def discard(self, error: Exception) -> None:
        """Remove a damaged stage, with a warning that states the damage."""
        assert self.place is not None
        drop(self.name, error, self.place, lock=self.held)

    def took(self, seconds: float) -> None:
        """Add this run's time to the stage's total over all runs.

        If `seconds` is 0 (the stage was already stored) and no earlier time is stored, no time is recorded.
        """
        if self.place is None:
            self.seconds[self.name] = seconds
            return
        # The time is stored next to the stage. Inside the stage, it would make the files of equal results differ.
        path, before = self.place.with_name(f"{self.place.name}.{_SECONDS}"), None
        with suppress(OSError, ValueError, KeyError, TypeError):
            before = float(read_json(path)["seconds"])
        if seconds or before is not None:
            self.seconds[self.name] = (before or 0.0) + seconds
        self.held.check()
        if seconds:
            put(path, sealed_json({"seconds": self.seconds[self.name]}))
        self.held.keep(self.place, path)


def hash_of(values: Mapping[str, Any]) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def common_of(lens: AudioLens) -> dict[str, Any]:
    """Return the values that every stage depends on: weights, device and versions."""
    from audiolens.model.weight_hash import content_hash

    return {
        "weights": content_hash(lens.model),
        "device": lens.device.type,
        "dtype": str(lens.dtype),
        "attention": str(getattr(lens.model.config, "_attn_implementation", None)),
        "versions": versions(),
    }


def check(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check, before a model is opened, that a study can be written to a folder.

    Raises:
        InputError: if the path is a file, or if the folder contains links, cannot be created or written to, or contains
            anything other than a study. Without `overwrite`, a study written by an earlier version is rejected too.
    """
    target = as_path(folder)
    if STUDY.check(target, (target / STAGES).glob(f"*.{_SECONDS}")):
        return
    entries = list((target / STAGES).glob("*")) if (target / STAGES).is_dir() else []
    if entries and all(_ENTRY.fullmatch(entry.name) for entry in entries):
        if not overwrite:
            raise DamagedError(f"{target / BEGUN} is missing: {_STILL_KEPT}")
    elif not is_study(target):
        raise STUDY.foreign(target)
    elif not overwrite:
        raise InputError(
            f"{target} contains a finished study written by an earlier version: choose another folder, or {_REPLACE}"
        )


def refuse_unfinished(folder: Path) -> None:
    """Raise an error unless a folder contains a study that was finished.

    Raises:
        InputError: if the folder contains no study, or an unfinished one.
    """
    if not (folder / BEGUN).is_file():
        raise InputError(f"{folder} contains no study with stages: there is no {BEGUN} in it.")
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{folder} contains an unfinished study: repeat the command that started it to resume.")


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise an error if a finished study would be overwritten by one with different settings.

    Raises:
        InputError: if a setting differs. The error names the first such setting.
    """
    try:
        shown = read_json(folder / SUMMARY, former=(UNSEALED_STUDY,))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        # The summary is missing or damaged, so the study is completed again.
        return
    if not isinstance(shown, dict):
        return
    shown = present_names(shown)
    mine = json.loads(json.dumps(settings, default=str))
    told = [(name, f"{name}={{there}}, but this one has {{here}}") for name in sorted({*mine} & {*shown} - _PACE)]
    if (other := first_difference(shown, mine, told)) is not None:
        raise InputError(f"{folder} contains a finished study with {other}: choose another folder, or {_REPLACE}")


def present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a summary under the names that they have in this version."""
    return {_FORMER_NAMES.get(name, name): value for name, value in settings.items()}


@contextmanager
def begun(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], common: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Stages]:
    """Open a folder for a new or resumed study. No other process can open it until the `with` block ends.

    Args:
        facts: the subject of the study. A folder with different facts is rejected without `overwrite`.
        common: the values that every stage depends on.
        overwrite: replace a study that is in the folder. On success, stages that this study did not use are removed.

    Raises:
        InputError: in the same cases as `check`, or if the folder contains a different study.
        BusyError: if another process is writing to the folder.
        StoppedError: if the disk is full, or the folder is removed inside the block.
    """
    target, facts = Path(folder), {"format": STUDY.format, **json.loads(json.dumps(facts, default=str))}
    check(target, overwrite=overwrite)

    def settled() -> Mapping[str, Any]:
        try:
            there = STUDY.read(target)
        except DamagedError as error:
            if not overwrite:
                raise DamagedError(f"{str(error).rstrip('.')}: {_STILL_KEPT}") from None
            there = {}
        if overwrite and there != facts:
            _clear(target)
        elif there is not None:
            STUDY.refuse(target, first_difference(there, facts, _TOLD), _REPLACE)
        return facts

    with STUDY.opened(target, settled, _kept) as (lock, _):
        stages = Stages(target, common, held=lock)
        yield stages
        if overwrite:
            for entry in (target / STAGES).iterdir():
                if entry.name.split(".")[0] not in stages.used:
                    remove(entry)


def locked(target: Path) -> Any:
    """Lock a study's folder against other processes until the `with` block ends. See `held` for the errors."""
    return held(target, STUDY.busy, _kept)


def show(work: Path, target: Path) -> None:
    """Move the contents of `work` to `target`, replacing entries of the same name. The summary is moved last.

    If the process is killed during the move, the study has no summary and is treated as unfinished.
    """
    with suppress(FileNotFoundError):
        (target / SUMMARY).unlink()
    for entry in sorted(work.iterdir(), key=lambda one: one.name == SUMMARY):
        place = target / entry.name
        if place.is_dir() or entry.is_dir():
            remove(place)
        os.replace(entry, place)


def _kept() -> str:
    return "Finished stages are kept; run the same study again."


def _clear(folder: Path) -> None:
    """Remove the outputs of the previous study, so that an interrupted run does not leave a page without its stages."""
    # The summary marks a study as finished, so it is removed first. If there is no `study.json`, the summary is removed
    # last, because nothing else identifies the study.
    for name in (SUMMARY, *SHOWN) if (folder / BEGUN).is_file() else (*SHOWN, SUMMARY):
        remove(folder / name)
