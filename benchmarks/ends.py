"""A time limit for code that might not end, so that a test or benchmark fails instead of hanging."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends(seconds: int = 30) -> Iterator[None]:
    """Raise an AssertionError in a block that is still at work after this time.

    A TimeoutError would be an OSError, which code that reads damaged files takes for damage.
    """

    def stop(*_: object) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
