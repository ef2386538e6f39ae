"""Atomic writes: a file or folder appears complete under its name, or not at all.

A writer creates the file or folder under an unused random name in the target folder, and then renames it. It therefore
never opens what a link in that folder points to, and a killed run leaves the old file intact. A link, device, pipe or
socket is never replaced. `put` takes bytes, `written` is for libraries that need a path, and `new_folder` is for
folders.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from audiolens.checks import shown
from audiolens.errors import InputError, InputTypeError, StoppedError

UNFINISHED = ".unfinished-"
"""The start of the temporary name of a file or folder that is being written."""


def put(path: Path, content: bytes) -> Path:
    """Write a file into an existing folder atomically; even a power failure leaves either the old file or the new one.

    Raises:
        InputError: if something that is not a file has this name.
        StoppedError: if the folder no longer exists.
        OSError: if it cannot be written.
    """
    refuse_special(path)
    aside = path.with_name(_unfinished())
    try:
        with open(aside, "xb", opener=_without_following) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, FileNotFoundError):
            raise StoppedError(f"{path} cannot be written: {path.parent} is gone.") from None
        raise
    return path


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path for a library to write to, renamed to `path` if the block succeeds; missing folders are created.

    Raises:
        InputError: if something that is not a file has this name, or if the file cannot be written.
    """
    target = as_path(path)
    refuse_special(target)
    with refused(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside(target.parent) as work:
            yield work / target.name
            _settle(work)
            os.replace(work / target.name, target)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary empty folder, which is renamed to `folder` if the block succeeds; the parent must exist.

    Raises:
        InputError: if something other than an empty folder has this name.
        OSError: if it cannot be written.
    """
    refuse_taken(folder)
    with aside(folder.parent) as work:
        yield work
        _settle(work)
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.replace(work, folder)


@contextmanager
def aside(folder: Path, mark: str = UNFINISHED) -> Iterator[Path]:
    """A temporary empty folder inside another one, removed when the block ends; its name begins with `mark`."""
    work = folder / _unfinished(mark)
    os.mkdir(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn write errors into errors that name the file or folder.

    Raises:
        InputError: instead of any error from the operating system or safetensors.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def as_path(path: object) -> Path:
    """A path from a caller's argument.

    Raises:
        InputTypeError, InputError: if it is not a valid path.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"path={shown(path)}: expected the name of a file or folder.")
    if "\0" in os.fspath(path):
        raise InputError(f"path={shown(path)}: the name of a file or folder cannot contain a NUL character.")
    return Path(path)


def refuse_special(path: Path) -> None:
    """Raise an error if a folder, link, device, pipe or socket already has this name.

    Raises:
        InputError: the message states what has this name.
    """
    kind = _kind(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder: give the name of a file, such as {path / 'directions.safetensors'}.")
    if kind not in (None, "file"):
        raise InputError(f"{path} is a {kind}, and only files are replaced: give another name, or remove it first.")


def refuse_taken(folder: Path) -> None:
    """Raise an error if anything except an empty folder already has this name.

    Raises:
        InputError: the message states what has this name.
    """
    kind = _kind(folder)
    if kind == "folder" and any(folder.iterdir()) or kind == "file":
        raise InputError(f"{folder} exists and is not an empty folder: choose another name, or remove it.")
    if kind not in (None, "folder"):
        raise InputError(f"{folder} is a {kind}, which a folder cannot replace: choose another name.")


def refuse_misplaced(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Reject a folder where a file is expected, and anything except a folder where a folder is expected.

    Misplaced entries are not replaced, because audiolens did not create them and a folder may contain the only copy of
    something.

    Raises:
        InputError: the message names the first one. Once it is removed, the expected file or folder is created again.
    """
    for path, expected in (*((path, "file") for path in files), *((path, "folder") for path in folders)):
        if (kind := _kind(path)) not in (None, expected):
            raise InputError(
                f"{path} is a {kind}, but a {expected} belongs there: remove it, or choose another folder. After "
                f"the removal the {expected} is created again."
            )


def refuse_links(folder: Path) -> None:
    """Reject a folder that contains anything except files and folders: an untrusted link may lead outside the folder.

    Raises:
        InputError: the message names the first link, device, pipe or socket, or a folder that cannot be read.
    """
    inside = [folder]
    while inside:
        here = inside.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        inside.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False):
                        raise InputError(
                            f"{entry.path} is a {_kind(Path(entry.path))}, and {folder} may contain only files and "
                            "folders: remove it, or choose another folder."
                        )
        except FileNotFoundError:
            # Another process was writing this folder, and has renamed it by now.
            continue
        except OSError as error:
            raise InputError(f"{here} cannot be read: {error.strerror or error}.") from None


def inside(folder: Path, name: object) -> Path:
    """The path of a folder inside another one, given a name that was read from a file.

    Raises:
        InputError: if the name leads outside the folder, or if a link has this name.
    """
    if not is_name(name):
        raise InputError(f"{shown(name)} cannot name a folder in {folder}: expected a name without a path.")
    found = folder / str(name)
    if found.is_symlink():
        raise InputError(f"{found} is a symbolic link, and links inside a folder are not followed: remove it.")
    return found


def is_name(name: object) -> bool:
    """Whether this is a plain name inside a folder, rather than a path that could lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def remove(entry: Path) -> None:
    """Remove a file, a link or a whole folder; the target of a link is kept."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; no other process may be writing there."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        remove(leftover)


def _unfinished(mark: str = UNFINISHED) -> str:
    return f"{mark}{secrets.token_hex(8)}"


def _without_following(path: str, flags: int) -> int:
    """An opener for `open` that does not follow links and creates files with the umask's permissions."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _settle(folder: Path) -> None:
    """Flush every file to disk, with the permissions that the umask gives: some libraries create private files."""
    # The umask can be read only by setting it; the strictest one exposes nothing in the meantime.
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _kind(path: Path) -> str | None:
    """The kind of entry with this name ("file", "folder", "symbolic link", ...), or `None` if there is none."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "pipe"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "socket" if stat.S_ISSOCK(mode) else "device")
