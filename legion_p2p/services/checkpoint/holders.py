"""Asks members which checkpoints they have. The answers are shown to people; nothing is decided by them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.cids import Cid
from legion_p2p.core.holders import CheckpointOrigin, HoldersFound
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import decode_manifest
from legion_p2p.core.wire import Blocks, Checkpoints, GetBlocks, GetCheckpoints, HasBlocks
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.services.checkpoint.select import MAX_ROOTS, named_roots
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc

MAX_ASKED = 8  # members in one look: enough to see whether a checkpoint would outlive this machine
MAX_BLOCKS_ASKED = 256  # of one checkpoint, drawn at random: 9 KiB in a question, and right within 5 %
MAX_MANIFESTS_FETCHED = 8  # in one look: some KiB each, 1 MiB at most; those that are left out come with the next looks
ANSWER_S = 5.0


class CheckpointHolders:
    """Asks members of one run."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._run = ctx.run
        self._rng = ctx.rng
        self._messenger = ctx.messenger
        self._rpc = Rpc(ctx.messenger)
        self._members = members
        self._origins: BoundedMap[Cid, CheckpointOrigin] = BoundedMap(2 * MAX_ROOTS)

    async def look(self, blocks: Sequence[Cid], known: Iterable[Cid] = ()) -> HoldersFound:
        """Ask some members which checkpoints they have, and which of these blocks. `known`: checkpoints that are here."""
        ready = sorted(a.peer_id for a in self._members.roster.others() if a.ready)
        asked = [PeerId(peer) for peer in self._rng.sample(ready, min(MAX_ASKED, len(ready)))]
        told = await self._rpc.ask_all(asked, GetCheckpoints(self._run, with_bytes=True), within_s=ANSWER_S)
        lists = {peer: reply.cids for peer, reply in sorted(told.items())}
        named = {cid: tuple(sorted(peers)) for cid, peers in named_roots(lists, self._messenger.report).items()}
        await self._fetch_origins(named, frozenset(known))
        sample = self._rng.sample(list(blocks), min(MAX_BLOCKS_ASKED, len(blocks)))
        shares: dict[PeerId, float] = {}
        if sample and told:
            held = await self._rpc.ask_all(told, HasBlocks(tuple(cid.raw for cid in sample)), within_s=ANSWER_S)
            shares = {peer: sum(map(bool, reply.sizes[: len(sample)])) / len(sample) for peer, reply in held.items()}
        origins = {cid: self._origins[cid] for cid in named if cid in self._origins}
        return HoldersFound(len(asked), len(told), named, origins, _claimed(told, named), shares)

    async def _fetch_origins(self, named: Mapping[Cid, Sequence[PeerId]], known: frozenset[Cid]) -> None:
        """The manifests of checkpoints that only others have, from one of them each."""
        missing = [cid for cid in named if cid not in known and cid not in self._origins]
        async with trio.open_nursery() as nursery:
            for cid in self._rng.sample(missing, min(MAX_MANIFESTS_FETCHED, len(missing))):  # not the same ones at each look
                nursery.start_soon(self._fetch_origin, cid, self._rng.choice(named[cid]))

    async def _fetch_origin(self, cid: Cid, peer: PeerId) -> None:
        with suppress(NetworkError):
            reply = await self._rpc.ask(peer, GetBlocks((cid.raw,)), within_s=ANSWER_S)
            if isinstance(reply, Blocks) and reply.blocks and reply.blocks[0]:  # else it is busy, or has pruned it
                with self._rpc.checking(peer, "a checkpoint that it named"):
                    self._origins[cid] = self._origin(cid, bytes(reply.blocks[0]))

    def _origin(self, cid: Cid, data: bytes) -> CheckpointOrigin:
        """Raises: DecodeError."""
        if not cid.names(data):
            raise DecodeError(f"the block sent as {cid} has another CID")
        manifest = decode_manifest(data)
        if str(manifest.run) != self._run:
            raise DecodeError(f"{cid} is of the run {manifest.run}")
        return CheckpointOrigin(manifest.step, manifest.created_s, PeerId(manifest.publisher))


def _claimed(told: Mapping[PeerId, Checkpoints], named: Iterable[Cid]) -> dict[Cid, int]:
    """The largest size that a member says of each."""
    found = dict.fromkeys(named, 0)
    for reply in told.values():
        for raw, n_bytes in zip(reply.cids, reply.n_bytes, strict=False):  # a peer of an older version tells none
            cid = Cid(raw)
            if cid in found:
                found[cid] = max(found[cid], n_bytes)
    return {cid: n_bytes for cid, n_bytes in found.items() if n_bytes}
