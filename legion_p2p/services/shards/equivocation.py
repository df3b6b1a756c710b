"""Finding out that an owner told two groups of members two things. What counts is in core/evidence.py.

A member that announces another state of a version than this peer holds is asked where the two chains part. Where one owner signed
both updates that follow from there, they are the evidence.
"""

import random

import trio

from legion_p2p.core.comparisons import Comparisons, parting
from legion_p2p.core.evidence import equivocation
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import AncestryQuery, GetUpdates, State, Updates
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.evidence import EvidenceService
from legion_p2p.services.shards.follower import FollowService
from legion_p2p.services.shards.mark_exchange import MarkExchange
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates

MAX_LOOKED_AT = 64  # shards in one look, chosen at random
MAX_STATES = 64  # newest ones of a shard that the other is asked about
ASK_S = 10.0


class EquivocationWatch:
    """Compares what members hold."""

    def __init__(
        self,
        ctx: PeerContext,
        states: ShardStates,
        marks: MarkExchange,
        news: ShardNews,
        follower: FollowService,
        evidence: EvidenceService,
    ) -> None:
        self._rng: random.Random = ctx.rng
        self._states = states
        self._marks = marks
        self._evidence = evidence
        self._comparisons = Comparisons()
        follower.contradicted.add(lambda both: self._evidence.take(equivocation(*both)))
        news.heard.add(self._on_marks)

    def _on_marks(self, peer: PeerId) -> None:
        """Look at some marks of a member, now and then."""
        states, now = self._states, trio.current_time()
        if self._marks.is_as_here(peer) or not self._comparisons.may_look(peer, now):
            return
        shards = [shard for shard in self._marks.known(peer) if shard in states.replicas]
        for shard in self._rng.sample(shards, min(MAX_LOOKED_AT, len(shards))):
            replica, mark = states.replicas[shard], self._marks.mark(peer, shard)
            if mark is not None and replica.chain.holds(mark) is False and states.nursery is not None:
                self._comparisons.asked(peer, now)
                states.nursery.start_soon(self._compare, peer, replica, mark.version)
                return

    async def _compare(self, peer: PeerId, replica: Replica, version: int) -> None:
        """Find the first update in which the other's chain differs from ours."""
        states, chain = self._states, replica.chain
        common = [State(replica.shard, v, digest) for v, digest in chain.newest_states(MAX_STATES) if v < version]
        if not common:
            return
        try:
            reply = await states.rpc.ask(peer, AncestryQuery(states.run, tuple(common)), within_s=ASK_S)
            parted = parting(common, reply.since)
            if parted is None:
                return
            ours = chain.entry(parted.version + 1)
            request = GetUpdates(states.run, replica.shard, parted.version, parted.digest, log_only=True)
            updates = await states.rpc.ask(peer, request, Priority.CATCH_UP, within_s=TRANSFER_DEADLINE_S)
        except NetworkError:
            return
        if ours is not None and isinstance(updates, Updates) and updates.updates:
            self._evidence.take(equivocation(ours.update, updates.updates[0]))
