"""The web server of the playground: the page, and the few requests that the page makes.

It is meant for this machine and for people one trusts. Nothing that a visitor sends is run, stored on disk beyond a
request, or put into a page as markup, and the page may fetch from this server alone (`_HEADERS`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from analysis.playground import shelf as shelves
from analysis.playground.address import url_of, visitors_names
from analysis.playground.line import Event, Line, Tell
from analysis.playground.studio import Clip, Studio
from analysis.playground.wish import Wish
from audiolens.errors import AudioLensError, InputError
from audiolens.files.json_shapes import refuse_other

STATIC = Path(__file__).with_name("static")
MOST_REQUEST = 64 * 2**10
"""Bytes of a request for clips."""
MOST_UPLOAD = 4 * shelves.MOST_BYTES // 3 + 2**20
"""Bytes of an upload: directions in base64, and the summary of a study."""
MOST_RESULTS = 24
"""Requests whose clips are kept, besides those that still wait or are being made."""
OWN_RESULTS = 3
"""Requests of one visitor whose clips are kept, so that nobody's clips go because somebody else moves a slider."""
MOST_UPLOADS = 2
"""Uploads that are read at a time, because each is kept in memory."""
UPLOAD_SECONDS = 300.0
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_UPLOAD = {"name": str, "directions": str, "summary?": (str, None)}


@dataclass(eq=False)
class _Result:
    """What one request told, and the clips that it made. It is `over` when nothing further will be made."""

    visitor: str
    over: bool = False
    events: list[Event] = field(default_factory=list)
    clips: dict[str, Clip] = field(default_factory=dict)


class Playground:
    """The requests of the page, over one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.line = studio, Line()
        self._results: OrderedDict[str, _Result] = OrderedDict()
        self._uploads = asyncio.Semaphore(MOST_UPLOADS)

    def app(self, hosts: tuple[str, ...] | None) -> ASGIApp:
        """Return the application. Requests under other names than `hosts` are refused; `None` allows every name."""
        routes = [
            Route("/", self.page),
            *(
                Route(f"/{name}", self.file)
                for name in ("playground.js", "sliders.js", "clips.js", "draw.js", "text.js", "playground.css")
            ),
            Route("/state", self.state),
            Route("/clips", self.clips, methods=["POST"]),
            Route("/directions", self.add, methods=["POST"]),
            Route("/clips/{token}", self.told),
            Route("/clips/{token}/{file}", self.sound),
        ]
        # A page of another site could otherwise reach this server under a name of its own (DNS rebinding).
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))] if hosts else []
        return _with_headers(Starlette(routes=routes, middleware=middleware))

    async def page(self, _: Request) -> Response:
        return FileResponse(STATIC / "playground.html", media_type="text/html")

    async def file(self, request: Request) -> Response:
        return FileResponse(STATIC / request.url.path.lstrip("/"))

    async def state(self, request: Request) -> Response:
        """The model and its sliders, with those that the visitor has added before (`?added=`)."""
        facts = self.studio.facts()
        kept = [self.studio.shelf.added.get(key) for key in request.query_params.getlist("added")]
        facts["concepts"] = [*facts["concepts"], *(entry.facts() for entry in kept if entry is not None)]
        return _Json(facts)

    async def clips(self, request: Request) -> Response:
        """Make clips, and send a line of JSON for everything that happens, until they are done or nobody listens."""
        try:
            asked = await _body(request, MOST_REQUEST)
            refuse_other("The request", asked, {"visitor": str})
            visitor = asked["visitor"][:100]
            wish = Wish.of(asked.get("wish"), self.studio.longest)
        except InputError as error:
            return _refused(error)
        token, result, events = secrets.token_urlsafe(16), _Result(visitor), asyncio.Queue[Event]()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            if event["event"] not in ("step", "waiting"):
                result.events.append(event)
            # The loop is closed when the server stops.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work(told: Tell, stop: threading.Event) -> None:
            self.studio.make(wish, result.clips, told, stop)

        def left() -> None:
            self.line.leave(ticket)
            result.over = True

        try:
            ticket = self.line.ask(visitor, work, tell)
        except InputError as error:
            return _refused(error)
        self._keep(token, result)

        async def lines() -> AsyncIterator[bytes]:
            yield _line({"event": "begun", "token": token})
            while True:
                event = await events.get()
                yield _line(event)
                if event["event"] in ("done", "cancelled", "replaced", "error"):
                    return

        return _Told(lines(), left)

    async def told(self, request: Request) -> Response:
        """What a request told, so that a page that is loaded again shows its clips again."""
        result = self._results.get(request.path_params["token"])
        return _gone() if result is None else _Json({"events": result.events})

    async def sound(self, request: Request) -> Response:
        """A clip as WAV, or as ZIP with all that it takes to make it again."""
        result = self._results.get(request.path_params["token"])
        name, _, kind = request.path_params["file"].partition(".")
        clip = None if result is None else result.clips.get(name)
        if clip is None or kind not in ("wav", "zip"):
            return _gone()
        content = clip.wav if kind == "wav" else await asyncio.to_thread(clip.recipe.zipped, clip.wav)
        headers = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
        return Response(content, media_type="audio/wav" if kind == "wav" else "application/zip", headers=headers)

    async def add(self, request: Request) -> Response:
        """Add the directions of a file, or of a study, that a visitor sends."""
        try:
            async with self._uploads, asyncio.timeout(UPLOAD_SECONDS):
                asked = await _body(request, MOST_UPLOAD)
                refuse_other("The upload", asked, _UPLOAD)
                try:
                    content = base64.b64decode(asked["directions"], validate=True)
                except (binascii.Error, ValueError):
                    raise InputError("The upload is not in base64.") from None
                summary = None if asked.get("summary") is None else asked["summary"].encode("utf-8", "surrogatepass")
                entry = await asyncio.to_thread(self.studio.shelf.add, asked["name"], content, summary)
        except TimeoutError:
            return _refused(InputError(f"The upload took longer than {UPLOAD_SECONDS:g} seconds."))
        except AudioLensError as error:
            return _refused(error)
        return _Json(entry.facts())

    def _keep(self, token: str, result: _Result) -> None:
        """Keep a result, and forget the oldest ones: those of the same visitor, and those over for which no room is."""
        self._results[token] = result
        mine = [key for key, one in self._results.items() if one.visitor == result.visitor]
        for key in mine[:-OWN_RESULTS]:
            del self._results[key]
        over = [key for key, one in self._results.items() if one.over]
        for key in over[: max(0, len(over) - MOST_RESULTS)]:
            del self._results[key]


class _Server(uvicorn.Server):
    """Ends what visitors wait for before it waits for their connections to end."""

    def __init__(self, config: uvicorn.Config, line: Line) -> None:
        super().__init__(config)
        self._line = line

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._line.end()
        await super().shutdown(sockets)


def serve(studio: Studio, bound: socket.socket, host: str, began: Callable[[str], object]) -> None:
    """Serve the page on a bound socket until the process is interrupted. `began` is called with the page's address."""
    playground = Playground(studio)
    config = uvicorn.Config(
        playground.app(visitors_names(host)),
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, playground.line)
    began(url_of(host, bound.getsockname()[1]))
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
    finally:
        playground.line.close()


async def _body(request: Request, most: int) -> Any:
    """Read the JSON of a request, but no more than `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        # A form of another site can send text, but JSON only if this server had agreed, which it never does.
        raise InputError("The request is not JSON.")
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise InputError(f"The request is larger than {most / 2**20:.2g} MB.")
        return json.loads(bytes(content), parse_constant=_no_number)
    except ClientDisconnect:
        raise InputError("The browser has left.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("The request is not JSON.") from None


def _no_number(name: str) -> Any:
    raise InputError(f"{name} is not a number.")


def _plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, with null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Json(JSONResponse):
    """A value without NaN, in ASCII: text of a file can hold half of a surrogate pair, which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        return json.dumps(_plain(content), allow_nan=False).encode("ascii")


class _Told(StreamingResponse):
    """Lines of JSON. `left` is called when they end, also if the browser left before the first was asked for."""

    def __init__(self, lines: AsyncIterator[bytes], left: Callable[[], object]) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def _line(event: Event) -> bytes:
    return json.dumps(_plain(event), allow_nan=False).encode("ascii") + b"\n"


def _refused(error: AudioLensError) -> Response:
    return _Json({"error": str(error)}, status_code=422)


def _gone() -> Response:
    return _Json({"error": "There is no such clip here any more."}, status_code=404)


def _with_headers(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
    """Add `_HEADERS` to every answer."""
    extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await app(scope, receive, sent)

    return wrapped
