"""Ways in which a run stops: the process is killed at a write, or the disk is full."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

Write = Literal["cut", "fsync", "replace", "unlink"]
"""A moment of a write: its file is half written, or written, or its name is about to be changed to the final one. Or a
file is about to be removed."""


def killed(work: Callable[[], object], at: int, write: Write = "replace") -> None:
    """Run `work` in a process that kills itself (-9) at this moment of its n-th write."""
    assert was_killed(work, at, write)


def was_killed(work: Callable[[], object], at: int, write: Write) -> bool:
    """Whether `work` had an n-th write at all, at which the process killed itself."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def die(*given: Any) -> None:
        if write == "cut":
            with suppress(OSError):
                os.ftruncate(given[0], os.fstat(given[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        with _instead(write, at, die):
            work()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Let writes fail after this many."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with _instead("fsync", after, full, for_good=True):
        yield


@contextmanager
def _instead(write: Write, at: int, other: Callable[..., None], for_good: bool = False) -> Iterator[None]:
    name = "fsync" if write == "cut" else write
    own, calls = getattr(os, name), iter(range(10_000))

    def called(*given: Any) -> Any:
        number = next(calls)
        return other(*given) if number == at or (for_good and number > at) else own(*given)

    with patch.object(os, name, called):
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """Every file to the byte, but for how long things took."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("seconds.json", ".lock")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(out: Path, whole: Path) -> None:
    mine, theirs = contents(out), contents(whole)
    assert set(mine) == set(theirs)
    assert [name for name in theirs if mine[name] != theirs[name]] == []
