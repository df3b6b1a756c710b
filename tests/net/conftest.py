"""Networks on loopback, and strangers that speak libp2p but not our protocol."""

from contextlib import asynccontextmanager
from typing import Any

import trio

from legion_p2p.core.identity import Identity
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.network import Libp2pNetwork
from tests.waiting import PATIENCE_S

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
QUICK = NetConfig(redial_max_s=1.0)


@asynccontextmanager
async def opened(identity: Identity | None = None, *, of: Libp2pNetwork | None = None, **kwargs: Any):
    """A network on loopback that echoes; `of`: it joins through that one."""
    kwargs.setdefault("listen", LOOPBACK)
    kwargs.setdefault("config", QUICK)
    if of is not None:
        kwargs["initial_peers"] = of.addresses()
    async with open_network(identity or Identity.generate(), **kwargs) as network:
        network.messenger.serve(echo)
        await network.join()
        yield network


async def echo(peer: str, body: bytes) -> bytes:
    return body


async def eventually(is_so, within_s: float = PATIENCE_S) -> None:
    """Return once it is so; fail if it is not in time."""
    with trio.fail_after(within_s):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.02)
