"""Asks members which checkpoints they have. The answers are shown to people; nothing is decided by them."""

from collections.abc import Sequence

from legion_p2p.core.cids import Cid
from legion_p2p.core.holders import HoldersFound
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import GetCheckpoints, HasBlocks
from legion_p2p.errors import DecodeError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc

MAX_ASKED = 8  # members in one look: enough to see whether a checkpoint would outlive this machine
MAX_BLOCKS_ASKED = 256  # of one checkpoint, drawn at random: 9 KiB in a question, and right within 5 %
ANSWER_S = 5.0


class CheckpointHolders:
    """Asks members of one run."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._run = ctx.run
        self._rng = ctx.rng
        self._rpc = Rpc(ctx.messenger)
        self._members = members

    async def look(self, blocks: Sequence[Cid]) -> HoldersFound:
        """Ask some members which checkpoints they have, and which of these blocks."""
        ready = sorted(a.peer_id for a in self._members.roster.others() if a.ready)
        asked = [PeerId(peer) for peer in self._rng.sample(ready, min(MAX_ASKED, len(ready)))]
        told = await self._rpc.ask_all(asked, GetCheckpoints(self._run), within_s=ANSWER_S)
        named: dict[Cid, list[PeerId]] = {}
        for peer, reply in sorted(told.items()):
            for cid in _cids(reply.cids):
                named.setdefault(cid, []).append(peer)
        sample = self._rng.sample(list(blocks), min(MAX_BLOCKS_ASKED, len(blocks)))
        shares: dict[PeerId, float] = {}
        if sample and told:
            held = await self._rpc.ask_all(told, HasBlocks(tuple(cid.raw for cid in sample)), within_s=ANSWER_S)
            shares = {peer: sum(map(bool, reply.sizes[: len(sample)])) / len(sample) for peer, reply in held.items()}
        return HoldersFound(len(asked), len(told), {cid: tuple(peers) for cid, peers in named.items()}, shares)


def _cids(raw: Sequence[bytes]) -> list[Cid]:
    """Those that are CIDs."""
    found = []
    for one in dict.fromkeys(raw):
        try:
            found.append(Cid.from_bytes(one))
        except DecodeError:  # one that says nonsense has nothing that could be shown
            continue
    return found
