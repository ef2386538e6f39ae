"""Watch a read: its time and memory, what it opens, writes, starts and connects to, and its error."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiolens.errors import AudioLensError

MOST_SECONDS = 2.0
"""Time allowed in addition to that of reading the valid files."""
MOST_BYTES = 2**30
MOST_MESSAGE = 2_000
_SPARE_BYTES = 6 * 2**30
"""Additional address space that the process may use, so that a fault does not exhaust the machine's memory."""
_OURS = tuple(str(Path(__file__).parents[3] / name) + os.sep for name in ("audiolens", "analysis"))
_RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "pickle.find_class",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "webbrowser.open", "marshal.loads",
)  # fmt: skip
_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
_OPENS_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """A read exceeded its time limit."""


@dataclass
class Seen:
    """The outcome of one read: its result or error, and a description of every fault."""

    result: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


_allowed: tuple[str, ...] | None = None
_events: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open":
        path, _, flags = args
        if isinstance(path, str | bytes) and flags & _OPENS_TO_WRITE and not _inside(path):
            _events.append(f"opened {os.fsdecode(path)} to write")
    elif event in _WRITES:
        if any(not _inside(path) for path in _changed(event, args)):
            _events.append(f"{event}{args!r:.200}")
    elif event in _RUNS and not (event == "marshal.loads" and _importing()):
        _events.append(f"{event}{args!r:.200}")


def _changed(event: str, args: tuple[Any, ...]) -> list[str]:
    """The paths that an event changes; for a link, only the link and not its target."""
    paths = args[1:2] if event in ("os.symlink", "os.link") else args[:2]
    found = [os.fsdecode(one) for one in paths if isinstance(one, str | bytes | os.PathLike)]
    removed = args[1:] if event in ("os.remove", "os.rmdir") else ()
    folders = [one for one in removed if isinstance(one, int) and one >= 0]
    return [os.path.join(os.readlink(f"/proc/self/fd/{folders[0]}"), one) if folders else one for one in found]


def _inside(path: Any) -> bool:
    return os.path.abspath(os.fsdecode(path)).startswith(_allowed or ())


def _importing() -> bool:
    """Whether Python itself is importing a module, which may write to its own cache of compiled files."""
    frame = sys._getframe(2)
    return "importlib" in frame.f_code.co_filename


def install() -> None:
    """Watch this process from now on, and limit its memory."""
    sys.addaudithook(_audit)
    signal.signal(signal.SIGALRM, _stop)
    limit = _memory("VmSize") + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _stop(*_: object) -> None:
    raise Hang


def watched(read: Callable[[], Any], allowed: tuple[str, ...], canary: Path, most_seconds: float) -> Seen:
    """Read under watch. Only paths that begin with one of `allowed` may be written; `canary` must remain unchanged."""
    seen, before = Seen(), _state(canary)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    held = _memory("VmRSS")
    with _armed(allowed) as events:
        started = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, most_seconds)
            seen.result = read()
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            seen.error = error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seen.seconds = time.perf_counter() - started
    grown = _memory("VmHWM") - held
    if isinstance(seen.error, KeyboardInterrupt):
        raise seen.error
    if seen.seconds >= most_seconds or isinstance(seen.error, Hang):
        seen.faults.append(f"slow: {seen.seconds:.1f} s {_where(seen.error)}")
    elif seen.error is not None:
        seen.faults += _faults_of(seen.error)
    if grown > MOST_BYTES:
        seen.faults.append(f"memory: {grown / 2**20:,.0f} MB")
    seen.faults += [f"touched: {event}" for event in events]
    if _state(canary) != before:
        seen.faults.append("canary: what lies outside the folder was changed")
    return seen


@contextmanager
def _armed(allowed: tuple[str, ...]) -> Iterator[list[str]]:
    global _allowed
    _events.clear()
    _allowed = allowed
    try:
        yield _events
    finally:
        _allowed = None


def _faults_of(error: BaseException) -> list[str]:
    """The faults of an error: raised by another library, longer than one line, or far too long."""
    text = str(error)
    if isinstance(error, MemoryError):
        return [f"memory: more than was allowed {_where(error)}"]
    ours = isinstance(error, AudioLensError) or (isinstance(error, ValueError | TypeError) and _is_raised_here(error))
    if not ours:
        return [f"foreign: {type(error).__name__}: {text:.200} {_where(error)}"]
    if "\n" in text or "\r" in text:
        return [f"lines: {type(error).__name__} of several lines: {text:.200!r} {_where(error)}"]
    if len(text) > MOST_MESSAGE:
        return [f"long: {type(error).__name__} of {len(text):,} characters: {text:.100} {_where(error)}"]
    return []


def _is_raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    line = frames[-1].line or "" if frames else ""
    return bool(frames) and frames[-1].filename.startswith(_OURS) and line.lstrip().startswith("raise")


def _where(error: BaseException | None) -> str:
    """The innermost line of audiolens in an error's traceback."""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_OURS)]
    return f"at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def _state(canary: Path) -> list[tuple[Any, ...]]:
    facts = [(entry.name, entry.stat()) for entry in os.scandir(canary)]
    return sorted((name, one.st_size, one.st_mtime_ns, one.st_mode) for name, one in facts)


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
