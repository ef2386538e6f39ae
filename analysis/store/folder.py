"""Result folders that are filled under a temporary name and renamed once they are complete.

The path is checked before anything runs. The module `resumable` instead fills folders in place, under their final
names.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from audiolens.errors import AudioLensError, InputError, StoppedError
from audiolens.files import atomic
from audiolens.files.bounded import read_object

STUDY, UNSEALED_STUDY = "audiolens.study.2", "audiolens.study.1"
"""The format named in a study's `summary.json`, and the previous format, which has no hash."""
SUMMARY = "summary.json"
"""The file in which a finished study, or an index of several studies, describes itself."""


def is_study(folder: Path) -> bool:
    """Return whether a folder contains a study written by audiolens."""
    try:
        return read_object(folder / SUMMARY).get("format") in (STUDY, UNSEALED_STUDY)
    except (OSError, InputError):
        return False


def studies_in(folder: Path) -> list[Path]:
    """Return the subfolders that contain a finished study, in the order of their names.

    Raises:
        InputError: if there is none.
    """
    found = sorted(one for one in folder.iterdir() if one.is_dir() and is_study(one)) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} contains no finished studies: expected a folder of folders that studies wrote.")
    return found


def check(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> None:
    """Raise if no new folder can be created at this path.

    With `overwrite=None`, the error message does not offer to replace an existing study.

    Raises:
        InputError: if the folder contains a study and `overwrite` is false, if it contains anything other than a study,
            or if the folder cannot be created or written to.
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
        raise InputError(f"{target} exists and contains something other than a study: choose another folder.")
    if not overwrite:
        raise InputError(f"{target} contains a finished study: choose another folder, or replace it with --force.")


def check_file(file: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise if no new file can be created at this path.

    Raises:
        InputError: if the path is a folder, link or device, if the file exists and `overwrite` is false, or if the file
            cannot be written.
    """
    target = atomic.as_path(file)
    atomic.refuse_special(target)
    check_above(target)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: choose another file, or replace it with --force.")


def check_in_place(folder: Path) -> None:
    """Raise if the folder at this path contains links, or cannot be filled in place.

    Raises:
        InputError: if the path is a file, if nothing can be created in the folder (or, if it does not exist, in the
            nearest existing folder above it), or if `atomic.refuse_links` rejects the folder.
    """
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder} is a broken symbolic link: give the name of a folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give the name of a folder.")
    check_above(folder)
    if folder.is_dir():
        atomic.refuse_links(folder)
        _check_writable(folder, folder)


@contextmanager
def fresh(folder: str | os.PathLike[str], *, overwrite: bool | None = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`.

    The temporary folder is renamed to `folder` if the block succeeds, and removed otherwise.

    Raises:
        InputError: if `check` rejects the path.
        StoppedError: if something else removes the temporary folder before the block ends.
    """
    target = Path(folder)
    check(target, overwrite=overwrite)
    above = target.absolute().parent
    with atomic.refused(target):
        above.mkdir(parents=True, exist_ok=True)
    with atomic.aside(above, f".{target.name[:40]}-unfinished-") as work:
        try:
            yield work
            with atomic.refused(target):
                atomic.settle(work)
            # The path was free at the start, but may be taken by now.
            check(target, overwrite=overwrite)
            _put(work, target)
        except AudioLensError:
            raise
        except Exception as error:
            if work.is_dir():
                raise
            raise StoppedError(f"{work} was removed while {target} was being written in it: write it again.") from error


def check_above(target: Path) -> None:
    """Raise if nothing can be created in the nearest existing folder above this path."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{target} cannot be written: {above} is a file. Choose another path.")
    _check_writable(target, above)


def refuse_path(name: str) -> None:
    """Raise unless `name` is a plain folder name without a path, because names can come from an untrusted file.

    Raises:
        InputError: if `name` is empty, is a path or "..", or contains control characters.
    """
    if name in ("", ".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in name):
        raise InputError(f"{name!r} cannot name a folder: expected a name without a path.")


def _check_writable(target: Path, folder: Path) -> None:
    try:
        # Only writing a file shows whether the folder is writable, because permissions do not stop root and the file
        # system may be read-only or full.
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
        # Do not use rmtree, because an old study that could not be moved back is still in this folder.
        with suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
