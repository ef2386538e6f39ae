"""Files: everything written here is there whole or not at all, and nowhere but under the name that was asked for.

A writer makes a file or folder under a random name that nothing has yet, in the folder it is for, and then gives it
its name: what a link of that folder points to is never opened, and a run that is killed leaves the old file. A link,
device, pipe or socket is never replaced. `put` takes bytes, `written` is for libraries that want a path, `new_folder`
for folders.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from audiolens.errors import InputError, InputTypeError, StoppedError

UNFINISHED = ".unfinished-"
"""How the name of what is being written begins."""


def put(path: Path, content: bytes) -> Path:
    """Write a file into a folder that is there; it replaces an older one, also if the power fails, whole or not at all.

    Raises:
        InputError: if something other than a file has the name.
        StoppedError: if the folder is gone.
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
    """Where a library is to write a file, which takes the name `path` when the block ends well; folders are made.

    Raises:
        InputError: if something other than a file has the name, or it cannot be written.
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
def new_folder(place: Path) -> Iterator[Path]:
    """An empty folder that takes the name `place`, in a folder that is there, when the block ends well.

    Raises:
        InputError: if something other than an empty folder has the name.
        OSError: if it cannot be written.
    """
    refuse_taken(place)
    with aside(place.parent) as work:
        yield work
        _settle(work)
        with suppress(FileNotFoundError):
            place.rmdir()
        os.replace(work, place)


@contextmanager
def aside(folder: Path, mark: str = UNFINISHED) -> Iterator[Path]:
    """A new, empty folder inside another one for as long as the block runs; its name begins with `mark`."""
    work = folder / _unfinished(mark)
    os.mkdir(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Say which file or folder cannot be written.

    Raises:
        InputError: in the place of what the system, or safetensors, raises.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def as_path(path: object) -> Path:
    """A path from what a caller gave as one.

    Raises:
        InputTypeError, InputError: if it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"path={path!r}: expected the name of a file or folder.")
    if "\0" in os.fspath(path):
        raise InputError(f"path={path!r}: the name of a file or folder cannot hold a NUL character.")
    return Path(path)


def refuse_special(path: Path) -> None:
    """Refuse to write a file where a folder, link, device, pipe or socket has the name.

    Raises:
        InputError: saying what is there.
    """
    kind = _kind(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder: give the name of a file, such as {path / 'directions.safetensors'}.")
    if kind not in (None, "file"):
        raise InputError(f"{path} is a {kind}, and only a file is replaced: give another name, or remove it first.")


def refuse_taken(place: Path) -> None:
    """Refuse to make a folder where anything but an empty folder has the name.

    Raises:
        InputError: saying what is there.
    """
    kind = _kind(place)
    if kind == "folder" and any(place.iterdir()) or kind == "file":
        raise InputError(f"{place} exists and is not an empty folder: choose another, or remove it.")
    if kind not in (None, "folder"):
        raise InputError(f"{place} is a {kind}, and no folder can take its place: choose another name.")


def refuse_misplaced(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Refuse folders that have the names of files, and anything else that has the name of a folder.

    They are not replaced: nothing here put them there, and a folder may hold what is nowhere else.

    Raises:
        InputError: naming the first; what belongs there is made again once it is removed.
    """
    for path, expected in (*((path, "file") for path in files), *((path, "folder") for path in folders)):
        if (kind := _kind(path)) not in (None, expected):
            raise InputError(
                f"{path} is a {kind}, and a {expected} belongs there, which is made again: remove it, or choose "
                "another folder."
            )


def refuse_links(folder: Path) -> None:
    """Refuse a folder that holds anything but files and folders: whoever made it may lead out of it by a link.

    Raises:
        InputError: naming the first link, device, pipe or socket, or a folder that cannot be looked into.
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
                            f"{entry.path} is a {_kind(Path(entry.path))}, and {folder} may hold nothing but files and "
                            "folders: remove it, or choose another folder."
                        )
        except FileNotFoundError:
            # What another process was writing there has its own name by now.
            continue
        except OSError as error:
            raise InputError(f"{here} cannot be read: {error.strerror or error}.") from None


def inside(folder: Path, name: object) -> Path:
    """A folder inside another one, by a name that came from a file.

    Raises:
        InputError: if the name leads elsewhere, or is that of a link.
    """
    if not is_name(name):
        raise InputError(f"{name!r} cannot name a folder in {folder}: expected a name without a path.")
    found = folder / str(name)
    if found.is_symlink():
        raise InputError(f"{found} is a symbolic link, and links inside a folder are not followed: remove it.")
    return found


def is_name(name: object) -> bool:
    """Whether this is the name of something inside a folder, and no path out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def remove(entry: Path) -> None:
    """Remove a file, a link or a whole folder; what a link points to stays."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process writes to."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        remove(leftover)


def _unfinished(mark: str = UNFINISHED) -> str:
    return f"{mark}{secrets.token_hex(8)}"


def _without_following(path: str, flags: int) -> int:
    """Open a new file as the umask says."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _settle(folder: Path) -> None:
    """Bring every file to the disk, as readable as the umask would have made it: libraries make some private."""
    # There is no way to read the umask but to set it; the strictest one meanwhile exposes nothing.
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _kind(path: Path) -> str | None:
    """What has this name: "file", "folder", or what it is instead; `None` for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "pipe"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "socket" if stat.S_ISSOCK(mode) else "device")
