"""Between members: updates on their way from an owner to all others, by way of some of them.

Which member passes what on to whom is decided in core/forwarding/forest.py; what a member does that does not get an update, in
core/forwarding/deliveries.py. An update is signed by its owner and names the digest of its bytes, so nobody has to be trusted.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.chain import Step
from legion_p2p.core.forwarding.deliveries import Deliveries
from legion_p2p.core.forwarding.forest import GUESSED_BPS, Forest, Tree, forest_of, size_class
from legion_p2p.core.forwarding.overdue import ANSWER_S
from legion_p2p.core.forwarding.sending import SendQueue
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import follower_events, owner
from legion_p2p.core.shard.owner import MAX_UPDATES_IN_FLIGHT, SendUpdate
from legion_p2p.core.wire import Done, Encoded, GetVersion, Held, Made, Update, UpdatesMade
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.follower import AlteredUpdate, FollowService, ReceivedUpdate
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates

TELL_S = 0.02  # versions that an owner makes within this time are told of together
TELL_WITHIN_S = 10.0  # by then the update has come, or an announcement
MAX_FORESTS = 16  # a few sizes of updates, and a few views of who goes first
MAX_FRAME_BYTES = 64 << 20  # of others' updates that wait to be sent; what is more is read from the log when its turn comes


@dataclass(eq=False)
class WaitingUpdate:
    """An update that waits for its turn to be sent to one member."""

    replica: Replica
    send: SendUpdate
    frame: Encoded[Held] | None
    """None: it is to be read from the log."""
    n_bytes: int
    tree: Tree | None


class ForwardService:
    """Sends updates: this peer's own, and those that it passes on."""

    def __init__(self, ctx: PeerContext, states: ShardStates, follower: FollowService) -> None:
        self._events = ctx.events
        self._messenger = ctx.messenger
        self._states = states
        self._follower = follower
        self._deliveries = Deliveries(states.me)
        self._queue: SendQueue[WaitingUpdate] = SendQueue()
        self._frames: Counter[Encoded[Held]] = Counter()
        """Receivers that each frame is still to be sent to."""
        self._forests: BoundedMap[tuple[int, frozenset[PeerId]], Forest] = BoundedMap(MAX_FORESTS)
        self._grown_from: tuple[object, object] = (None, None)
        self._told: dict[PeerId, dict[int, Made]] = {}
        self._is_timed = False
        follower.received.add(self._on_received)
        follower.altered.add(self._on_altered)

    # as the owner

    def tree_of(self, replica: Replica, version: int, root: PeerId, n_bytes: int) -> Tree | None:
        """How an update of `root` travels; None where that does not own the shard, as far as this peer knows. To be asked before
        the update is applied: what members know of each other's contributions is then the same."""
        if self._states.ownership(replica.shard).owner != root:
            return None
        return self._forest(replica, n_bytes).tree(replica.shard, version)

    def copies_in_a_round(self) -> float | None:
        """How many updates this peer sends in a round of all shards to members that go first, its own and those of others; None
        where owners send theirs to all themselves."""
        states = self._states
        if not states.complete():
            return None
        replica = states.replicas[0]
        n_bytes = states.codec_of(replica, states.update_codec).bits_per_element * replica.numel / 8
        forest = self._forest(replica, round(n_bytes))
        return forest.copies_of(states.me) if forest.is_passed_on else None

    def _forest(self, replica: Replica, n_bytes: int) -> Forest:
        """The trees of updates of this size, of the members that go first, as this shard's chain has it. The others get updates
        from the owner, with what its upload has left.
        """
        states = self._states
        members = states.members.roster.forwarders(states.region)
        owners = states.owners
        if self._grown_from[0] is not members or self._grown_from[1] is not owners:
            self._grown_from = members, owners
            self._forests.clear()
        first = replica.chain.first([member.peer for member in members])
        key = size_class(n_bytes), first
        forest = self._forests.get(key)
        if forest is None:
            counted = [member for member in members if member.peer in first]
            forest = self._forests[key] = forest_of(counted, [each.owner for each in owners], size_class(n_bytes), first)
        self._forests.touch(key)
        return forest

    def publish(self, replica: Replica, update: Update, version: int, tree: Tree | None) -> None:
        """This peer has made an update: send it to those that get it from here, and tell all if others pass it on."""
        if self._states.nursery is None:
            return
        self._send(replica, version, Encoded(update), len(update.payload), tree)
        if tree is not None and any(tree.passes_on(peer) for peer in tree.parents):
            self._tell(tree.parents, Made(replica.shard, version, len(update.payload)))

    def _tell(self, members: Iterable[PeerId], made: Made) -> None:
        if not self._told and self._states.nursery is not None:
            self._states.nursery.start_soon(self._tell_soon)
        for peer in members:
            self._told.setdefault(peer, {})[made.shard] = made

    async def _tell_soon(self) -> None:
        await trio.sleep(TELL_S)
        told, self._told = self._told, {}
        async with trio.open_nursery() as nursery:
            for peer, made in told.items():
                nursery.start_soon(self._tell_one, peer, UpdatesMade(self._states.run, tuple(made.values())))

    async def _tell_one(self, peer: PeerId, message: UpdatesMade) -> None:
        try:
            await self._states.rpc.ask(peer, message, within_s=TELL_WITHIN_S)
        except NetworkError:
            return  # it gets the update all the same, or learns from announcements that it is behind

    # as a member

    def avoided(self) -> tuple[PeerId, ...]:
        """The members that failed to pass updates on to this peer, to be announced."""
        return self._deliveries.avoided(trio.current_time())

    async def on_updates_made(self, peer: PeerId, message: UpdatesMade) -> Done:
        """An owner says what is on its way. Raises: LegionError, to be sent back."""
        self._states.must_be_member(peer)
        for made in message.made:
            replica = self._states.replica(made.shard)
            if made.version <= replica.chain.version or not self._follower.may_make(replica, peer):
                continue
            tree = self.tree_of(replica, made.version, peer, made.n_bytes)
            if tree is not None:
                promise = self._deliveries.told(made.shard, made.version, tree, trio.current_time())
                if promise is not None:
                    self._note(replica, follower_events.Promised(promise))
        self._note_failed()
        return Done()

    def _on_received(self, received: ReceivedUpdate) -> None:
        """An update that is what its owner made is here: pass it on, if that is this peer's part."""
        replica, header, now = received.replica, received.header, trio.current_time()
        promised = self._deliveries.tree_of(header.shard, header.version)
        if received.sender is not None:
            self._deliveries.arrived(header.shard, header.version, received.sender, now)
            ahead = header.version - replica.chain.version
            if (
                replica.provisional.judge(header, is_owners=False) not in (Step.APPLY, Step.BEHIND)
                or ahead > MAX_UPDATES_IN_FLIGHT
            ):
                return
        elif promised is None:
            return  # this peer catches up: others have that long ago
        tree = promised or self.tree_of(replica, header.version, PeerId(header.owner), len(received.update.payload))
        if tree is None or not tree.passes_on(self._states.me) or not header.payload:
            return
        self._send(replica, header.version, self._frame_of(received.update), len(received.update.payload), tree)

    def _frame_of(self, update: Update) -> Encoded[Held] | None:
        """The update as it is sent, its bytes where they arrived; None where too many wait already."""
        n_held = sum(len(frame.body) for frame in self._frames)
        return Encoded(update) if n_held + len(update.payload) <= MAX_FRAME_BYTES else None

    async def inquire(self, replica: Replica, peer: PeerId) -> None:
        """Ask a member that should have sent an update which version it has."""
        self._deliveries.overdue()
        version: int | None = None
        with suppress(NetworkError):
            version = (await self._states.rpc.ask(peer, GetVersion(self._states.run, replica.shard), within_s=ANSWER_S)).version
        self._note(replica, follower_events.Inquired(peer, version))

    def _on_altered(self, altered: AlteredUpdate) -> None:
        """A member sent something else than the owner had made."""
        promise = self._deliveries.altered(altered.replica.shard, altered.sender, trio.current_time())
        if promise is not None:
            self._note(altered.replica, follower_events.NotComing(promise))
        self._note_failed()

    def _note(self, replica: Replica, event: follower_events.Event) -> None:
        replica.life.follower.handle(event, trio.current_time())
        self._states.wake(replica)

    def _note_failed(self) -> None:
        failed = False
        while (peer := self._deliveries.poll_failed()) is not None:
            self._events.emit("update.not_passed_on", peer=peer)
            failed = True
        if failed:
            self._states.members.announcer.announce_soon()

    # sending

    def _send(self, replica: Replica, version: int, frame: Encoded[Held] | None, n_bytes: int, tree: Tree | None) -> None:
        """Send the update to this version to those that get it from this peer: by the tree, or all where there is none."""
        states = self._states
        members = states.members.roster.ready(states.region)
        if replica.life.owner.has_sent(version):
            return
        receivers = members if tree is None else tree.children.get(states.me, ())
        if tree is not None and tree.owner == states.me:
            receivers = (*receivers, *sorted(set(members) - {states.me, *tree.parents}))
        sends = replica.life.owner.publish(version, members, receivers)
        sends += self._sends_below(replica, version, set(receivers) - {send.peer for send in sends}, tree)
        for send in sends:
            self._put(WaitingUpdate(replica, send, frame, n_bytes, tree))
        self._work()

    def _sends_below(self, replica: Replica, version: int, left_out: set[PeerId], tree: Tree | None) -> tuple[SendUpdate, ...]:
        """What this peer sends in the place of members that do not get the update now, and so cannot pass it on."""
        states = self._states
        below = [] if tree is None else [peer for parent in sorted(left_out) for peer in tree.children.get(parent, ())]
        if not below:
            return ()
        sends = replica.life.owner.send_also(version, states.members.roster.ready(states.region), below)
        return sends + self._sends_below(replica, version, set(below) - {send.peer for send in sends}, tree)

    def _put(self, out: WaitingUpdate) -> None:
        is_inner = out.tree is not None and out.tree.passes_on(out.send.peer)
        rank = (0 if is_inner else 1) if out.send.goes_first else 2
        if out.frame is not None:
            self._frames[out.frame] += 1
        self._queue.put(out, rank, out.n_bytes)

    def _work(self) -> None:
        """Send what may be sent now."""
        nursery, now = self._states.nursery, trio.current_time()
        if nursery is None:
            return
        bps = self._messenger.bandwidth().known_upload_bps or GUESSED_BPS
        while (following := self._queue.poll(now, bps)) is not None:
            nursery.start_soon(self._carry, *following)
        if not self._is_timed and self._queue.next_deadline() is not None:
            self._is_timed = True
            nursery.start_soon(self._work_in_time)

    async def _work_in_time(self) -> None:
        """Go on behind updates that take longer than they should."""
        while (deadline := self._queue.next_deadline()) is not None:
            await trio.sleep_until(deadline)
            self._work()
        self._is_timed = False

    async def _carry(self, number: int, out: WaitingUpdate) -> None:
        try:
            frame = out.frame or self._from_log(out)
            if frame is not None and await self.deliver(out.replica, out.send, frame):
                return
            for send in self._sends_below(out.replica, out.send.version, {out.send.peer}, out.tree):
                self._put(WaitingUpdate(out.replica, send, out.frame, out.n_bytes, out.tree))
        finally:
            if out.frame is not None:
                self._frames -= Counter([out.frame])
            self._queue.done(number)
            self._work()

    def _from_log(self, out: WaitingUpdate) -> Encoded[Held] | None:
        entry = out.replica.chain.entry(out.send.version)
        if entry is None:
            out.replica.life.owner.handle(owner.Delivered(out.send.peer), trio.current_time())
        return None if entry is None else Encoded(entry.update)

    async def deliver(self, replica: Replica, send: SendUpdate, update: Encoded[Held]) -> bool:
        """Send an update to a member; whether that has it."""
        priority = Priority.ROUND if send.goes_first else Priority.CATCH_UP
        holds: int | None = None
        try:
            holds = (await self._states.rpc.ask(send.peer, update, priority, within_s=TRANSFER_DEADLINE_S)).version
        except NetworkError:
            # It is told, or learns from announcements, that it is behind, and fetches.
            if not self._states.reachability.is_cut_off():
                self._events.emit("update.undelivered", shard=replica.shard, version=send.version, peer=send.peer)
        finally:
            replica.life.owner.handle(owner.Delivered(send.peer, holds), trio.current_time())
        return holds is not None
