"""Answering over HTTP: a few paths, one request per connection, for programs that watch this peer or tell it what to do.

It leaves no file, and dies with its nursery. Why h11 on trio sockets and not a web framework: starlette on
hypercorn costs each peer 0.09 s and 8 MB (measured), limits neither connections nor the time of a request, and brings loggers and
a graceful shutdown of its own; a few answers need less.
"""

import errno
from collections.abc import Callable, Iterable, Mapping

import h11
import msgspec
import trio

from legion_p2p.errors import NetworkError
from legion_p2p.net.accepting import Scarcity, accept_forever
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.tally import Tally

LOOPBACK = "127.0.0.1"
MAX_HEADER_BYTES = 8192  # curl sends 80, a browser 2000
MAX_BODY_BYTES = 1 << 16  # of a POST; the longest that any path takes is 4 KiB
MAX_CONNECTIONS = 16  # legion-ctl, a dashboard and a script use one each; more is a mistake or an attack
REQUEST_S = 5.0  # from accept to the last byte; a slow loris holds a slot no longer

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

Answer = tuple[int, str, bytes]
"""Of a path: the code, the type of the content, the content."""
Routes = Mapping[str, Callable[[], Answer]]


class Asked(msgspec.Struct, frozen=True):
    """A POST."""

    port: int
    """Of this server."""
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header that is there once; empty for any other."""
        found = [value for key, value in self.headers if key == name.lower().encode()]
        return found[0].decode("latin-1") if len(found) == 1 else ""


Posts = Mapping[str, Callable[[Asked], Answer]]
NO_POSTS: Posts = {}


async def listen_on(host: str, ports: Iterable[int], what: str) -> trio.SocketListener:
    """The first of `ports` that is free. Raises: NetworkError, which says that `what` cannot be served."""
    *others, last = ports
    for port in others:
        try:
            return await _listener(host, port)
        except OSError as bad:
            # EACCES: Windows reserves ranges of ports for itself
            if bad.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise NetworkError(f"cannot serve {what} on {host}: {bad.strerror or bad}") from bad
    try:
        return await _listener(host, last)
    except OSError as bad:
        where = f"{host}:{last}" if last else host
        raise NetworkError(f"cannot serve {what} on {where}: {bad.strerror or bad}") from bad


async def serve(listener: trio.SocketListener, routes: Routes, *, only_here: bool, posts: Posts = NO_POSTS) -> None:
    """Answer until cancelled. `routes` answer GET, `posts` POST.

    `only_here`: refuse a request whose Host is not loopback, so that no web page can ask through the browser of its reader (DNS
    rebinding).
    """
    keep_from_children(listener.socket)
    n_connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal n_connections
        if n_connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        n_connections += 1
        try:
            with trio.move_on_after(REQUEST_S):
                await _answer(stream, routes, posts, only_here)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass  # the client went away or speaks something else; nobody here is to blame
        finally:
            n_connections -= 1
            await trio.aclose_forcefully(stream)

    await accept_forever(listener, handle, Scarcity(None, lambda text: None, Tally()))


def address_of(listener: trio.SocketListener) -> str:
    """Where it listens, as HOST:PORT."""
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback_host(host: str) -> bool:
    """True for what a client on this machine writes into its Host header."""
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        name = host
    return name.lower() in _LOOPBACK_HOSTS


async def next_event(connection: h11.Connection, stream: trio.abc.ReceiveStream) -> object:
    """The next thing that the other side said."""
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await stream.receive_some(65536))


async def _listener(host: str, port: int) -> trio.SocketListener:
    return (await trio.open_tcp_listeners(port, host=host, backlog=MAX_CONNECTIONS))[0]


async def _answer(stream: trio.SocketStream, routes: Routes, posts: Posts, only_here: bool) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
    try:
        request = await next_event(connection, stream)
    except h11.RemoteProtocolError as bad:
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await _reply(connection, stream, bad.error_status_hint, "text/plain", b"bad request\n")
        return
    if not isinstance(request, h11.Request):
        return
    if request.method == b"POST" and (post := posts.get(_path(request))) is not None:
        answer = _refusal(request, only_here)
        if answer is None:
            body = await _body(connection, stream)
            too_long = 413, "text/plain", f"at most {MAX_BODY_BYTES} bytes\n".encode()
            port = stream.socket.getsockname()[1]
            answer = too_long if body is None else post(Asked(port, tuple(request.headers), body))
    else:
        answer = _route(request, routes, only_here)
    await _reply(connection, stream, *answer)


async def _body(connection: h11.Connection, stream: trio.SocketStream) -> bytes | None:
    """What was posted; None where that is too much."""
    body = bytearray()
    while isinstance(event := await next_event(connection, stream), h11.Data):
        body += event.data
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _path(request: h11.Request) -> str:
    return request.target.partition(b"?")[0].decode("latin-1")


def _refusal(request: h11.Request, only_here: bool) -> Answer | None:
    hosts = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    if only_here and (len(hosts) != 1 or not is_loopback_host(hosts[0])):
        return 403, "text/plain", b"only for this machine: the Host must be 127.0.0.1 or localhost\n"
    return None


def _route(request: h11.Request, routes: Routes, only_here: bool) -> Answer:
    refusal = _refusal(request, only_here)
    if refusal is not None:
        return refusal
    answer = routes.get(_path(request))
    if answer is None:
        return 404, "text/plain", f"there are {' and '.join(routes)}\n".encode()
    if request.method != b"GET":
        return 405, "text/plain", b"read only: GET\n"
    return answer()


async def _reply(connection: h11.Connection, stream: trio.SocketStream, code: int, kind: str, body: bytes) -> None:
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *([("Allow", "GET")] if code == 405 else []),
    ]
    head = connection.send(h11.Response(status_code=code, headers=headers)) or b""
    await stream.send_all(head + body)
    await stream.send_eof()
