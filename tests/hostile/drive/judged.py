"""Classify the result of a call: it worked, was refused with an audiolens error, or failed in one of several ways."""

import contextlib
import dis
import io
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from audiolens.errors import AudioLensError
from hostile.drive import values

ROOT = Path(__file__).parents[3]
OURS = (f"{ROOT}/audiolens/", f"{ROOT}/analysis/")
SLOW_SECONDS, LONGEST_SECONDS = 2.0, 20
GIB = 2**30
LONGEST_MESSAGE = 2_000
FINE = ("worked", "refused", "python's own", "caller's own")


class Hang(BaseException):
    """A call exceeded its time limit."""


@dataclass(frozen=True)
class Outcome:
    """The result of a call: `kind` is in `FINE` or names a fault; `told` is the message, `where` its origin."""

    kind: str
    told: str = ""
    where: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return self.kind in FINE


def outcome(
    call: Callable[[], Any], *, by_python: bool = False, given: Any = None, slow: float = SLOW_SECONDS
) -> Outcome:
    """Make the call.

    Args:
        by_python: Python's own TypeError, for a missing or unknown argument, is expected.
        given: the value passed in place of a function; it may fail when it is called.
        slow: seconds of processor time above which a refusal is a fault.
    """
    start = time.process_time()
    try:
        with stopped_in_time(), silent():
            call()
    except Hang as error:
        return Outcome("hang", f"no end after {LONGEST_SECONDS} s", place(error.__traceback__))
    except BaseException as error:
        seconds = time.process_time() - start
        return judged(error, seconds, by_python, given, slow)
    return Outcome("worked", seconds=time.process_time() - start)


def judged(
    error: BaseException, seconds: float, by_python: bool, given: Any = None, slow: float = SLOW_SECONDS
) -> Outcome:
    told, where = message(error), place(error.__traceback__)
    frames = list(traceback.walk_tb(error.__traceback__))
    last = frames[-1][0].f_code.co_filename
    inside = given is not None and any(frame.f_locals.get("self") is given for frame, _ in frames)
    if last == values.HERE or inside:
        return Outcome("caller's own", told, where, seconds)
    if by_python and type(error) is TypeError and "argument" in told:
        return Outcome("python's own", told, where, seconds)
    if not isinstance(error, AudioLensError) and not (
        type(error) in (ValueError, TypeError) and raised_by_us(error.__traceback__)
    ):
        return Outcome(f"foreign {type(error).__name__}", told, where, seconds)
    if "\n" in told:
        return Outcome("several lines", told, where, seconds)
    if len(told) > LONGEST_MESSAGE:
        return Outcome("long message", told, where, seconds)
    if seconds > slow:
        return Outcome("slow refusal", f"{seconds:.1f} s: {told}", where, seconds)
    return Outcome("refused", told, where, seconds)


def message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as other:
        return f"no message: {type(other).__name__}\n"


def raised_by_us(trace: TracebackType | None) -> bool:
    """Whether the last frame is in audiolens and at a `raise` statement; C code has no frame of its own."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(OURS):
        return False
    code = trace.tb_frame.f_code.co_code
    return dis.opname[code[trace.tb_lasti]] == "RAISE_VARARGS"


def place(trace: TracebackType | None) -> str:
    """The innermost line of audiolens in a traceback."""
    found = ""
    for frame, line in traceback.walk_tb(trace):
        if frame.f_code.co_filename.startswith(OURS):
            found = f"{os.path.relpath(frame.f_code.co_filename, ROOT)}:{line}"
    return found


@contextlib.contextmanager
def stopped_in_time(seconds: int = LONGEST_SECONDS) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    # Count this process's CPU time, since the machine may be busy; faulthandler stops a call that sleeps forever.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def bound_memory(more: int = GIB) -> None:
    """Limit the address space: exceeding it raises a MemoryError, or a RuntimeError in torch."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Guard:
    """A check that a model is unchanged: same weights, no hooks left, and bit-identical logits."""

    def __init__(self, lens: Any, prompts: list[str], codes: torch.Tensor) -> None:
        self.lens, self.prompts, self.codes = lens, prompts, codes
        self.weights, self.logits = self.state(), self.read()

    def state(self) -> Any:
        model = self.lens.model
        tensors = [*model.parameters(), *model.buffers()]
        hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
        return [(one.data_ptr(), one._version) for one in tensors], hooks, model.training, torch.is_grad_enabled()

    def read(self) -> torch.Tensor:
        return self.lens.run_with_cache(self.prompts, self.codes)[0]

    def broken(self, *, read: bool = False) -> str:
        """A description of what changed; empty if nothing did."""
        if self.state() != self.weights:
            return "the model was changed"
        try:
            same = not read or torch.equal(self.read(), self.logits)
        except Exception as error:
            return f"the model is unusable: {error}"
        return "" if same else "the model says something else"
