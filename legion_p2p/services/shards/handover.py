"""Between an owner and the next one: giving away what only an owner has, and taking it from the one before.

    it is not ours any more   -> the round is given up (its members push again); what only an owner has goes to the next owner
    that fails, and we stay   -> the residual goes with this peer's own next push
    that fails, and we leave  -> again, to the peer that owns the shard then

Decided in core/shard/handover.py.
"""

import math

import msgspec
import trio
from torch import Tensor

from legion_p2p.concurrency.semaphore import PeerSemaphore
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import handover, owner, push_events
from legion_p2p.core.slots import SlotLimits
from legion_p2p.core.wire import HandoverPart, Held, Part, Update, UpdateHeader
from legion_p2p.errors import CodecError, NetworkError, RefusedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.follower import FollowService
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.tensor import codec
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.outer import OuterState, carried_on

MAX_BYTES_AT_ONCE = 4 << 20  # of hand-overs on their way: more would share the link, and all of them end late
LOOK_S = 0.2  # at most, between two looks at whether everything has arrived
PRECISE_S = 30.0  # what takes longer goes with a byte an element: all of it, rounded, is worth more than an exact part
STAYING_S = 3.0  # the same for a peer that stays: until the parts have arrived nobody makes versions of the shard
PRECISE, COARSE = "fp32", "int8"


class HandoverService:
    """Gives up shards, and takes over what others give up."""

    def __init__(self, ctx: PeerContext, states: ShardStates, follower: FollowService) -> None:
        self.leaving = False
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._rounds = ctx.spec.round
        self._states = states
        self._follower = follower
        self._semaphore = PeerSemaphore(SlotLimits(max_bytes=MAX_BYTES_AT_ONCE))
        self._to_hand_over: dict[int, int] = {}  # bytes, by shard
        self._codec = PRECISE

    # giving

    @property
    def to_hand_over(self) -> tuple[int, int]:
        """How many shards have parts that have not arrived at an owner yet, and how many bytes those are."""
        pushing = [replica for replica in self._states.replicas.values() if self._is_pushing(replica)]
        packed = [replica.life.push.packed for replica in pushing]
        n_bytes = sum(len(one.body.payload) for one in packed if one is not None)
        return len(self._to_hand_over.keys() | {r.shard for r in pushing}), sum(self._to_hand_over.values()) + n_bytes

    async def hand_over_all(self) -> None:
        """Before leaving, when members know this peer as not ready: give everything away, its last pushes as well.

        Returns when it has arrived, or nobody is there to take it.
        """
        self.leaving = True
        replicas = self._states.replicas.values()
        self._choose_codec(sum(4 * r.numel * len(_kept(r)) for r in replicas if r.round is not None), PRECISE_S)
        async with trio.open_nursery() as nursery:
            for replica in replicas:
                replica.life.handover.handle(handover.Leaving(), trio.current_time())
                nursery.start_soon(self.release, replica)
        while self.to_hand_over[0]:  # what was under way already
            with trio.move_on_after(LOOK_S):
                await self._states.settled.wait()

    def _choose_codec(self, n_bytes: int, precise_s: float) -> None:
        """The codec for this many bytes of parts that are to arrive in that time."""
        is_slow = 8 * n_bytes > precise_s * (self._messenger.bandwidth().known_upload_bps or math.inf)
        self._codec = COARSE if is_slow else PRECISE

    def _is_pushing(self, replica: Replica) -> bool:
        """A push of this peer's own has still to come to an owner, which brings it into an update though this peer is gone."""
        return self._states.nursery is not None and replica.life.push.is_undelivered  # a cancelled peer brings nothing any more

    async def release(self, replica: Replica) -> None:
        """Own the shard no longer, and hand over what only its owner has."""
        states, now = self._states, trio.current_time
        async with replica.lock:
            if not replica.life.owner.release():
                return
            replica.taken_over.clear()
            replica.inherited = None
            replica.provisional.allow()
            parts, chain, last = _kept(replica), replica.chain, replica.chain.last()
            question = HandoverPart(states.run, replica.shard, chain.version, chain.digest, b"", n_recent=replica.outer.n_recent)
            proof = (b"", b"")
            if last is not None and last.header.owner == states.me:
                proof = (last.update.header, last.update.signature)
            replica.owner_residual, replica.outer = None, OuterState()
            if not self.leaving:
                self._choose_codec(4 * replica.numel * len(parts) + sum(self._to_hand_over.values()), STAYING_S)
            self._to_hand_over[replica.shard] = self._part_bytes(replica) * len(parts)
        states.settled.notify()
        replica.life.push.handle(push_events.RoundGivenUp(), now())
        states.wake(replica)
        try:
            replica.life.handover.handle(handover.Begun(chain.version, tuple(parts)), now())
            ended = await self._carry_out(replica, question, proof, parts)
            await self._note_end(replica, question, parts, ended)
        finally:
            del self._to_hand_over[replica.shard]
            states.settled.notify()
            replica.life.owner.handle(owner.Released(), now())
            states.wake(replica)

    async def _carry_out(
        self, replica: Replica, question: HandoverPart, proof: tuple[bytes, bytes], parts: dict[Part, Tensor]
    ) -> handover.Ended:
        """Do what the machine asks for, until it is over."""
        machine = replica.life.handover
        while True:
            effect = machine.poll()
            if isinstance(effect, handover.Ended):
                return effect
            if isinstance(effect, handover.Give):
                answer = await self._give_part(replica, question, proof, effect, parts[effect.part])
            elif isinstance(effect, handover.Confirm):
                answer = await self._try(effect.target, question)  # a header may be too long for the control lane
            elif isinstance(effect, handover.Look):
                await self._states.members.exchange_with(effect.target)
                self._states.refresh_owners()
                answer = handover.Looked()
            else:
                await trio.sleep_until(machine.next_deadline() or 0.0)
                machine.handle_timeout(trio.current_time())
                continue
            machine.handle(answer, trio.current_time())
            self._to_hand_over[replica.shard] = self._part_bytes(replica) * len(machine.left)

    async def _give_part(
        self, replica: Replica, question: HandoverPart, proof: tuple[bytes, bytes], effect: handover.Give, value: Tensor
    ) -> handover.Event:
        async with self._semaphore.slot([effect.target], self._part_bytes(replica)):
            payload = await self._states.compute(replica.numel, codec.get(self._codec).encode, value)
            message = msgspec.structs.replace(
                question, payload=payload, part=effect.part, codec=self._codec, header=proof[0], signature=proof[1]
            )
            answer = await self._try(effect.target, message)
        return handover.Given() if isinstance(answer, handover.Holds) else answer

    async def _try(self, target: PeerId, message: HandoverPart) -> handover.Event:
        try:
            return handover.Holds((await self.give(target, message)).version)
        except NetworkError as failed:
            return handover.NotGiven(str(failed), may_change=isinstance(failed, RefusedError))

    async def give(self, target: PeerId, message: HandoverPart) -> Held:
        """Send a part, or the question. Raises: NetworkError."""
        priority = Priority.ROUND if message.payload else Priority.CONTROL
        return await self._states.rpc.ask(target, message, priority, within_s=TRANSFER_DEADLINE_S)

    async def _note_end(self, replica: Replica, question: HandoverPart, parts: dict[Part, Tensor], ended: handover.Ended) -> None:
        if not ended.reason:
            self._events.emit("shard.handed_over", shard=replica.shard, version=question.version, owner=ended.target)
            return
        if "residual" in ended.left and not self.leaving:
            async with replica.lock:  # not lost: it goes with this peer's own next push instead
                kept = replica.residual
                replica.residual = parts["residual"] if kept is None else kept + parts["residual"]
        if ended.left or ended.target is not None:
            self._events.emit("shard.handover_failed", shard=replica.shard, owner=ended.target, reason=ended.reason)

    def _part_bytes(self, replica: Replica) -> int:
        return int(codec.get(self._codec).bits_per_element * replica.numel / 8)

    # taking

    async def on_handover(self, peer: PeerId, message: HandoverPart) -> Held:
        """Take over a part of what only an owner has. Raises: LegionError, to be sent back."""
        states, replica = self._states, self._states.replica(message.shard)
        states.must_be_member(peer)
        if self.leaving:
            raise NetworkError("this peer is leaving the run as well")
        if not message.payload:
            return Held(replica.chain.version, replica.chain.digest)
        if peer in states.members.proofs.book.excluded():
            raise NetworkError(f"shard {replica.shard}: what {peer} has of it is not taken, because it is proven to have lied")
        inherited = replica.inherited
        if inherited is not None and inherited[0] == peer and message.version <= inherited[1]:
            return Held(replica.chain.version, replica.chain.digest)  # this peer has it, as it should be
        if message.digest not in (replica.chain.digest, *(m.base_digest for m in _last_header(replica))):
            self._events.emit("shard.handover_of_other_state", shard=replica.shard, peer=peer)
        if not (self._has_made(replica, peer, message) or states.ownership(replica.shard).owner == peer):
            raise NetworkError(f"shard {replica.shard}: {peer} made none of its last versions, so it has nothing to hand over")
        if message.codec not in (PRECISE, COARSE):
            raise CodecError(f"hand-over in codec {message.codec!r}, {PRECISE} and {COARSE} are allowed")
        value = await states.compute(replica.numel, codec.get(message.codec).decode, message.payload, replica.numel)
        async with replica.lock:
            which = (peer, message.version, message.digest)
            if replica.taken_over.get(message.part) != which:  # else our answer was lost, and it comes again
                self._take_over(replica, message, value)
                replica.taken_over[message.part] = which
        return Held(replica.chain.version, replica.chain.digest)

    def _has_made(self, replica: Replica, peer: PeerId, message: HandoverPart) -> bool:
        """Whether `peer` made the version that is held, or one that led to it. Raises: LegionError, for a forged proof."""
        if replica.chain.was_made_by(peer) or not message.header:
            return replica.chain.was_made_by(peer)
        header = self._follower.open_update(Update(message.header, message.signature, b""))
        return header.owner == peer and header.shard == replica.shard and replica.chain.passed(header.version, header.digest)

    def _take_over(self, replica: Replica, message: HandoverPart, value: Tensor) -> None:
        """The caller holds the lock. Raises: CodecError."""
        if message.part == "residual":
            kept = replica.owner_residual
            together = value if kept is None else kept + value
            if not is_finite(together):
                raise CodecError("the residual leads to infinity")
            replica.owner_residual = together
            return
        owns = replica.round is not None
        if owns and replica.outer.momentum is not None and message.version > replica.life.owner.owned_from:
            return  # both owned it at the same time: what this one remembers is of the same rounds
        is_recent = message.part == "recent"
        before = OuterState(None, value, message.n_recent) if is_recent else OuterState(value)
        rounds = max(0, replica.chain.version - message.version) if owns else 0
        outer = carried_on(replica.outer, before, rounds, momentum=self._rounds.outer_momentum)
        if not all(is_finite(x) for x in (outer.momentum, outer.recent) if x is not None):
            raise CodecError("the momentum leads to infinity")
        replica.outer = outer


def _last_header(replica: Replica) -> tuple[UpdateHeader, ...]:
    last = replica.chain.last()
    return () if last is None else (last.header,)


def _kept(replica: Replica) -> dict[Part, Tensor]:
    """What only its owner has, what matters most first."""
    kept: dict[Part, Tensor | None] = {
        "residual": replica.owner_residual, "momentum": replica.outer.momentum, "recent": replica.outer.recent,
    }  # fmt: skip
    return {part: value for part, value in kept.items() if value is not None and bool(value.any())}
