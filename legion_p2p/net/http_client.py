"""Asking a server of this machine over HTTP: one request, one connection."""

import socket
from collections.abc import Sequence

import h11
import msgspec
import trio

from legion_p2p.errors import NetworkError
from legion_p2p.net.http_server import MAX_HEADER_BYTES, next_event

MAX_ANSWER_BYTES = 16 << 20  # the status of 50,000 shards and members


class LocalAnswer(msgspec.Struct, frozen=True):
    """What came back."""

    code: int
    body: bytes


async def ask_locally(
    host: str, port: int, path: str, *, body: bytes | None = None, headers: Sequence[tuple[str, str]] = ()
) -> LocalAnswer:
    """GET a path, or POST `body` to it. Deadlines are the caller's.

    Raises: NetworkError: its cause is a ConnectionRefusedError where nobody listens there, an h11.ProtocolError where the other
    side does not speak HTTP.
    """
    address = f"{host}:{port}"
    try:
        return await _ask(host, port, path, body, headers)
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
        raise NetworkError(f"something else answers on {address}: it is not a peer of legion_p2p") from bad


async def _ask(host: str, port: int, path: str, body: bytes | None, headers: Sequence[tuple[str, str]]) -> LocalAnswer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    async with await trio.open_tcp_stream(host, port) as stream:
        length = [] if body is None else [("Content-Length", str(len(body)))]
        request = h11.Request(
            method="GET" if body is None else "POST",
            target=path,
            headers=[("Host", f"{host}:{port}"), ("Connection", "close"), *length, *headers],
        )
        said = connection.send(request) or b""
        if body:
            said += connection.send(h11.Data(body)) or b""
        await stream.send_all(said + (connection.send(h11.EndOfMessage()) or b""))
        code, answer = 0, bytearray()
        while True:
            event = await next_event(connection, stream)
            if isinstance(event, h11.Response):
                code = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
                if len(answer) > MAX_ANSWER_BYTES:
                    raise h11.RemoteProtocolError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            elif not isinstance(event, h11.InformationalResponse):
                return LocalAnswer(code, bytes(answer))


def _all_refused(bad: BaseException) -> bool:
    cause = bad.__cause__
    return isinstance(cause, BaseExceptionGroup) and cause.split(ConnectionRefusedError)[1] is None
