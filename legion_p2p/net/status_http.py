"""The status of a running peer over HTTP, for this machine only; and how to find and to read it.

The server (net/http_server.py) answers `GET /status` and `GET /healthz`, and takes the user's commands
(net/control_http.py). It binds 127.0.0.1, so that nobody outside can ask.
"""

from collections.abc import Callable, Iterable

import msgspec
import trio

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.config import STATUS_PORTS
from legion_p2p.errors import NetworkError
from legion_p2p.net.control_http import PATH, ControlDoor
from legion_p2p.net.http_client import ask_locally
from legion_p2p.net.http_server import LOOPBACK, Answer, address_of, listen_on, serve
from legion_p2p.observe.status import STATUS_VERSION, Status

PROBE_S = 2.0  # a closed port refuses at once; only a busy or stopped peer needs waiting for
NO_STATUS = b"no status:"  # how a peer begins to say why it has none; a web server says something else

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


async def serve_status(
    get_status: Callable[[], Status],
    *,
    ports: Iterable[int] = STATUS_PORTS,
    control: ControlDoor | None = None,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve what `get_status` returns on the first free of `ports`, or on any free one when all are taken, until cancelled.

    `control`: where the user's commands go; None: none are taken.

    Start it with `address = await nursery.start(serve_status, get_status)`.
    """

    def status() -> Answer:
        try:
            return 200, "application/json", _encoder.encode(get_status())
        except Exception as broken:  # a status that cannot be told must not end the peer
            return 500, "text/plain", NO_STATUS + f" {broken!r}\n".encode()

    listener = await listen_on(LOOPBACK, (*ports, 0), "the status")
    task_status.started(address_of(listener))
    routes = {"/status": status, "/healthz": lambda: (200, "text/plain", b"ok\n")}
    if control is None:
        await serve(listener, routes, only_here=True)
    else:
        await serve(listener, {**routes, PATH: control.challenge}, only_here=True, posts={PATH: control.command})


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
            answer = await ask_locally(host, port, "/status")
    except trio.TooSlowError as bad:
        raise NetworkError(f"{address} did not answer in {budget_s:g} s (stopped, or very busy)") from bad
    code, body = answer.code, answer.body
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
