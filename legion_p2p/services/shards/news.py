"""What members announce of their shards, and which shards are looked at because of it."""

from collections.abc import Sequence
from itertools import chain

import trio

from legion_p2p.core.announcement import Mark, mark_at
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard import follower_events
from legion_p2p.core.shard.belief import have_reached, is_behind_most, most_hold, outvoted_by
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import ShardStates


class ShardNews:
    """The marks that members announce. The machines of the shards are told of them here."""

    def __init__(self, states: ShardStates) -> None:
        self._states = states
        self._restless: set[int] = set()
        """Shards of which another member claims to have a newer version, or did a moment ago."""

    def heard_of(self, peer: PeerId) -> None:
        """A member announced something: look at the shards that it owns, and at those that this peer owns."""
        states = self._states
        if not self._restless and states.says_what_we_hold(peer):
            return  # as most announcements do
        mine, theirs = states.owned(), states.owned_by(peer)
        if (mine or theirs) and peer != states.me:
            marks = self._marks_of(peer)
            is_news = marks != states.marks()  # most say what all hold: then a run of many shards costs what one of few does
            for shard in chain(mine, theirs) if is_news else self._restless.intersection(chain(mine, theirs)):
                replica = states.replicas[shard]
                if shard in self._restless or not states.is_at_our_mark(marks, shard):
                    self._note(replica, peer, mark_at(marks, shard))

    def look_at(self, replica: Replica) -> None:
        """The shard changed hands: look at what those announced that count from now on."""
        states = self._states
        owner = states.ownership(replica.shard).owner
        peers = states.members.roster.ready(states.region) if owner == states.me else () if owner is None else (owner,)
        for peer in peers:
            self._note(replica, peer, mark_at(self._marks_of(peer), replica.shard))

    def is_said_to_be_ahead(self, replica: Replica, peer: PeerId) -> bool:
        mark = mark_at(self._marks_of(peer), replica.shard)
        return mark is not None and mark.version > replica.chain.version

    def is_behind_most(self, replica: Replica) -> bool:
        """Most of the others say that they have a newer version of the shard, whatever they have done so far."""
        states = self._states
        left_out = (states.me, states.ownership(replica.shard).owner)
        others = [peer for peer in states.members.roster.ready(states.region) if peer not in left_out]
        return is_behind_most(replica.chain, [mark_at(self._marks_of(peer), replica.shard) for peer in others])

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
        return [mark_at(self._marks_of(peer), replica.shard) for peer in self._voters(replica) if peer not in left_out]

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

    def _marks_of(self, peer: PeerId) -> bytes:
        """Of all shards, packed, as a member of this region announces them; empty where it says nothing that counts."""
        announced = self._states.members.roster.announced(peer)
        if announced is None or not announced.ready or announced.region != self._states.region:
            return b""
        return announced.marks if len(announced.marks) == self._states.n_mark_bytes else b""

    def holds_what_most_hold(self, replica: Replica, peer: PeerId) -> bool:
        others = [other for other in self._voters(replica) if other != self._states.me]
        marks = [mark_at(self._marks_of(other), replica.shard) for other in others]
        return most_hold(mark_at(self._marks_of(peer), replica.shard), marks)

    def _note(self, replica: Replica, peer: PeerId, mark: Mark | None) -> None:
        machine = replica.life.follower
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
