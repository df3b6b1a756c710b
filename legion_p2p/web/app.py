"""The page's server as a starlette application. Imported only when the first browser connects: it costs 0.1 s and 8 MB.

GET  /              the page, and the files that it is made of: they tell nothing of a peer
GET  /api/events    server-sent events: the page, then what of it changes
POST /api/control   a command as JSON (core/control.py)
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from legion_p2p.errors import LegionError
from legion_p2p.web.feed import EVERY_S, ClientState, Feed, Obey
from legion_p2p.web.guard import MAX_BODY_BYTES, check_request
from legion_p2p.web.static_files import FILES, HEADERS, file_bytes

MAX_CLIENTS = 8  # that look at once: some windows of one person; more is a mistake or an attack
BODY_S = 5.0  # for the few bytes of an action


class BadOrder(Exception):
    """A command that cannot be read; `code` is of HTTP."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def page_app(feed: Feed, obey: Obey | None, token: str) -> ASGIApp:
    """The application; without `obey` nothing can be changed through it."""
    routes = [Route(path, _file) for path in FILES]
    routes.append(Route("/api/events", Spectators(feed)))
    if obey is not None:
        routes.append(Route("/api/control", _control(feed, obey), methods=["POST"]))
    inner = Starlette(routes=routes)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["http_version"] not in ("1.0", "1.1"):
            return  # nothing here speaks websockets or HTTP/2: hypercorn closes the connection
        refusal = check_request(scope["method"], scope["path"], scope["headers"], token)
        if refusal is None:
            await inner(scope, receive, send)
            return
        await _text(refusal.code, refusal.why)(scope, receive, send)

    return guarded


def _text(code: int, text: str) -> Response:
    return Response(text + "\n", code, {**HEADERS, "Connection": "close"}, "text/plain")


async def _file(request: Request) -> Response:
    path = request.url.path
    return Response(file_bytes(path), 200, dict(HEADERS), FILES[path].kind)


class Spectators:
    """The browsers that show a page now. Each is sent what has changed, again and again."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._n = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._n >= MAX_CLIENTS:
            await _text(503, f"{MAX_CLIENTS} windows show this page already: close one")(scope, receive, send)
            return
        self._n += 1
        try:
            await StreamingResponse(self._tell(), 200, dict(HEADERS), "text/event-stream")(scope, receive, send)
        finally:
            self._n -= 1

    async def _tell(self) -> AsyncIterator[bytes]:
        sent = ClientState()
        while True:
            yield b"data: " + sent.update(self._feed.look()) + b"\n\n"
            await trio.sleep(EVERY_S)


def _control(feed: Feed, obey: Obey) -> Callable[[Request], Awaitable[Response]]:
    async def act(request: Request) -> Response:
        try:
            obey(await _body(request))
        except BadOrder as bad:
            return _text(bad.code, str(bad))
        except LegionError as bad:
            return _text(400, str(bad))
        feed.refresh()
        return _text(200, "done")

    return act


async def _body(request: Request) -> bytes:
    """The whole body. Raises: BadOrder, if it is too long or takes too long."""
    body = b""
    try:
        with trio.fail_after(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:  # without a length, in pieces
                    raise BadOrder(413, f"at most {MAX_BODY_BYTES} bytes")
    except trio.TooSlowError as slow:
        raise BadOrder(408, f"not all of it came in {BODY_S:.0f} s") from slow
    return body
