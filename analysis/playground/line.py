"""The line in which visitors wait: one thread makes their clips in turn, because a model runs one call at a time.

A visitor has one place in the line. Whoever asks again gives up what was asked for before, also if it is being made.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from audiolens.errors import AudioLensError, InputError

Event = dict[str, Any]
Tell = Callable[[Event], object]
Work = Callable[[Tell, threading.Event], object]
"""What a visitor waits for: it tells what it has made, and raises `Cancelled` soon after the event is set."""
MOST_WAITING = 32


class Cancelled(AudioLensError):
    """Nobody waits for these clips any more."""


@dataclass(eq=False)
class Ticket:
    """A place in the line. `stop` is set once nobody waits for its clips."""

    visitor: str
    work: Work
    tell: Tell
    stop: threading.Event = field(default_factory=threading.Event)


class Line:
    """The waiting visitors, and the thread that serves them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._served: Ticket | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="playground", daemon=True)
        self._thread.start()

    def ask(self, visitor: str, work: Work, tell: Tell) -> Ticket:
        """Join the line, in place of what the same visitor asked for before.

        Raises:
            InputError: if too many visitors wait.
        """
        ticket = Ticket(visitor, work, tell)
        with self._changed:
            if sum(one.visitor != visitor for one in self._waiting) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} people are waiting already: try again in a minute.")
            for older in [one for one in (self._served, *self._waiting) if one is not None]:
                if older.visitor == visitor:
                    self._drop(older)
                    older.tell({"event": "replaced"})
            self._waiting.append(ticket)
            self._tell_places()
            self._changed.notify()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up a place in the line."""
        with self._changed:
            self._drop(ticket)
            self._tell_places()

    def end(self) -> None:
        """Tell everybody that nothing more will be made. The thread stops after the step that it computes."""
        with self._changed:
            self._closed = True
            for ticket in [one for one in (self._served, *self._waiting) if one is not None]:
                ticket.stop.set()
                ticket.tell({"event": "error", "text": "The playground has been stopped."})
            self._waiting.clear()
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.end()
        self._thread.join(timeout=60)

    def _drop(self, ticket: Ticket) -> None:
        ticket.stop.set()
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def _tell_places(self) -> None:
        # Whoever has left is not waited for, except for the step that is being computed.
        served = self._served is not None and not self._served.stop.is_set()
        for place, ticket in enumerate(self._waiting):
            ticket.tell({"event": "waiting", "ahead": place + served})

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._served = None
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._served = ticket = self._waiting.popleft()
                ticket.tell({"event": "waiting", "ahead": 0})
                self._tell_places()
            try:
                ticket.work(ticket.tell, ticket.stop)
                ticket.tell({"event": "done"})
            except Cancelled:
                ticket.tell({"event": "cancelled"})
            except AudioLensError as error:
                ticket.tell({"event": "error", "text": str(error)})
            except Exception:
                # The thread serves everybody, so it must survive a bug; the traceback tells whoever started the server.
                traceback.print_exc(file=sys.stderr)
                text = "Something is wrong in the playground itself; the terminal in which it runs shows the error."
                ticket.tell({"event": "error", "text": text})
