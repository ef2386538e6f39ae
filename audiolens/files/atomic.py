"""Write files and folders atomically, so that each appears under its name either complete or not at all.

A writer creates the file or folder under an unused random name in the target folder, and then renames it. The writer
therefore never follows a link in that folder, and a killed run leaves the old file intact. A link, device, pipe or
socket is never replaced. `put` writes bytes, `written` is for libraries that need a path to write to, and `new_folder`
is for folders.
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
"""The beginning of the temporary name of a file or folder that is being written."""


def put(path: Path, content: bytes) -> Path:
    """Write a file into an existing folder atomically. Even a power failure leaves either the old file or the new one.

    Raises:
        InputError: if `path` exists and is not a regular file.
        StoppedError: if the folder no longer exists.
        OSError: if the file cannot be written.
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
    """Yield a temporary path to write to, which is renamed to `path` if the block succeeds; create missing folders.

    Raises:
        InputError: if `path` exists and is not a regular file, or if the file cannot be written.
    """
    target = as_path(path)
    refuse_special(target)
    with refused(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside(target.parent) as work:
            yield work / target.name
            settle(work)
            os.replace(work / target.name, target)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary empty folder, which is renamed to `folder` if the block succeeds. The parent must exist.

    Raises:
        InputError: if `folder` exists and is not an empty folder.
        OSError: if the folder cannot be created or written to.
    """
    refuse_taken(folder)
    with aside(folder.parent) as work:
        yield work
        settle(work)
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.replace(work, folder)


@contextmanager
def aside(folder: Path, mark: str = UNFINISHED) -> Iterator[Path]:
    """Yield an empty folder inside another one, with a name that begins with `mark`; remove it when the block ends.

    Call `settle` before moving anything out of it.
    """
    work = folder / _unfinished(mark)
    os.mkdir(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def settle(folder: Path) -> None:
    """Flush every file to disk, and set its permissions to those that the umask allows.

    Some libraries create files that only their owner can read.
    """
    # Reading the umask requires setting it. The strictest umask exposes no file in the meantime.
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as file:
                os.fsync(file.fileno())


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Convert write errors to errors that name the file or folder.

    Raises:
        InputError: if the operating system or safetensors raises an error in the block.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def as_path(path: object) -> Path:
    """Return a caller's argument as a path.

    Raises:
        InputTypeError, InputError: if the argument is not a valid path.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"path={shown(path)}: expected the name of a file or folder.")
    if "\0" in os.fspath(path):
        raise InputError(f"path={shown(path)}: the name of a file or folder cannot contain a NUL character.")
    return Path(path)


def refuse_special(path: Path) -> None:
    """Reject a path at which there is already a folder, link, device, pipe or socket.

    Raises:
        InputError: if anything except a regular file exists at this path; the message states what it is.
    """
    kind = _kind(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder: give the name of a file, such as {path / 'directions.safetensors'}.")
    if kind not in (None, "file"):
        raise InputError(f"{path} is a {kind}, and only files are replaced: give another name, or remove it first.")


def refuse_taken(folder: Path) -> None:
    """Reject a path at which there is already anything except an empty folder.

    Raises:
        InputError: if anything except an empty folder exists at this path; the message states what it is.
    """
    kind = _kind(folder)
    if kind == "folder" and any(folder.iterdir()) or kind == "file":
        raise InputError(f"{folder} exists and is not an empty folder: choose another name, or remove it.")
    if kind not in (None, "folder"):
        raise InputError(f"{folder} is a {kind}, which a folder cannot replace: choose another name.")


def refuse_misplaced(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Reject a folder where a file is expected, and anything except a folder where a folder is expected.

    Such an entry is not replaced, because audiolens did not create it and a folder might contain the user's only copy
    of some data.

    Raises:
        InputError: if a path has the wrong kind of entry; the message names the first such path. Once the user has
            removed the entry, audiolens creates the expected file or folder again.
    """
    for path, expected in (*((path, "file") for path in files), *((path, "folder") for path in folders)):
        if (kind := _kind(path)) not in (None, expected):
            raise InputError(
                f"{path} is a {kind}, but a {expected} belongs there: remove it, or choose another folder. Once "
                f"the {kind} is removed, the {expected} is created again."
            )


def refuse_links(folder: Path) -> None:
    """Reject a folder that contains anything except files and folders, because links can lead outside the folder.

    Raises:
        InputError: if there is a link, device, pipe or socket, or a folder that cannot be read; the message names it.
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
            # Another process was writing this folder, and has since renamed it.
            continue
        except OSError as error:
            raise InputError(f"{here} cannot be read: {error.strerror or error}.") from None


def inside(folder: Path, name: object) -> Path:
    """Return the path of a subfolder of `folder`, given a subfolder name that was read from a file.

    Raises:
        InputError: if the name leads outside `folder`, or if it is the name of a symbolic link.
    """
    if not is_name(name):
        raise InputError(f"{shown(name)} cannot name a folder in {folder}: expected a name without a path.")
    found = folder / str(name)
    if found.is_symlink():
        raise InputError(f"{found} is a symbolic link, and links inside a folder are not followed: remove it.")
    return found


def is_name(name: object) -> bool:
    """Whether `name` is the plain name of a folder entry, rather than a path that could lead out of the folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def remove(entry: Path) -> None:
    """Remove a file, a whole folder or a link, but not the target of a link."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Call this function only while no other process is writing to the folder.
    """
    for leftover in folder.glob(f"{UNFINISHED}*"):
        remove(leftover)


def _unfinished(mark: str = UNFINISHED) -> str:
    return f"{mark}{secrets.token_hex(8)}"


def _without_following(path: str, flags: int) -> int:
    """Open a file without following links, with the permissions that the umask allows (an `opener` for `open`)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _kind(path: Path) -> str | None:
    """The kind of entry at this path ("file", "folder", "symbolic link", ...), or `None` if there is no entry."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "pipe"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "socket" if stat.S_ISSOCK(mode) else "device")
