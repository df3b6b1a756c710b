"""The network of one peer: opening it, joining through known addresses, leaving.

Everything runs in one nursery that `open_network` owns. Leaving closes all sockets first and sends nothing: it takes
milliseconds, however unresponsive the others are.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from legion_p2p.core.addresses import parse_peer_address, split_address
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import NetworkError, UsageError
from legion_p2p.net.bitswap import BlockSource
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.netem import UNTHROTTLED, Shaper, Throttling
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.parts import QUIET, NetworkParts, Tell

DEFAULTS = NetConfig()
LISTEN_ANYWHERE = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")

logger = logging.getLogger("legion_p2p.net")


@asynccontextmanager
async def open_network(
    identity: Identity,
    *,
    listen: Sequence[str] = LISTEN_ANYWHERE,
    initial_peers: Sequence[str] = (),
    announce: Sequence[str] = (),
    config: NetConfig = DEFAULTS,
    throttling: Throttling = UNTHROTTLED,
    blocks: BlockSource | None = None,
    tell: Tell = QUIET,
) -> AsyncIterator[Libp2pNetwork]:
    """Listen, and yield the `Libp2pNetwork`. Nobody is contacted before `join()` or the first request.

    `listen`: multiaddrs without /p2p/; an empty sequence listens nowhere. `announce`: addresses to tell others instead of those
    found out here (a public address that is forwarded to this machine). `throttling`: limits on all traffic, and a link to
    emulate. `blocks`: served to any IPFS client that asks for them by their CIDs. Of several addresses to listen on, those of a
    family that this machine lacks are left out.

    Raises: UsageError, if an address cannot be one; NetworkError, if it cannot be listened on.
    """
    where_to = [_listen_address(address) for address in listen]
    announced = [_announced_address(address, identity.peer_id) for address in announce]
    initial = list(dict.fromkeys(parse_peer_address(address) for address in initial_peers))
    failure: BaseException | None = None
    shaper = Shaper(throttling.link, throttling.caps)
    try:
        async with trio.open_nursery() as nursery:
            shaper.start(nursery)
            parts = NetworkParts(identity, announced, config, nursery, shaper, tell)
            try:
                await parts.start(where_to)
                yield parts.network(identity, initial, blocks)
            except BaseException as error:
                # carried out of the nursery by hand: it would come out wrapped in an ExceptionGroup
                failure = error
            nursery.cancel_scope.cancel()
            parts.close_now()
    except Exception as group:
        if failure is None and parts.is_open:
            raise NetworkError(f"the network of this peer broke down: {group!r}") from group
        logger.debug("while leaving: %r", group)
    if failure is not None:
        raise failure


def _listen_address(address: str) -> str:
    where, peer = split_address(address)
    if peer is not None or where.split("/")[1].startswith("dns"):
        raise UsageError(f"{address!r} cannot be listened on; the form is /ip4/HOST/tcp/PORT")
    return where


def _announced_address(address: str, me: PeerId) -> str:
    where, peer = split_address(address)
    if peer not in (None, me):
        raise UsageError(f"{address!r} cannot be announced: this peer is {me}")
    if where.endswith("/tcp/0"):
        raise UsageError(f"{address!r} cannot be announced: port 0 cannot be dialed")
    return where
