"""Result folders that can be filled over several runs, even if a run is interrupted at any moment.

A description with a hash is written first, and states what the folder contains. Entries follow, such as a sweep's
batches or a study's stages. Each entry is either complete or absent, and is protected by hashes. A run resumes a folder
only if the description of the run matches the description in the folder, because results of different runs cannot be
combined. A damaged entry is removed with a warning, and recomputed. Only one process writes at a time, and it
checks before each write that nothing was removed.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from analysis.store.folder import check_in_place
from audiolens.errors import AudioLensError, BusyError, DamagedError, DamageWarning, InputError, StoppedError
from audiolens.files import bounded
from audiolens.files.atomic import (
    UNFINISHED,
    put,
    refuse_links,
    refuse_misplaced,
    refused,
    remove,
    remove_unfinished,
)
from audiolens.files.integrity import SEAL, read_json, sealed_json
from audiolens.files.json_shapes import refuse_other
from audiolens.model.tokens import callers_level

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SETTLED_NS = 2_000_000_000
"""Age of a folder's last change from which a later change must have another time, on any common file system."""


class OtherResultsError(InputError):
    """Raised if the folder contains the results of another run, or too little to identify the run."""


@dataclass(frozen=True, eq=False)
class Held:
    """A folder that only this process writes to, and the files that must stay in the folder until the process is done.

    Attributes:
        folder: path of the folder.
        lock: device and inode of its lock file, which distinguish this folder from another one with the same name.
        kept: the names of the files that were there at the start or have been written since, by their folder.
        complete: the time of change of each folder in which all of these files were found, unless it was too recent to
            show a later change. A folder of many files is listed again only once it has changed.
    """

    folder: Path
    lock: tuple[int, int] | None
    kept: dict[Path, set[str]] = field(default_factory=dict)
    complete: dict[Path, int] = field(default_factory=dict)

    def keep(self, *places: Path) -> None:
        """Add files, or all files in folders, to the files that must stay."""
        for place in places if self.lock is not None else ():
            found = (os.path.split(path) for path in ([place] if place.is_file() else files_in(place)))
            for folder, name in found:
                if name != LOCK:
                    self.kept.setdefault(Path(folder), set()).add(name)

    def release(self, place: Path) -> None:
        """Before a file or folder is removed, drop its files from those that must stay."""
        self.kept.get(place.parent, set()).discard(place.name)
        for folder in [folder for folder in self.kept if folder.is_relative_to(place)]:
            del self.kept[folder]

    def check(self) -> None:
        """Raise if the folder was removed or replaced, or has lost files, so that nothing more is written to it.

        Raises:
            StoppedError: if the folder or a file is gone. The error names what is gone.
        """
        if (gone := self.gone()) is not None:
            raise StoppedError(f"{gone} while this run was writing: nothing more is written. Start the same run again.")

    def gone(self) -> str | None:
        """Return a description of what was removed, or `None` if everything is still there."""
        if self.lock != _identity(self.folder / LOCK):
            return f"{self.folder} was removed or replaced by another folder"
        lost: list[Path] = []
        for folder, names in self.kept.items():
            changed = _changed(folder)
            if changed is not None and self.complete.get(folder) == changed:
                continue
            missing = names.difference(_listed(folder))
            lost += [folder / name for name in missing]
            if not missing and changed is not None and time.time_ns() - changed > _SETTLED_NS:
                self.complete[folder] = changed
        return f"{min(lost)} was removed" if lost else None


@dataclass(frozen=True)
class Kind:
    """A kind of resumable folder, such as a sweep's.

    Attributes:
        noun: what such a folder contains, for error messages.
        busy: what a process that fills such a folder is doing, for the error message in another process.
        description: the file that states what the folder contains.
        format, unsealed: the format that the description names, and the previous format, which has no hashes. A folder
            in the previous format can be read but not resumed.
        shape: the schema of the description.
        entries: the name of the folder that contains the entries.
        files, folders: the names of the other files and folders.
        verify: a function that raises an `InputError` if the numbers in a description do not fit together.
    """

    noun: str
    busy: str
    description: str
    format: str
    unsealed: str
    shape: Mapping[str, Any]
    entries: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    verify: Callable[[Path, Mapping[str, Any]], None] = lambda *_: None

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return the description in a folder, or `None` if there is none.

        Raises:
            DamagedError: if the description is damaged.
            OtherResultsError: if the description never had a hash, which means that another program wrote it.
        """
        path = folder / self.description
        try:
            found = read_json(path, former=(self.unsealed,))
        except FileNotFoundError:
            return None
        except DamagedError:
            if _is_foreign(path):
                raise OtherResultsError(f"{path} does not describe a {self.noun}: choose another folder.") from None
            raise
        if not str(found.get("format")).startswith(self.format.rstrip("0123456789")):
            raise DamagedError(f"{path} is damaged: it does not describe a {self.noun}.")
        if found["format"] in (self.format, self.unsealed):
            try:
                refuse_other(path, found, self.shape)
                self.verify(path, found)
            except InputError as error:
                raise DamagedError(str(error)) from None
        return found

    def check(self, folder: Path, inside: Iterable[Path] = ()) -> bool:
        """Check that a folder can be filled, and return whether it is new, empty or has a description.

        Args:
            inside: further files of the folder. None of them can be a folder or a link.

        Raises:
            InputError: if the path is a file, or if the folder cannot be created or written to, contains links, or has
                a subfolder where a file belongs.
        """
        check_in_place(folder)
        if any((folder / name).exists() for name in (self.description, self.entries)):
            files = [folder / name for name in (self.description, *self.files)]
            refuse_misplaced([*files, *inside], [folder / name for name in (self.entries, *self.folders)])
        return not folder.exists() or (folder / self.description).is_file() or self.holds_only(folder)

    def holds_only(self, folder: Path, *names: str) -> bool:
        """Return whether a folder contains only these names, apart from its lock file and unfinished files."""
        return all(one.name in (LOCK, *names) or one.name.startswith(UNFINISHED) for one in folder.iterdir())

    def foreign(self, folder: Path) -> InputError:
        return OtherResultsError(
            f"{folder} exists and contains something other than a {self.noun}: choose another folder."
        )

    def refuse(self, folder: Path, difference: str | None, remedy: str) -> None:
        """Raise if the results in a folder differ from those of this run.

        Raises:
            OtherResultsError: if there is a difference. The error names it and, besides choosing another folder,
                suggests `remedy`.
        """
        if difference is not None:
            raise OtherResultsError(
                f"{folder} contains another {self.noun}: {difference}. Choose another folder, or {remedy}"
            )

    @contextmanager
    def opened(
        self, folder: Path, settled: Callable[[], Mapping[str, Any]], kept: Callable[[], str]
    ) -> Iterator[tuple[Held, Mapping[str, Any]]]:
        """Lock a folder, write its description and prepare it for entries. Yield the lock and the description.

        Args:
            settled: a function that returns the description to continue with, or rejects the folder. It is called under
                the lock, because another process might have filled the folder in the meantime.
            kept: a function that returns a sentence about what is kept if the disk is full.
        """
        with held(folder, self.busy, kept) as lock:
            facts = settled()
            # A folder of very many files is divided into folders.
            divided = [one for name in self.folders for one in _folders_in(folder / name)]
            for here in (folder, *(folder / name for name in (self.entries, *self.folders)), *divided):
                remove_unfinished(here)
            # The description is written first, because entries alone do not always show what they belong to.
            if not self._says(folder, facts):
                put(folder / self.description, sealed_json(facts))
            with refused(folder / self.entries):
                (folder / self.entries).mkdir(exist_ok=True)
            lock.keep(folder / self.description)
            yield lock, facts

    def _says(self, folder: Path, facts: Mapping[str, Any]) -> bool:
        try:
            return self.read(folder) == facts
        except DamagedError:
            return False


UNHELD = Held(Path(os.devnull), None)
"""A placeholder for a lock, for results that are only read or are kept in memory. Its checks always pass."""


@contextmanager
def held(folder: Path, busy: str, kept: Callable[[], str]) -> Iterator[Held]:
    """Lock a folder, creating it if needed, so that no other process writes to it until the block ends.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
        BusyError: if another process is writing to the folder. `busy` describes what that process is doing.
        InputError: if the folder cannot be created or written to, or contains links.
        StoppedError: if the block fails and the folder was removed in the meantime, or if the disk is full. The message
            for a full disk ends with the sentence that `kept` returns.
    """
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    refuse_misplaced([folder / LOCK])
    _refuse_shared(folder / LOCK)
    try:
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder}: another process is {busy}; wait for it, or stop it.") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}. Choose another path.") from None
    found = Held(folder, _identity(folder / LOCK))
    try:
        yield found
    except AudioLensError:
        raise
    except Exception as error:
        found.check()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StoppedError(f"{folder}: the disk is full. {kept()}") from error
        raise
    finally:
        lock.release()


def first_difference(begun: Mapping[str, Any], facts: Mapping[str, Any], told: Iterable[tuple[str, str]]) -> str | None:
    """Return a sentence that states the first difference between two descriptions, or `None` if they are equal.

    Args:
        begun, facts: the description in the folder, and the description of this run.
        told: the entries to compare, and a template sentence for each with the fields `there`, `here`, `begun` and
            `facts`. "model.device" means the entry "device" in "model". "versions.*" means every entry in "versions",
            and the field `name` is then the entry's name.
    """
    for path, sentence in told:
        outer, _, inner = path.rpartition(".")
        there, here = (one.get(outer) or {} if outer else one for one in (begun, facts))
        for name in {**there, **here} if inner == "*" else [inner]:
            if there.get(name) != here.get(name):
                values = {"there": _short(there.get(name)), "here": _short(here.get(name))}
                return sentence.format(name=name, **values, begun=begun, facts=facts)
    return None


def drop(name: str, error: Exception, *places: Path, lock: Held = UNHELD, several: bool = False) -> None:
    """Remove the files or folders of a damaged entry, with a warning that the entry will be recomputed.

    `several` states that the name is that of several entries.
    """
    reason = " ".join(str(error).split())[:200].rstrip(".")
    warnings.warn(
        DamageWarning(f"{reason}: {name} {'are' if several else 'is'} made again."), stacklevel=callers_level()
    )
    for place in places:
        lock.release(place)
        remove(place)


def _refuse_shared(lock: Path) -> None:
    """Raise if the lock file has other hard links, because opening it would empty the file under all its names."""
    with suppress(FileNotFoundError):
        facts = lock.stat()
        if facts.st_size and facts.st_nlink > 1:
            raise InputError(f"{lock} is a file with another hard link, and would be emptied: remove it.")


def _identity(lock: Path) -> tuple[int, int] | None:
    try:
        facts = os.lstat(lock)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def files_in(folder: Path) -> Iterator[str]:
    """Yield the path of every file in a folder and in the folders inside it, if it exists."""
    inside = [str(folder)]
    while inside:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(inside.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    inside.append(entry.path)
                elif entry.is_file():
                    yield entry.path


def _folders_in(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _changed(folder: Path) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _is_foreign(path: Path) -> bool:
    """Return whether a file is readable JSON that contains neither a hash nor the name of an audiolens format."""
    try:
        found = bounded.read_json(path)
    except InputError:
        return False
    return not (isinstance(found, dict) and (SEAL in found or str(found.get("format", "")).startswith("audiolens.")))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
