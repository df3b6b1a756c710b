"""Asking routers to forward a port: by PCP or NAT-PMP, and by UPnP.

libp2p brings miniupnpc for the latter. It reads whatever a device sends, without a limit (300 MiB of description ended up in
memory), and in a thread that cannot be stopped; so this speaks the little that is needed by itself.
"""

import logging
import secrets
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import h11
import trio

from legion_p2p.core.gateway_packets import (
    GATEWAY_PORT,
    MAX_REPLY_BYTES,
    NONCE_BYTES,
    WrongVersionError,
    pcp_request,
    pmp_request,
    read_pcp_reply,
    read_pmp_reply,
)
from legion_p2p.core.igd import (
    CONFLICT,
    DEVICES,
    MAX_ANSWER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_DESCRIPTION_BYTES,
    PERMANENT_ONLY,
    SEARCH_HOST,
    SEARCH_PORT,
    GatewayControl,
    RouterRefusedError,
    Url,
    check_reply,
    end_arguments,
    forward_arguments,
    read_answer,
    read_description,
    request,
    search,
)
from legion_p2p.core.port_lease import LIFETIME_S, Forwarding
from legion_p2p.errors import DecodeError, NetworkError

ATTEMPTS_S = (0.25, 0.5, 1.0, 2.0)  # how long each of the questions to the gateway waits: a packet may be lost (RFC 6886)
SEARCH_S = 2.5  # for answers to a search, which asks for them within one second
MAX_ANSWERS = 16  # to a search; a home has a router and some televisions
PAGE_S = 4.0  # for one page of a router; small ones are slow, but not that slow
MAX_CONFLICTS = 3  # other ports that are tried where the wished one leads to another machine

log = logging.getLogger("legion_p2p.net")


class Router(Protocol):
    """Something that can forward ports."""

    @property
    def speaks(self) -> str:
        """By which protocol it is asked."""
        ...

    async def forward(self, client: str, port: int, outside: int) -> Forwarding:
        """Let `outside`, or another port, lead to `port` at `client`. Raises: NetworkError, DecodeError."""
        ...

    async def end(self, client: str, port: int, outside: int) -> None:
        """No longer. Raises: NetworkError, DecodeError."""
        ...


class Gateway:
    """A router that speaks PCP or NAT-PMP."""

    @property
    def speaks(self) -> str:
        return "NAT-PMP" if self._is_old else "PCP"

    def __init__(self, host: str, udp_port: int = GATEWAY_PORT) -> None:
        self._where = (host, udp_port)
        self._nonce = secrets.token_bytes(NONCE_BYTES)  # shows that a renewal is of the same peer
        self._is_old = False

    async def forward(self, client: str, port: int, outside: int) -> Forwarding:
        return await self._ask(client, port, outside, LIFETIME_S)

    async def end(self, client: str, port: int, outside: int) -> None:
        """Sends one packet, and waits for no answer."""
        sock = await self._connected(client)
        with sock:
            await sock.send(self._request(client, port, 0, 0))

    async def _ask(self, client: str, port: int, outside: int, lifetime_s: int) -> Forwarding:
        sock = await self._connected(client)
        with sock:
            for wait_s in ATTEMPTS_S:
                try:
                    await sock.send(self._request(client, port, outside, lifetime_s))
                    with trio.move_on_after(wait_s):
                        return await self._reply(sock, port)
                except WrongVersionError:
                    if self._is_old:
                        raise
                    self._is_old = True
                except OSError as failed:  # nobody listens there
                    raise NetworkError(f"no PCP at {self._where[0]}: {failed}") from failed
        raise NetworkError(f"no PCP at {self._where[0]}: no answer")

    async def _connected(self, client: str) -> trio.socket.SocketType:
        sock = trio.socket.socket(type=socket.SOCK_DGRAM)
        try:
            await sock.bind((client, 0))
            await sock.connect(self._where)  # so that only this router's packets come in
        except OSError as failed:
            sock.close()
            raise NetworkError(f"no way to {self._where[0]}: {failed}") from failed
        return sock

    def _request(self, client: str, port: int, outside: int, lifetime_s: int) -> bytes:
        if self._is_old:
            return pmp_request(port, outside, lifetime_s)
        return pcp_request(self._nonce, client, port, outside, lifetime_s)

    async def _reply(self, sock: trio.socket.SocketType, port: int) -> Forwarding:
        data = await sock.recv(MAX_REPLY_BYTES)
        return read_pmp_reply(data, port) if self._is_old else read_pcp_reply(data, self._nonce, port)


class UpnpRouter:
    """A router that speaks UPnP."""

    speaks = "UPnP"

    def __init__(self, control: GatewayControl) -> None:
        self._control = control

    async def forward(self, client: str, port: int, outside: int) -> Forwarding:
        lifetime_s = LIFETIME_S
        for _ in range(MAX_CONFLICTS + 2):
            try:
                await self._do("AddPortMapping", forward_arguments(port, outside, client, lifetime_s))
                return Forwarding(outside, float(lifetime_s or "inf"))
            except RouterRefusedError as refused:
                if refused.code == CONFLICT:
                    outside = 20000 + secrets.randbelow(40000)
                elif refused.code == PERMANENT_ONLY and lifetime_s:
                    lifetime_s = 0
                else:
                    raise
        raise NetworkError("the router has no free port")

    async def end(self, client: str, port: int, outside: int) -> None:
        await self._do("DeletePortMapping", end_arguments(outside))

    async def _do(self, action: str, arguments: dict[str, str | int]) -> None:
        name, body = request(self._control, action, arguments)
        headers = [(b"SOAPAction", name), (b"Content-Type", b'text/xml; charset="utf-8"')]
        check_reply(*await fetch(self._control.url, b"POST", headers, body, MAX_CONTROL_BYTES))


async def find_upnp(
    client: str, is_near: Callable[[str], bool], where: tuple[str, int] = (SEARCH_HOST, SEARCH_PORT)
) -> AsyncGenerator[UpnpRouter, None]:
    """The routers that answer a search from `client`, one after the other, as they prove to be routers."""
    seen: set[Url] = set()
    sock = trio.socket.socket(type=socket.SOCK_DGRAM)
    with sock:
        try:
            await sock.bind((client, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(client))
            for device in DEVICES:
                await sock.sendto(search(device), where)
        except OSError as failed:  # no multicast here
            log.debug("no search for routers from %s: %s", client, failed)
            return
        pages: list[Url] = []
        with trio.move_on_after(SEARCH_S):
            for _ in range(MAX_ANSWERS):
                data, sender = await sock.recvfrom(MAX_ANSWER_BYTES)
                try:
                    page = read_answer(data, sender[0])
                except DecodeError as bad:
                    log.debug("%s answers a search for routers: %s", sender[0], bad)
                    continue
                if page not in seen and is_near(sender[0]):
                    seen.add(page)
                    pages.append(page)
    for page in pages:
        try:
            status, data = await fetch(page, b"GET", [], b"", MAX_DESCRIPTION_BYTES)
            if status != 200:
                raise DecodeError(f"status {status}")
            yield UpnpRouter(read_description(data, page))
        except (NetworkError, DecodeError) as bad:
            log.debug("the device at %s is no router: %s", page.host, bad)


async def fetch(url: Url, method: bytes, headers: list[tuple[bytes, bytes]], body: bytes, limit: int) -> tuple[int, bytes]:
    """A page of a router: status and body, of at most `limit` bytes. Follows no redirection.

    Raises: NetworkError, if there is none within PAGE_S; DecodeError, if it is not HTTP or larger.
    """
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_CONTROL_BYTES)
    head = [(b"Host", f"{url.host}:{url.port}".encode()), (b"Connection", b"close"), *headers]
    if body:
        head.append((b"Content-Length", str(len(body)).encode()))
    try:
        with trio.fail_after(PAGE_S):
            async with await trio.open_tcp_stream(url.host, url.port) as stream:
                events = [
                    h11.Request(method=method, target=url.path.encode(), headers=head),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ]
                await stream.send_all(b"".join(conn.send(event) or b"" for event in events))
                return await _response(conn, stream, limit)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as failed:
        raise NetworkError(f"no page of {url.host}: {failed or 'too slow'}") from failed
    except h11.ProtocolError as bad:
        raise DecodeError(f"no HTTP from {url.host}: {bad}") from bad


async def _response(conn: h11.Connection, stream: trio.SocketStream, limit: int) -> tuple[int, bytes]:
    status, found = 0, bytearray()
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await stream.receive_some(4096))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            found += event.data
            if len(found) > limit:
                raise DecodeError(f"page of more than {limit} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(found)
        elif not isinstance(event, h11.InformationalResponse):
            raise DecodeError("the connection ended before the page did")
