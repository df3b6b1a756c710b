"""Finding out that an owner told two groups of members two things. What counts is in core/evidence.py.

A member that announces another state of a version than this peer holds is asked where the two chains part. Where one owner signed
both updates that follow from there, they are the evidence.
"""

import random

import trio

from legion_p2p.core.announcement import Announcement, mark_at, peer_of
from legion_p2p.core.comparisons import Comparisons, parting
from legion_p2p.core.evidence import equivocation
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import AncestryQuery, GetUpdates, State, Updates
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.evidence import EvidenceService
from legion_p2p.services.shards.follower import FollowService
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates

MAX_LOOKED_AT = 64  # shards in one look, chosen at random
MAX_STATES = 64  # newest ones of a shard that the other is asked about
ASK_S = 10.0


class EquivocationWatch:
    """Compares what members hold."""

    def __init__(self, ctx: PeerContext, states: ShardStates, follower: FollowService, evidence: EvidenceService) -> None:
        self._rng: random.Random = ctx.rng
        self._states = states
        self._evidence = evidence
        self._comparisons = Comparisons()
        follower.contradicted.add(lambda both: self._evidence.take(equivocation(*both)))
        states.members.announcements.add(self._on_announcement)

    def _on_announcement(self, announcement: Announcement) -> None:
        """Look at some of its marks, now and then."""
        states, peer, now = self._states, peer_of(announcement), trio.current_time()
        marks = announcement.marks
        if announcement.region != states.region or len(marks) != states.n_mark_bytes or states.is_what_we_hold(marks):
            return
        if not self._comparisons.may_look(peer, now):
            return
        shards = list(states.replicas)
        for shard in self._rng.sample(shards, min(MAX_LOOKED_AT, len(shards))):
            replica, mark = states.replicas[shard], mark_at(marks, shard)
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
