"""What the playground's server keeps, cancels and refuses, asked as a web server would ask it, without a model."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.playground import server
from analysis.playground.address import listening, url_of, visitors_names
from analysis.playground.line import MOST_WAITING, Cancelled, Line
from analysis.playground.server import Playground
from audiolens.errors import InputError

WISH = {"prompt": "a song", "seed": 0, "seconds": 1.0, "guidance": 3.0, "pushes": []}
Make = Callable[[Any, dict[str, Any], Any, threading.Event], object]


def at_once(_: Any, clips: dict[str, Any], tell: Any, __: threading.Event) -> None:
    clips["unsteered"] = SimpleNamespace(wav=b"RIFF")
    tell({"event": "clip", "clip": "unsteered", "level": float("nan")})


class Studio:
    """Makes clips as a test says, and has no shelf: an upload that gets so far is told to `added`."""

    longest = 30.0

    def __init__(self, make: Make = at_once) -> None:
        self.make, self.added = make, []
        self.shelf = SimpleNamespace(add=self.add)

    def add(self, name: str, content: bytes, summary: bytes | None) -> Any:
        self.added.append((name, content, summary))
        raise InputError(f"{name} is refused.")


@pytest.fixture
def opened() -> Iterator[Callable[..., Playground]]:
    """Open a playground whose thread ends with the test."""
    made: list[Playground] = []

    def one(make: Make = at_once) -> Playground:
        studio: Any = Studio(make)
        made.append(Playground(studio))
        return made[-1]

    yield one
    for playground in made:
        playground.line.close()


def ask(playground: Playground, path: str, content: Any = None, leaves: bool = False) -> tuple[int, list[Any], int]:
    """Send a request, and return the status, the lines of JSON, and the number of bytes that were read.

    The visitor stays until the end, or leaves as soon as everything is sent (`leaves`).
    """
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    parts = [] if body is None else [body[place : place + 2**16] for place in range(0, len(body), 2**16)]
    sent: list[Any] = []
    read = 0

    async def receive() -> Any:
        nonlocal read
        if parts:
            part = parts.pop(0)
            read += len(part)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        if not leaves:
            await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET" if body is None else "POST", "path": path, "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "server": ("localhost", 1), "scheme": "http",
    }  # fmt: skip
    asyncio.run(playground.app(("localhost",))(scope, receive, send))
    status = next((one["status"] for one in sent if one["type"] == "http.response.start"), 0)
    text = b"".join(one.get("body", b"") for one in sent)
    return status, [json.loads(line) for line in text.splitlines()] if text[:1] == b"{" else [text], read


def make(playground: Playground, visitor: str) -> str:
    """Ask for clips, and return the token of the result."""
    status, lines, _ = ask(playground, "/clips", {"visitor": visitor, "wish": WISH})
    assert (status, lines[-1]["event"]) == (200, "done")
    return lines[0]["token"]


def test_whoever_leaves_before_the_first_line_cancels_the_work(opened: Any) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def make_until_stopped(_: Any, __: Any, ___: Any, stop: threading.Event) -> None:
        begun.set()
        if stop.wait(20):
            stopped.set()
        raise Cancelled("nobody waits")

    playground = opened(make_until_stopped)
    ask(playground, "/clips", {"visitor": "ann", "wish": WISH}, leaves=True)
    # Either it had not begun, and left the line, or it was stopped.
    begun_at_all = begun.wait(0.5)
    assert stopped.wait(5) if begun_at_all else not playground.line._waiting


def test_nobody_loses_clips_because_somebody_else_moves_a_slider(opened: Any) -> None:
    playground = opened()
    mine = make(playground, "ann")
    others = [make(playground, "bob") for _ in range(2 * server.MOST_RESULTS)]
    assert ask(playground, f"/clips/{mine}/unsteered.wav")[0] == 200
    there = [ask(playground, f"/clips/{token}")[0] for token in others]
    assert there == [404] * (len(others) - server.OWN_RESULTS) + [200] * server.OWN_RESULTS
    # Many visitors together are kept up to a limit, the oldest go first.
    for number in range(server.MOST_RESULTS):
        make(playground, f"visitor {number}")
    assert ask(playground, f"/clips/{mine}")[0] == 404
    assert len(playground._results) <= server.MOST_RESULTS + 1


def test_clips_that_are_being_made_are_kept_however_many_wait(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_RESULTS", 0)
    here: list[int] = []

    def made(wish: Any, clips: dict[str, Any], tell: Any, stop: threading.Event) -> None:
        at_once(wish, clips, tell, stop)
        here.append(len(playground._results))

    playground = opened(made)
    make(playground, "ann")
    assert here == [1]


def test_numbers_that_are_none_are_null(opened: Any) -> None:
    playground = opened()
    events = ask(playground, f"/clips/{make(playground, 'ann')}")[1][0]["events"]
    assert events == [{"event": "clip", "clip": "unsteered", "level": None}, {"event": "done"}]


def test_half_a_letter_is_refused_and_breaks_nothing(opened: Any) -> None:
    playground = opened()
    push = '{"visitor": "ann", "wish": {"prompt": "a", "seed": 0, "seconds": 1, "guidance": 3, "pushes": '
    status, lines, _ = ask(playground, "/clips", f'{push}[{{"concept": "\\ud800<b>", "value": 1e400}}]}}}}'.encode())
    assert status == 422
    assert "'\\ud800<b>': value" in lines[0]["error"]
    status, lines, _ = ask(playground, "/directions", {"name": "\ud800", "directions": "AAAA"})
    assert (status, lines) == (422, [{"error": "\ud800 is refused."}])
    for broken in (b"{", b"[" * 10_000, b'{"visitor": NaN}', b'{"visitor": "a", "wish": 1' + b"0" * 5000 + b"}"):
        assert ask(playground, "/clips", broken)[0] == 422


def test_no_more_of_an_upload_is_read_than_it_may_have(opened: Any) -> None:
    playground = opened()
    content = base64.b64encode(bytes(2**25)).decode()
    status, lines, read = ask(playground, "/directions", {"name": "big", "directions": content})
    assert status == 422
    assert "larger than 22 MB" in lines[0]["error"]
    assert read <= server.MOST_UPLOAD + 2**16 < len(content)
    assert playground.studio.added == []


def test_an_upload_that_never_ends_gives_up_its_place(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.05)
    playground = opened()
    # A body of half a request: the visitor stays, and sends nothing more.
    monkeypatch.setattr(server, "_body", lambda *_: asyncio.sleep(3600))
    for _ in range(server.MOST_UPLOADS + 1):
        status, lines, _ = ask(playground, "/directions", {"name": "slow"})
        assert status == 422
        assert "took longer" in lines[0]["error"]


def test_a_full_line_refuses_others_and_takes_nothing_from_those_in_it() -> None:
    line, go, told = Line(), threading.Event(), []

    def waits(_: Any, stop: threading.Event) -> None:
        go.wait(20)
        if stop.is_set():
            raise Cancelled("nobody waits")

    first = threading.Event()
    line.ask("ann", lambda tell, stop: (first.set(), waits(tell, stop)), lambda event: told.append(event["event"]))
    assert first.wait(20)
    tickets = [line.ask(f"visitor {n}", waits, lambda _: None) for n in range(MOST_WAITING)]
    # Ann has no place in the line any more, so she keeps what is being made for her.
    with pytest.raises(InputError, match=f"{MOST_WAITING} people are waiting"):
        line.ask("ann", waits, lambda _: None)
    assert "replaced" not in told
    # Who waits may always ask for something else.
    last: list[Any] = []
    line.ask("visitor 0", waits, last.append)
    assert tickets[0].stop.is_set()
    assert last == [{"event": "waiting", "ahead": MOST_WAITING}]
    go.set()
    line.close()


def test_whoever_asks_again_does_not_wait_for_oneself() -> None:
    line, go, begun, told = Line(), threading.Event(), threading.Event(), []
    line.ask("ann", lambda _, __: (begun.set(), go.wait(20)), lambda _: None)
    assert begun.wait(20)
    done = threading.Event()
    line.ask("ann", lambda _, __: None, lambda event: (told.append(event), event["event"] == "done" and done.set()))
    go.set()
    assert done.wait(20)
    line.close()
    assert told == [{"event": "waiting", "ahead": 0}] * 2 + [{"event": "done"}]


@pytest.mark.parametrize(
    ("host", "names", "url"),
    [
        ("127.0.0.1", ("127.0.0.1", "localhost", "::1", "[::1]"), "http://127.0.0.1:80"),
        ("127.0.1.1", ("127.0.1.1",), "http://127.0.1.1:80"),
        ("LocalHost", ("localhost",), "http://LocalHost:80"),
        ("::1", ("[::1]",), "http://[::1]:80"),
        ("0.0.0.0", None, "http://127.0.0.1:80"),
        ("::", None, "http://[::1]:80"),
        ("192.0.2.7", None, "http://192.0.2.7:80"),
    ],
)
def test_only_an_address_of_this_machine_has_a_list_of_names(host: str, names: tuple[str, ...], url: str) -> None:
    found = visitors_names(host)
    assert found is None if names is None else found is not None and {*names} <= {*found}
    assert url_of(host, 80) == url


def test_an_empty_address_is_not_the_whole_network() -> None:
    with pytest.raises(InputError, match="--host is empty"):
        listening(" ", 0)
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use"):
            listening("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=20):
            pass
