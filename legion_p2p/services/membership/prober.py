"""Asking whether a silent member lives, and telling others where it does not answer.

    a member is silent       -> it is pinged, and two others are asked to ping it, in case only the path from here is broken
    it is still silent       -> it and three others are told; a peer that hears it of itself refutes it
    others told of a member  -> it is greeted, to find out whether it exists

Where many are silent at once, for example because this peer is cut off, nobody else is asked: the others see it for themselves.
"""

import random
from typing import Any

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Accuse, Liveness
from legion_p2p.core.membership import Membership
from legion_p2p.core.wire import Accusation, Ping, PingFor, Request
from legion_p2p.errors import NetworkError
from legion_p2p.services.rpc import Rpc

N_INDIRECT_PROBES = 2  # members asked to look at a suspect as well, in case only the path from here is broken
N_WITNESSES = 3  # members told that another one is dead
MAX_INVOLVED = 4  # members silent at once about which others are asked: where more are, the others see it for themselves
RECENT = 2.0  # times the grace of a suspect: of many that died at once some are noticed seconds after the others
MAX_GREETINGS_IN_FLIGHT = 16  # to members that only others told of: they may not exist, and each costs an attempt to connect


class Prober:
    """Each question returns whether it was answered. What follows from that is decided by the caller."""

    def __init__(self, run: str, table: Membership, rpc: Rpc, rng: random.Random, grace_s: float) -> None:
        """`grace_s`: how long each question waits for its answer."""
        self._run = run
        self._table = table
        self._rpc = rpc
        self._rng = rng
        self._grace_s = grace_s
        self._greetings = trio.CapacityLimiter(MAX_GREETINGS_IN_FLIGHT)

    async def ping(self, peer: PeerId) -> bool:
        return await self.tell(peer, Ping(self._run))

    async def greet(self, peer: PeerId) -> bool:
        """Ping a member that this peer has not met, unless it meets it while this waits for others."""
        async with self._greetings:
            member = self._table.get(peer)
            return member is not None and not member.met and await self.ping(peer)

    async def ping_through(self, helper: PeerId, suspect: PeerId) -> bool:
        return await self.tell(helper, PingFor(self._run, suspect))

    def helpers(self, suspect: PeerId) -> list[PeerId]:
        """The members to ask to ping `suspect` as well."""
        counted = self._table.here() if self._few_are_silent() else []
        alive = [m.peer_id for m in counted if m.liveness is Liveness.ALIVE and m.peer_id != suspect]
        return self._rng.sample(alive, min(N_INDIRECT_PROBES, len(alive)))

    async def accuse(self, accusation: Accuse) -> None:
        """Tell others that a member seems dead, and the member itself, so that it can refute if it lives."""
        message = Accusation(self._run, accusation.peer_id, accusation.incarnation)
        others = [m.peer_id for m in self._table.here()] if self._few_are_silent() else []
        async with trio.open_nursery() as nursery:
            for peer in (accusation.peer_id, *self._rng.sample(others, min(N_WITNESSES, len(others)))):
                nursery.start_soon(self.tell, peer, message)

    async def tell(self, peer: PeerId, message: Request[Any]) -> bool:
        """Send something whose answer says only that it arrived."""
        try:
            await self._rpc.ask(peer, message, within_s=self._grace_s)
        except NetworkError:
            return False
        return True

    def _few_are_silent(self) -> bool:
        """True if few members became silent recently, so that others can be bothered with one of them."""
        since = trio.current_time() - RECENT * self._grace_s
        return sum(m.liveness is not Liveness.ALIVE and m.since >= since for m in self._table.members()) <= MAX_INVOLVED
