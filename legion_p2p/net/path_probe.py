"""Large packets to a peer that this one has just connected to, so that a path on which they vanish shows at once.

A newcomer sends little and is sent much, and only the sender notices that large packets vanish (packet_size.py): each of the
others would have to notice for itself, one after the other, before the newcomer is in the run. To notice, it has to hear
something from the other side meanwhile, so it asks for small answers that come after 1, 2, 3 and 4 seconds.
"""

import logging
from collections import Counter

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, LegionError
from legion_p2p.net.messenger import Libp2pMessenger

SERVICE = "path"
PROBE_BYTES = 4096  # two segments of full size at least
MAX_SIGNS = 256  # that all peers together wait for: the other requests that may be open at once are for what a run needs
SIGNS = (1, 2, 3, 4)  # seconds; three retransmissions take 1.4 s, and 4 s where a round trip takes half a second

log = logging.getLogger("legion_p2p.net")


class PathProbe:
    """Asks, and answers others."""

    def __init__(self, messenger: Libp2pMessenger) -> None:
        self._messenger = messenger
        self._n_promised: Counter[PeerId] = Counter()
        """Signs that each peer waits for."""
        messenger.serve_internally(SERVICE, self.answer)

    async def probe(self, peer: PeerId) -> None:
        """Send something large to `peer`; whether it answers does not matter: this machine's kernel tells what became of it."""
        await self._ask(peer, b"")  # there is a stream then, on which requests keep their order
        async with trio.open_nursery() as nursery:
            for after_s in SIGNS:
                nursery.start_soon(self._ask, peer, bytes([after_s]))
            await trio.sleep(0.01)  # the small ones go first: nothing is read behind what vanished
            await self._ask(peer, bytes(PROBE_BYTES))

    async def _ask(self, peer: PeerId, body: bytes) -> None:
        try:
            await self._messenger.call(peer, SERVICE, body)
        except LegionError as failed:  # a peer of an earlier version refuses, which is as good
            log.debug("probing the path to %s: %s", peer, failed)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """At once to a large question; to a small one after as many seconds as it says, unless too many wait already."""
        if len(body) == 1:
            if body[0] not in SIGNS:
                raise DecodeError(f"asked for a sign after {body[0]} s, {SIGNS} are possible")
            if self._n_promised[peer] >= len(SIGNS) or self._n_promised.total() >= MAX_SIGNS:
                return b""  # one that comes too soon only makes a hole show later
            self._n_promised[peer] += 1
            try:
                await trio.sleep(body[0])
            finally:
                self._n_promised -= Counter([peer])
        elif len(body) > PROBE_BYTES:
            raise DecodeError(f"probe of {len(body)} bytes, limit is {PROBE_BYTES}")
        return b""
