"""A folder of results: checked before anything runs, filled beside its place, and there only when it is whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from audiolens.errors import BusyError, InputError
from audiolens.permissions import opened

STUDY, UNSEALED_STUDY = "audiolens.study.2", "audiolens.study.1"
"""The format in a study's `summary.json`, and the one before, without a hash."""
LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study that was written here."""
    try:
        return json.loads((folder / "summary.json").read_text("utf-8")).get("format") in (STUDY, UNSEALED_STUDY)
    except (OSError, ValueError, AttributeError):
        return False


def check(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> None:
    """Refuse a place where no new folder can be. `overwrite=None`: nothing is replaced there, so it is not offered.

    Raises:
        InputError: if it holds a study and `overwrite` is false, holds anything else, or cannot be written.
    """
    target = Path(folder)
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
    """Refuse a place where no new file can be.

    Raises:
        InputError: if it is a folder, is there and `overwrite` is false, or cannot be written.
    """
    target = Path(file)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file.")
    check_above(target)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: choose another file, or replace it with --force.")


@contextmanager
def fresh(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name if the block ends well and vanishes otherwise.

    Raises:
        InputError: as `check`.
    """
    target = Path(folder)
    check(target, overwrite=overwrite)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        work = opened(Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.absolute().parent)))
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}. Choose another place.") from None
    try:
        yield work
        # What was free at the start may be taken by now.
        check(target, overwrite=overwrite)
        _put(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_above(target: Path) -> None:
    """Refuse a place above which nothing can be made."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{target} cannot be written: {above} is a file. Choose another place.")
    try:
        # Only writing tells: root may write where nothing can be made, and file systems can be read-only or full.
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: nothing can be made in {above} ({error.strerror or error}). "
            "Choose another place."
        ) from None


def _put(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-replaced-", dir=target.absolute().parent))
    old = aside / "study"
    try:
        target.rename(old)
        try:
            work.rename(target)
        except BaseException:
            old.rename(target)
            raise
    except BaseException:
        # Not rmtree: an old study that could not go back is still in there.
        with suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """A folder, made if it is not there, that no other process writes to until the block ends.

    Raises:
        BusyError: in the words of `busy`, if another process does.
        InputError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder}: another process is {busy}; wait for it, or stop it.") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}. Choose another place.") from None
    try:
        yield
    finally:
        lock.release()


def disk_is_full(error: OSError) -> bool:
    return error.errno in _FULL
