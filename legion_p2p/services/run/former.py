"""Looking for former members: a peer that is alone in its run tries the addresses at which its store says that members were.

It does so beside the initial peers, which may all be gone, for as long as it is alone: at once, then more and more rarely.
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.local_checkpoints import LocalCheckpoints

MAX_FORMER = 16  # that are tried: one of them is enough, as it knows the others
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 60.0  # a former member that comes back is found within a minute


class FormerMembers:
    """Tries to find former members again."""

    def __init__(self, ctx: PeerContext, members: MemberService, checkpoints: LocalCheckpoints) -> None:
        self.tried: tuple[str, ...] = ()
        """Addresses of the last attempt, each with its peer's id; empty while this peer is not alone."""
        self._members = members
        self._checkpoints = checkpoints
        self._rng = ctx.rng

    async def run_forever(self) -> None:
        """Look while this peer is alone; wait where it is not."""
        pause_s = FIRST_PAUSE_S
        while True:
            if self._members.roster.alone():
                await self._try_all()
                await trio.sleep(pause_s * self._rng.uniform(0.8, 1.2))
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                self.tried, pause_s = (), FIRST_PAUSE_S
                await self._members.new_roles.wait()

    async def _try_all(self) -> None:
        remembered = await self._checkpoints.remembered()
        former = {PeerId(peer): places for peer, places in remembered if peer != self._members.me and places}
        chosen = dict(list(former.items())[:MAX_FORMER])
        self.tried = tuple(f"{places[0].partition('/p2p/')[0]}/p2p/{peer}" for peer, places in chosen.items())
        async with trio.open_nursery() as nursery:
            for peer, places in chosen.items():
                self._members.introduce(peer, places)
                nursery.start_soon(self._members.exchange_with, peer)
