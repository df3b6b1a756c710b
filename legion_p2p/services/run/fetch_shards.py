"""Fetching shards whole from members: from the one that has least to send this peer, several shards at once.

the peer's own parameters may be those that the run started from -> a member is asked whether the shard is still there
a member is busy        -> others are asked, and that one again when it says
a member fails, or lies -> others are asked; when all have failed, all again, for FETCH_S
all are busy, and nothing at all comes in for BUSY_PATIENCE_S -> an error
"""

import trio
from torch import Tensor

from legion_p2p.core.chain import Chain
from legion_p2p.core.eligible import eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.placement import Placement
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import Busy, GetShard, GetUpdates, Updates
from legion_p2p.errors import DecodeError, JoinError, NetworkError, RemoteProtocolError
from legion_p2p.services.checkpoint.provider_scheduler import ProviderScheduler
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.run.arrivals import Arrivals, FetchedShard
from legion_p2p.services.shards.states import log_bytes
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest

ASK_DEADLINE_S = 5.0
FETCH_S = 120.0  # to find a peer that has a shard; while bytes come in it may take longer
FETCH_DEADLINE_S = 120.0
BUSY_PATIENCE_S = 600.0  # while all that have what is missing are busy with others, and nothing at all comes in
AGAIN_S = 1.0  # after all have failed, unless members change earlier
MAX_CONCURRENT_FETCHES = 8


class ShardFetcher:
    """Fetches the shards of one peer that joins."""

    def __init__(
        self, ctx: PeerContext, members: MemberService, region: str, turns: ProviderScheduler, arrivals: Arrivals
    ) -> None:
        """`region`: that of this peer. `turns`: which peer is asked next, whatever it is asked for."""
        self._ctx = ctx
        self._rpc = Rpc(ctx.messenger)
        self._placement = Placement(ctx.run, ctx.plan.n_shards, ctx.spec.round.placement)
        self._members = members
        self._region = region
        self._turns = turns
        self._arrivals = arrivals
        self._limiter = trio.CapacityLimiter(MAX_CONCURRENT_FETCHES)

    async def fetch(self, start: Tensor | None, shard: int) -> None:
        """One shard. `start`: as in `StateSync.fetch`. Raises: JoinError, if no member has it for FETCH_S."""
        guess = None if start is None else start[slice(*self._ctx.plan.bounds(shard))].clone()
        deadline = trio.current_time() + FETCH_S
        failed: set[PeerId] = set()
        name = f"shard {shard} of run {self._ctx.spec.name!r}"
        while True:
            holders = self._holders(shard)
            untried = [peer for peer in holders if peer not in failed]
            if untried:
                async with self._limiter, self._turns.turn(untried) as peer:
                    at_start = None if guess is None else await self._at_start(shard, guess, peer)
                    got = at_start or await self._whole(shard, peer)
                if isinstance(got, FetchedShard):
                    self._arrivals.add(got)
                    self._arrivals.donors.add(peer)
                    self._arrivals.note_bytes(4 * self._ctx.plan.size(shard))
                    return
                if got is None or not self._turns.turned_away(peer, got):
                    failed.add(peer)
                elif self._arrivals.quiet_s() > BUSY_PATIENCE_S:
                    raise JoinError(f"{name}: all members that have it are busy with others; try later")
                continue
            if trio.current_time() >= deadline:
                raise JoinError(f"{name}: none of {len(holders)} members could send it")
            failed.clear()
            with trio.move_on_after(AGAIN_S):
                await self._members.changed.wait()

    def _holders(self, shard: int) -> list[PeerId]:
        """The members that hold a shard: its owner first, its standby, then the rest."""
        ready = [m.announcement for m in self._members.table.counted() if m.announcement.ready]
        able = eligible(self._ctx.run, self._region, [a for a in ready if a.region == self._region])
        owners = self._placement.owners(self._region, able.weights, able.reserve)[shard]
        first = [peer for peer in (owners.owner, owners.standby) if peer is not None]
        return [*first, *(PeerId(a.peer_id) for a in ready if a.peer_id not in first)]

    async def _at_start(self, shard: int, guess: Tensor, peer: PeerId) -> FetchedShard | None:
        """The shard, if `peer` has it at version 0 and that is `guess`."""
        start_digest = await self._ctx.offload(digest, guess)
        question = GetUpdates(self._ctx.run, shard, 0, start_digest, log_only=True)
        try:
            reply = await self._rpc.ask(peer, question, within_s=ASK_DEADLINE_S)
        except NetworkError:
            return None
        if isinstance(reply, Updates) and reply.at_version == 0 and not reply.updates:
            return FetchedShard(shard, guess, Chain(0, start_digest, log_bytes(guess.numel()), (), peer))
        return None

    async def _whole(self, shard: int, peer: PeerId) -> FetchedShard | Busy | None:
        """The shard from `peer`; None, if it failed or lied."""
        try:
            reply = await self._rpc.ask(peer, GetShard(self._ctx.run, shard), Priority.DOWNLOAD, within_s=FETCH_DEADLINE_S)
            if isinstance(reply, Busy):
                return reply
            with self._rpc.checking(peer, "bad shard"):
                if reply.shard != shard:
                    raise DecodeError(f"asked for shard {shard}, got shard {reply.shard}")
                reference = await self._ctx.offload(codec.get("fp32").decode, reply.payload, self._ctx.plan.size(shard))
                if await self._ctx.offload(digest, reference) != reply.digest:
                    raise DecodeError(f"shard {shard} version {reply.version} does not have its digest")
        except RemoteProtocolError as bad:
            self._ctx.events.error("shard.fetch_refused", f"shard {shard}: {bad.reason}", peer=peer)
            return None
        except NetworkError as failed:
            self._ctx.events.emit("shard.fetch_failed", shard=shard, peer=peer, reason=str(failed))
            return None
        self._turns.served(peer)
        self._ctx.events.emit("shard.fetched", shard=shard, version=reply.version, peer=peer)
        chain = Chain(reply.version, reply.digest, log_bytes(reference.numel()), reply.included, peer, salt=reply.salt)
        return FetchedShard(shard, reference, chain)
