"""Serving the page on loopback, in the loop of the peer that it shows.

Until a browser connects, this is one socket that listens. Then starlette and hypercorn are imported, in a thread, and each
connection that was accepted here becomes one of hypercorn's. Two things that hypercorn does not do are done around it: a limit on
connections, and an end for a client that reads nothing. Its own sends cannot be cancelled, so that such a client would keep the
peer from leaving.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import cache, partial
from typing import Any, cast

import trio

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.config import DASHBOARD_PORTS
from legion_p2p.net.accepting import Scarcity, accept_forever
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.http_server import LOOPBACK, MAX_HEADER_BYTES, address_of, listen_on
from legion_p2p.net.tally import Tally
from legion_p2p.web.feed import Feed, Obey
from legion_p2p.web.page_blocks import WebPage

MAX_PAGE_CONNECTIONS = 32  # a browser opens up to six for a window
IDLE_S = 5.0  # of a connection without a request, a first one included: whoever sends nothing keeps no place
SEND_S = 2.0  # of one piece, some 100 kB over loopback: whoever reads nothing keeps no place either

log = logging.getLogger("legion_p2p.web")

Serve = Callable[["PatientStream"], Awaitable[None]]


async def serve_page(
    make: Callable[[], WebPage],
    *,
    token: str,
    obey: Obey | None = None,
    ports: Iterable[int] = (*DASHBOARD_PORTS, 0),
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the page that `make` returns, on the first of `ports` that is free, until cancelled.

    Start it with `address = await nursery.start(partial(serve_page, make, token=token))`. Raises: NetworkError.
    """
    listener = await listen_on(LOOPBACK, ports, "the dashboard")
    keep_from_children(listener.socket)
    task_status.started(address_of(listener))
    feed = Feed(make)
    loading = trio.Lock()
    serve: list[Serve] = []
    n_connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal n_connections
        if n_connections >= MAX_PAGE_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        n_connections += 1
        try:
            async with loading:
                if not serve:
                    stack = await trio.to_thread.run_sync(_load)
                    serve.append(stack(feed, obey, token))
            await serve[0](PatientStream(stream))
        finally:
            n_connections -= 1
            await trio.aclose_forcefully(stream)

    await accept_forever(listener, handle, Scarcity(None, lambda text: None, Tally()))


class PatientStream:
    """A connection whose sends end after `SEND_S`, as if the client had gone."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        """Raises: BrokenResourceError, also where the client reads nothing."""
        with trio.move_on_after(SEND_S) as waiting:
            await self._stream.send_all(data)
        if waiting.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError(f"the client has read nothing for {SEND_S:.0f} s")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@cache
def _load() -> Callable[[Feed, Obey | None, str], Serve]:
    """What makes a server of a feed. In a thread: it imports for 0.1 s."""
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext

    from legion_p2p.web.app import page_app

    def stack(feed: Feed, obey: Obey | None, token: str) -> Serve:
        config = Config()
        config.keep_alive_timeout = IDLE_S
        config.h11_max_incomplete_size = MAX_HEADER_BYTES
        config.include_server_header = False
        config.accesslog = config.errorlog = None
        app = ASGIWrapper(cast("Any", page_app(feed, obey, token)))  # starlette and hypercorn name the same types apart
        return partial(_serve_one, TCPServer, app, config, WorkerContext(None))

    return stack


async def _serve_one(server: Callable[..., object], app: object, config: object, context: object, stream: PatientStream) -> None:
    """One connection, until either side ends it. What is wrong with one harms no other."""
    try:
        await server(app, config, context, {}, stream).run()  # type: ignore[attr-defined]
    except Exception as broken:  # of hypercorn's, by what a client sent: one connection must not end the peer that it looks at
        log.debug("a connection to the page failed: %r", broken)
