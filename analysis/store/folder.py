"""Result folders that are filled under a temporary name and renamed once they are complete.

The path is checked before anything runs. A folder can also be filled in place by one process at a time, which checks
before each write that nothing was removed.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from audiolens.errors import AudioLensError, BusyError, InputError, StoppedError
from audiolens.files import atomic
from audiolens.files.bounded import read_object

STUDY, UNSEALED_STUDY = "audiolens.study.2", "audiolens.study.1"
"""The format named in a study's `summary.json`, and the previous format, which has no hash."""
LOCK = ".lock"
SUMMARY = "summary.json"
"""The file in which a finished study, or an index of several studies, describes itself."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study written by audiolens."""
    try:
        return read_object(folder / SUMMARY).get("format") in (STUDY, UNSEALED_STUDY)
    except (OSError, InputError):
        return False


def check(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> None:
    """Raise if no new folder can be made at this path.

    With `overwrite=None`, the error message does not offer to replace an existing study.

    Raises:
        InputError: if the folder holds a study and `overwrite` is false, if it holds anything else, or if it cannot be
            written.
    """
    target = atomic.as_path(folder)
    if target.is_symlink():
        raise InputError(f"{target} is a symbolic link: give the name of a new folder.")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: give the name of a folder.")
    check_above(target)
    if not target.exists() or not any(target.iterdir()):
        return
    if overwrite is None:
        raise InputError(f"{target} exists and is not empty: choose another folder.")
    if not is_study(target):
        raise InputError(f"{target} exists and holds something other than a study: choose another folder.")
    if not overwrite:
        raise InputError(f"{target} holds a finished study: choose another folder, or replace it with --force.")


def check_file(file: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise if no new file can be made at this path.

    Raises:
        InputError: if the path is a folder, link or device, if the file exists and `overwrite` is false, or if it
            cannot be written.
    """
    target = atomic.as_path(file)
    atomic.refuse_special(target)
    check_above(target)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: choose another file, or replace it with --force.")


def check_in_place(folder: Path) -> None:
    """Raise if the folder at this path cannot be filled in place, or contains links.

    Raises:
        InputError: if the path is a file, if nothing can be created in it or above it, or if `atomic.refuse_links`
            rejects it.
    """
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder} is a symbolic link to nothing: give the name of a folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give the name of a folder.")
    check_above(folder)
    if folder.is_dir():
        atomic.refuse_links(folder)
        _check_writable(folder, folder)


@contextmanager
def fresh(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`, renamed to `folder` if the block succeeds and removed otherwise.

    Raises:
        InputError: as in `check`.
        StoppedError: if the temporary folder is removed in the meantime.
    """
    target = Path(folder)
    check(target, overwrite=overwrite)
    above = target.absolute().parent
    with atomic.refused(target):
        above.mkdir(parents=True, exist_ok=True)
    with atomic.aside(above, f".{target.name[:40]}-unfinished-") as work:
        try:
            yield work
            # The path was free at the start, but may be taken by now.
            check(target, overwrite=overwrite)
            _put(work, target)
        except AudioLensError:
            raise
        except Exception as error:
            if work.is_dir():
                raise
            raise StoppedError(f"{work} was removed while {target} was being made in it: make it again.") from error


def check_above(target: Path) -> None:
    """Raise if nothing can be created in the folders above this path."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{target} cannot be written: {above} is a file. Choose another path.")
    _check_writable(target, above)


def _check_writable(target: Path, folder: Path) -> None:
    try:
        # Only writing a file shows this: permissions do not stop root, and the file system may be read-only or full.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: nothing can be created in {folder} ({error.strerror or error}). "
            "Choose another path."
        ) from None


def _put(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-replaced-", dir=target.absolute().parent))
    old = aside / "study"
    try:
        target.rename(old)
        try:
            work.rename(target)
        except BaseException:
            old.rename(target)
            raise
    except BaseException:
        # Do not use rmtree: if the old study could not be moved back, it is still in there.
        with suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Held:
    """A folder that only this process writes to, and the files that must stay in it until it is done.

    Attributes:
        folder: path of the folder.
        lock: device and inode of its lock file, which distinguish this folder from another one with the same name.
        kept: the files that were there at the start or have been written since.
    """

    folder: Path
    lock: tuple[int, int] | None
    kept: set[Path] = field(default_factory=set)

    def keep(self, *places: Path) -> None:
        """Add files, or all files in folders, to those that must stay."""
        for place in places:
            found = [place] if place.is_file() else place.rglob("*")
            self.kept.update(path for path in found if path.is_file() and path.name != LOCK)

    def release(self, place: Path) -> None:
        """Drop a file, or all files in a folder, from those that must stay, before it is removed."""
        self.kept.difference_update([path for path in self.kept if path.is_relative_to(place)])

    def check(self) -> None:
        """Raise if the folder was removed or replaced, or lost files, so that nothing more is written to it.

        Raises:
            StoppedError: if anything is gone. The error names it.
        """
        if (gone := self.gone()) is not None:
            raise StoppedError(f"{gone} while this run was writing: nothing more is written. Start the same run again.")

    def gone(self) -> str | None:
        """A description of what was removed; `None` if everything is there."""
        if self.lock != _identity(self.folder / LOCK):
            return f"{self.folder} was removed or replaced by another folder"
        there = {path for folder in {path.parent for path in self.kept} for path in _listed(folder)}
        lost = sorted(self.kept - there)
        return f"{lost[0]} was removed" if lost else None


@contextmanager
def held(folder: Path, busy: str) -> Iterator[Held]:
    """Lock a folder, created if needed, so that no other process writes to it until the block ends.

    Raises:
        BusyError: if another process is writing to it; `busy` says what that process is doing.
        InputError: if it cannot be written, or contains links.
        StoppedError: if the block fails and the folder was removed in the meantime.
    """
    with atomic.refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic.refuse_links(folder)
    atomic.refuse_misplaced([folder / LOCK])
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
    except Exception:
        found.check()
        raise
    finally:
        lock.release()


def refuse_path(name: str) -> None:
    """Raise unless `name` is the name of a single folder, with no path in it. Names may come from an untrusted file.

    Raises:
        InputError: if it is empty, a path or "..", or has control characters.
    """
    if name in ("", ".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in name):
        raise InputError(f"{name!r} cannot name a folder: expected a name without a path.")


def disk_is_full(error: OSError) -> bool:
    return error.errno in _FULL


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


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:
        return []
