"""The status of a running peer over HTTP, for this machine only; and how to find and to read it.

The server answers one request per connection (`GET /status`, `GET /healthz`) and closes it. It binds 127.0.0.1, so that nobody
outside can ask, and refuses a request whose Host is not loopback, so that no web page can ask through the browser of its reader
(DNS rebinding). It changes nothing, leaves no file, and dies with its nursery.

Why h11 on trio sockets and not a web framework: starlette on hypercorn costs each peer 0.09 s and 8 MB (measured), limits
neither connections nor the time of a request, and brings loggers and a graceful shutdown of its own; two answers need less.
"""

import errno
import socket
from collections.abc import Callable, Iterable

import h11
import msgspec
import trio

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.config import STATUS_PORTS
from legion_p2p.errors import NetworkError
from legion_p2p.net.accepting import Scarcity, accept_forever
from legion_p2p.net.forks import keep_from_children
from legion_p2p.observe.status import STATUS_VERSION, Status

LOOPBACK = "127.0.0.1"
MAX_HEADER_BYTES = 8192  # curl sends 80, a browser 2000
MAX_CONNECTIONS = 16  # legion-ctl, a dashboard and a script use one each; more is a mistake or an attack
REQUEST_S = 5.0  # from accept to the last byte; a slow loris holds a slot no longer
MAX_STATUS_BYTES = 16 << 20  # 50,000 shards and members
PROBE_S = 2.0  # a closed port refuses at once; only a busy or stopped peer needs waiting for
NO_STATUS = b"no status:"  # how a peer begins to say why it has none; a web server says something else

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


async def serve_status(
    get_status: Callable[[], Status],
    *,
    ports: Iterable[int] = STATUS_PORTS,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve what `get_status` returns on the first free of `ports`, or on any free one when all are taken, until cancelled.

    Start it with `address = await nursery.start(serve_status, get_status)`.
    """
    listener = await _listen(ports)
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
                await _answer(stream, get_status)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass  # the client went away or speaks something else; nobody here is to blame
        finally:
            n_connections -= 1
            await trio.aclose_forcefully(stream)

    host, port = listener.socket.getsockname()[:2]
    task_status.started(f"{host}:{port}")
    await accept_forever(listener, handle, Scarcity(None, lambda text: None))


async def _listen(ports: Iterable[int]) -> trio.SocketListener:
    for port in (*ports, 0):
        try:
            return (await trio.open_tcp_listeners(port, host=LOOPBACK, backlog=MAX_CONNECTIONS))[0]
        except OSError as bad:
            # EACCES: Windows reserves ranges of ports for itself
            if port == 0 or bad.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise NetworkError(f"cannot serve the status on {LOOPBACK}: {bad.strerror or bad}") from bad
    raise AssertionError  # port 0 returned or raised


async def _answer(stream: trio.SocketStream, get_status: Callable[[], Status]) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
    try:
        request = await _next_event(connection, stream)
    except h11.RemoteProtocolError as bad:
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await _reply(connection, stream, bad.error_status_hint, "text/plain", b"bad request\n")
        return
    if isinstance(request, h11.Request):
        await _reply(connection, stream, *_route(request, get_status))


def _route(request: h11.Request, get_status: Callable[[], Status]) -> tuple[int, str, bytes]:
    hosts = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    if len(hosts) != 1 or not is_loopback_host(hosts[0]):
        return 403, "text/plain", b"only for this machine: the Host must be 127.0.0.1 or localhost\n"
    path = request.target.partition(b"?")[0]
    if path not in (b"/status", b"/healthz"):
        return 404, "text/plain", b"there are /status and /healthz\n"
    if request.method != b"GET":
        return 405, "text/plain", b"read only: GET\n"
    if path == b"/healthz":
        return 200, "text/plain", b"ok\n"
    try:
        return 200, "application/json", _encoder.encode(get_status())
    except Exception as broken:  # a status that cannot be told must not end the peer
        return 500, "text/plain", NO_STATUS + f" {broken!r}\n".encode()


def is_loopback_host(host: str) -> bool:
    """True for what a client on this machine writes into its Host header."""
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        name = host
    return name.lower() in _LOOPBACK_HOSTS


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


async def _next_event(connection: h11.Connection, stream: trio.abc.ReceiveStream) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await stream.receive_some(65536))


class FoundPeer(msgspec.Struct, frozen=True):
    """What answered at a status address: a status, or why there is none."""

    address: str
    status: Status | None
    problem: str = ""


async def find_peers(ports: Iterable[int] = STATUS_PORTS) -> tuple[FoundPeer, ...]:
    """Every port of this machine on which a peer may serve its status and somebody listens, in order of the ports."""
    found: dict[int, FoundPeer] = {}

    async def probe(port: int) -> None:
        address = f"{LOOPBACK}:{port}"
        try:
            found[port] = FoundPeer(address, await fetch_status(LOOPBACK, port))
        except NetworkError as bad:
            if not isinstance(bad.__cause__, ConnectionRefusedError):
                found[port] = FoundPeer(address, None, str(bad))

    async with trio.open_nursery() as nursery:
        for port in ports:
            nursery.start_soon(probe, port)
    return tuple(found[port] for port in sorted(found))


async def fetch_status(host: str, port: int, budget_s: float = PROBE_S) -> Status:
    """The status that a peer serves at `host:port`.

    Raises: NetworkError, saying whether nobody listens there, nobody answered in `budget_s`, or somebody else did.
    """
    address = f"{host}:{port}"
    try:
        with trio.fail_after(budget_s):
            code, body = await _get(host, port, "/status")
    except trio.TooSlowError as bad:
        raise NetworkError(f"{address} did not answer in {budget_s:g} s (stopped, or very busy)") from bad
    except ConnectionRefusedError as bad:
        raise NetworkError(f"nobody listens on {address}") from bad
    except socket.gaierror as bad:
        raise NetworkError(f"{host!r} is not a host that is known here") from bad
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as bad:
        # trio tries every address of a name and joins what went wrong into the cause
        if isinstance(bad.__cause__, ConnectionRefusedError) or _all_refused(bad):
            raise NetworkError(f"nobody listens on {address}") from ConnectionRefusedError()
        raise NetworkError(f"{address}: {bad}") from bad
    except h11.ProtocolError as bad:
        raise NetworkError(_something_else(address)) from bad
    if code == 500 and body.startswith(NO_STATUS):
        raise NetworkError(f"{address} answered {code}: {body[:200].decode(errors='replace').strip()}")
    if code != 200:
        raise NetworkError(_something_else(address))
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as bad:
        if not _is_record(body):
            raise NetworkError(_something_else(address)) from bad
        text = f"something else answers on {address}, or a peer of another version (status {STATUS_VERSION} here): {bad}"
        raise NetworkError(text) from bad


def _something_else(address: str) -> str:
    return f"something else answers on {address}: it is not a peer of legion_p2p"


def _is_record(body: bytes) -> bool:
    """True for JSON that may come from a peer of another version, unlike the page of a web server."""
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _all_refused(bad: BaseException) -> bool:
    cause = bad.__cause__
    return isinstance(cause, BaseExceptionGroup) and cause.split(ConnectionRefusedError)[1] is None


async def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    async with await trio.open_tcp_stream(host, port) as stream:
        request = h11.Request(method="GET", target=path, headers=[("Host", f"{host}:{port}"), ("Connection", "close")])
        await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        code, body = 0, bytearray()
        while True:
            event = await _next_event(connection, stream)
            if isinstance(event, h11.Response):
                code = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_STATUS_BYTES:
                    raise h11.RemoteProtocolError(f"status of more than {MAX_STATUS_BYTES} bytes")
            elif not isinstance(event, h11.InformationalResponse):
                return code, bytes(body)
