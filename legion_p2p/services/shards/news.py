"""What members announce of their shards, and which shards are looked at because of it."""

import random
from collections.abc import Sequence
from itertools import chain

import trio

from legion_p2p.core.announcement import Mark, mark_at
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.shard import follower_events
from legion_p2p.core.shard.belief import have_reached, is_behind_most, most_hold, outvoted_by
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.mark_exchange import MarkExchange
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import ShardStates

MAX_OTHERS = 64  # shards that a member is asked about although they concern neither: so owners that told two things are found


class ShardNews:
    """The marks that members announce. The machines of the shards are told of them here."""

    def __init__(self, ctx: PeerContext, states: ShardStates, marks: MarkExchange) -> None:
        self._rng: random.Random = ctx.rng
        self._states = states
        self._marks = marks
        self.heard: Observers[PeerId] = Observers()
        """Told of each member that has announced something, when its marks are known."""
        self._restless: set[int] = set()
        """Shards of which another member claims to have a newer version, or did a moment ago."""

    def heard_of(self, peer: PeerId) -> None:
        """A member announced something: look at the shards that it owns, and at those that this peer owns."""
        if peer == self._states.me:
            return
        if self._marks.take(peer) or not self._counts(peer):
            self._look(peer)
        elif self._states.nursery is not None and self._marks.may_ask(peer):
            self._states.nursery.start_soon(self._ask_and_look, peer)

    async def _ask_and_look(self, peer: PeerId) -> None:
        """In a run of many shards: ask about those that concern the two, and about some others."""
        states = self._states
        others = self._rng.sample(range(states.plan.n_shards), min(MAX_OTHERS, states.plan.n_shards))
        await self._marks.hear([peer], {*states.owned(), *states.owned_by(peer), *others})
        self._look(peer)

    def _look(self, peer: PeerId) -> None:
        states, is_as_here = self._states, self._marks.is_as_here(peer)
        if self._restless or not is_as_here:  # as a rule all hold the same: then a run of many shards costs what one of few does
            counts = self._counts(peer)
            is_news = not (is_as_here and counts)
            ours, mine, theirs = states.marks(), states.owned(), states.owned_by(peer)
            for shard in chain(mine, theirs) if is_news else self._restless.intersection(chain(mine, theirs)):
                mark = self._marks.mark(peer, shard) if counts else None
                if mark is None and self._marks.by_digest and counts:
                    continue  # it did not answer
                if shard in self._restless or mark != mark_at(ours, shard):
                    self._note(states.replicas[shard], peer, mark)
        self.heard.tell(peer)

    async def hear(self, replica: Replica, peers: Sequence[PeerId] | None = None) -> None:
        """In a run of many shards: ask these members about one, where that is not known. None: all whose word counts."""
        await self._marks.hear(self._voters(replica) if peers is None else peers, [replica.shard])

    def look_at(self, replica: Replica) -> None:
        """The shard changed hands: look at what those announced that count from now on."""
        states = self._states
        owner = states.ownership(replica.shard).owner
        peers = states.members.roster.ready(states.region) if owner == states.me else () if owner is None else (owner,)
        if not self._marks.by_digest:
            self._note_all(replica, peers)
        elif states.nursery is not None:
            states.nursery.start_soon(self._ask_all, replica, peers)

    async def _ask_all(self, replica: Replica, peers: Sequence[PeerId]) -> None:
        await self.hear(replica, peers)
        self._note_all(replica, peers)

    def _note_all(self, replica: Replica, peers: Sequence[PeerId]) -> None:
        for peer in peers:
            self._note(replica, peer, self._mark(peer, replica.shard))

    def is_said_to_be_ahead(self, replica: Replica, peer: PeerId) -> bool:
        mark = self._mark(peer, replica.shard)
        return mark is not None and mark.version > replica.chain.version

    def parts_from(self, replica: Replica, peer: PeerId) -> bool:
        """Whether it announces another state of a version that is held here."""
        mark = self._mark(peer, replica.shard)
        return mark is not None and replica.chain.holds(mark) is False

    def is_behind_most(self, replica: Replica) -> bool:
        """Most of the others say that they have a newer version of the shard, whatever they have done so far."""
        states = self._states
        left_out = (states.me, states.ownership(replica.shard).owner)
        others = [peer for peer in states.members.roster.ready(states.region) if peer not in left_out]
        return is_behind_most(replica.chain, [self._mark(peer, replica.shard) for peer in others])

    def said_by(self, peer: PeerId, replica: Replica) -> Mark | None:
        """What a member of this region says of the shard, whatever its word counts."""
        return self._marks.mark(peer, replica.shard)

    def have_gone_on(self, replica: Replica) -> bool:
        """Most of the others whose word counts have a newer version."""
        return is_behind_most(replica.chain, self.marks_of_others(replica))

    def have_reached(self, replica: Replica, mark: Mark) -> bool:
        """Most of the others whose word counts are in this version, or in a newer one."""
        return have_reached(mark, self.marks_of_others(replica))

    def outvoted_by(self, replica: Replica) -> Mark | None:
        """What most of the others hold, where it is no part of what this peer holds."""
        return outvoted_by(replica.chain, self.marks_of_others(replica))

    def marks_of_others(self, replica: Replica) -> list[Mark | None]:
        """What the members announce of the shard whose word counts, this peer and the owner not counted."""
        states = self._states
        left_out = (states.me, states.ownership(replica.shard).owner)
        return [self._mark(peer, replica.shard) for peer in self._voters(replica) if peer not in left_out]

    def _voters(self, replica: Replica) -> Sequence[PeerId]:
        """The members that hold the model, and have contributed to the shard as this peer knows it; in a run where owning takes
        time, those that may own. Identities cost nothing, so those that have done nothing yet have no vote on what the state is.
        Where nobody has, all have. Those that are proven to have lied have none in any case."""
        roster, chain = self._states.members.roster, replica.chain
        ready, excluded = roster.ready(self._states.region), roster.excluded()
        if excluded:
            ready = tuple(peer for peer in ready if peer not in excluded)
        voters = [peer for peer in ready if chain.newest(peer) >= 0 and peer not in roster.juniors]
        return voters if any(peer != self._states.me for peer in voters) else ready

    def _counts(self, peer: PeerId) -> bool:
        """Whether what a member announces of the shards counts: it holds them, and is of this region."""
        announced = self._states.members.roster.announced(peer)
        return announced is not None and announced.ready and announced.region == self._states.region

    def _mark(self, peer: PeerId, shard: int) -> Mark | None:
        """What a member says of a shard; None where it says nothing that counts."""
        return self._marks.mark(peer, shard) if self._counts(peer) else None

    def holds_what_most_hold(self, replica: Replica, peer: PeerId) -> bool:
        others = [other for other in self._voters(replica) if other != self._states.me]
        marks = [self._mark(other, replica.shard) for other in others]
        return most_hold(self._mark(peer, replica.shard), marks)

    def _note(self, replica: Replica, peer: PeerId, mark: Mark | None) -> None:
        machine = replica.life.follower
        if mark is not None and replica.provisional.refuses_mark(mark):
            mark = None  # it will learn what this peer knows
        if (
            mark is not None
            and replica.chain.holds(mark) is False
            and self._states.ownership(replica.shard).owner == self._states.me
        ):
            machine.handle(follower_events.Outvoted(self.outvoted_by(replica)), trio.current_time())
        machine.handle(follower_events.Announced(peer, mark), trio.current_time())
        self._note_rest(replica)
        if machine.is_behind:  # most announcements say nothing new
            self._states.wake(replica)

    def tell(self, replica: Replica, event: follower_events.Event) -> None:
        replica.life.follower.handle(event, trio.current_time())
        self._note_rest(replica)
        self._states.wake(replica)

    def _note_rest(self, replica: Replica) -> None:
        if replica.life.follower.is_at_rest:
            self._restless.discard(replica.shard)
        else:
            self._restless.add(replica.shard)
