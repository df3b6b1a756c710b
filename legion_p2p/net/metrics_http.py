"""`GET /metrics` for Prometheus, where a person asked for it: on this machine, or on an address of its network."""

from collections.abc import Callable

import trio

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.net.http_server import LOOPBACK, address_of, listen_on, serve
from legion_p2p.observe.prometheus import CONTENT_TYPE, metrics_text
from legion_p2p.observe.status import Status


async def serve_metrics(
    get_status: Callable[[], Status], host: str, port: int, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Anybody who can reach `host` may ask: it tells how many peers there are, and not which.

    Start it with `address = await nursery.start(serve_metrics, get_status, host, port)`. Raises: NetworkError.
    """
    listener = await listen_on(host, (port,), "the metrics")
    task_status.started(address_of(listener))
    routes = {"/metrics": lambda: (200, CONTENT_TYPE, metrics_text(get_status()))}
    await serve(listener, routes, only_here=host == LOOPBACK)
