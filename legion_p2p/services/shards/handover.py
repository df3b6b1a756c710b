"""Between an owner and the next one: giving away what only an owner has, and taking it from the one before.

    it is not ours any more   -> the round is given up (its members push again), what only an owner has goes to the one after us
    that fails, and we stay   -> the residual goes with this peer's own next push
    that fails, and we leave  -> again, to whoever owns the shard then

Whoever leaves has the next owner say, too, that it holds the newest version: nobody else may have it yet.
"""

import math
from typing import Any

import msgspec
import trio
from torch import Tensor

from legion_p2p.concurrency.semaphore import PeerSemaphore
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.slots import SlotLimits
from legion_p2p.core.wire import Handover, Held, Part, Update, UpdateHeader
from legion_p2p.errors import CodecError, DecodeError, NetworkError, RefusedError
from legion_p2p.services.shards.follower import TRANSFER_DEADLINE_S, Following
from legion_p2p.services.shards.replica import Replica
from legion_p2p.tensor import codec
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.outer import OuterState, carried_on

MAX_BYTES_AT_ONCE = 4 << 20  # of hand-overs on their way: more would share the link, and all of them end late
AGAIN_S = 0.2  # between two attempts
MAX_ATTEMPTS = 50  # some 10 s: time for all to learn who leaves and who does not
ATTEMPTS_OF_ONE_THAT_STAYS = 5  # time for a newcomer to catch up with what it owns from now on
PRECISE_S = 30.0  # all of it in a byte an element is worth more than a part of it exactly: what takes longer goes in that
PRECISE, COARSE = "fp32", "int8"


class HandingOver(Following):
    """Gives up shards, and takes over what others give up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.leaving = False
        self._semaphore = PeerSemaphore(SlotLimits(max_bytes=MAX_BYTES_AT_ONCE))
        self._to_hand_over: dict[int, int] = {}  # bytes, by shard
        self._hand_over_codec = PRECISE

    @property
    def to_hand_over(self) -> tuple[int, int]:
        """Of how many shards something has not arrived at an owner yet, and how many bytes."""
        pushing = [replica for replica in self.replicas.values() if self._is_pushing(replica)]
        n_bytes = sum(len(replica.pending.payload) for replica in pushing if replica.pending is not None)
        return len(self._to_hand_over.keys() | {r.shard for r in pushing}), sum(self._to_hand_over.values()) + n_bytes

    async def hand_over_all(self) -> None:
        """Before leaving, when members know this peer as not ready: give everything away, its last pushes as well.

        Returns when it has arrived, or nobody is there to take it.
        """
        self.leaving = True
        n_bytes = sum(4 * r.numel * len(_kept(r)) for r in self.replicas.values() if r.round is not None)
        if 8 * n_bytes > PRECISE_S * (self._messenger.bandwidth().known_upload_bps or math.inf):
            self._hand_over_codec = COARSE
        async with trio.open_nursery() as nursery:
            for replica in self.replicas.values():
                nursery.start_soon(self._relinquish, replica)
        while self.to_hand_over[0]:  # what the shards' own tasks began
            with trio.move_on_after(AGAIN_S):
                await self._settled.wait()

    def _is_pushing(self, replica: Replica) -> bool:
        """A push of this peer's own has still to come to an owner, who brings it into an update though this peer is gone."""
        if self._nursery is None or self.ownership(replica.shard).owner in (None, self.me):
            return False  # nobody is there to take it, or, in a peer that was cancelled, to bring it
        pending = replica.pending
        return replica.offered is not None if pending is None else pending.holder in (None, self.me)

    async def _relinquish(self, replica: Replica) -> None:
        """Own the shard no longer."""
        async with replica.lock:
            if replica.round is None:
                return
            replica.round = None
            replica.arrived.clear()
            replica.taken_over.clear()
            parts, chain, last = _kept(replica), replica.chain, replica.chain.last()
            nothing = Handover(self.run, replica.shard, chain.version, chain.digest, b"", n_recent=replica.outer.n_recent)
            if last is not None and last.header.owner == self.me:
                nothing = msgspec.structs.replace(nothing, header=last.update.header, signature=last.update.signature)
            replica.owner_residual, replica.outer = None, OuterState()
            self._to_hand_over[replica.shard] = 0
        self._settled.notify()
        if replica.pending is not None:
            replica.pending.holder = None
        try:
            await self._hand_over(replica, nothing, parts)
        finally:
            del self._to_hand_over[replica.shard]
            self._settled.notify()

    async def _hand_over(self, replica: Replica, nothing: Handover, parts: dict[Part, Tensor]) -> None:
        """Give `parts` to who owns the shard now; they are taken out of the dict as they arrive. `nothing`: without a payload."""
        heir: PeerId | None = None
        why = "nobody is there to own it"
        question = msgspec.structs.replace(nothing, header=b"", signature=b"")  # a header may be too long for the control lane
        for attempt in range(MAX_ATTEMPTS):
            heir = self.ownership(replica.shard).owner
            if heir is None or heir == self.me:
                break
            try:
                self._note_left(replica, parts)
                for part, value in tuple(parts.items()):
                    async with self._semaphore.slot([heir], self._part_bytes(replica)):
                        name = self._hand_over_codec
                        payload = await self.compute(replica.numel, codec.get(name).encode, value)
                        await self._give(heir, msgspec.structs.replace(nothing, payload=payload, part=part, codec=name))
                    del parts[part]
                    self._note_left(replica, parts)
                if not self.leaving or (holds := (await self._give(heir, question)).version) >= nothing.version:
                    self._events.emit("shard.handed_over", shard=replica.shard, version=nothing.version, owner=heir)
                    return
                why, may_change = f"it is still at version {holds}", True
            except (NetworkError, DecodeError, trio.TooSlowError) as failed:
                why, may_change = str(failed) or "no answer", isinstance(failed, RefusedError)
            if not self.leaving and (attempt >= ATTEMPTS_OF_ONE_THAT_STAYS or not may_change):
                break
            await self._members.exchange_with(heir)  # it may be leaving, too, or not know yet that we do
            self._refresh_owners()
            await trio.sleep(AGAIN_S)
        if "residual" in parts and not self.leaving:
            async with replica.lock:  # not lost: it goes with this peer's own next push instead
                kept = replica.residual
                replica.residual = parts["residual"] if kept is None else kept + parts["residual"]
        if parts or heir is not None:
            self._events.emit("shard.handover_failed", shard=replica.shard, owner=heir, reason=why)

    def _note_left(self, replica: Replica, parts: dict[Part, Tensor]) -> None:
        self._to_hand_over[replica.shard] = self._part_bytes(replica) * len(parts)

    def _part_bytes(self, replica: Replica) -> int:
        return int(codec.get(self._hand_over_codec).bits_per_element * replica.numel / 8)

    async def _give(self, heir: PeerId, message: Handover) -> Held:
        with trio.fail_after(TRANSFER_DEADLINE_S):
            reply = await self._ask(heir, message, Priority.ROUND if message.payload else Priority.CONTROL)
        if not isinstance(reply, Held):
            raise DecodeError(f"a {type(reply).__name__} in answer to a hand-over")
        return reply

    async def _on_handover(self, peer: PeerId, message: Handover) -> Held:
        replica = self.replica(message.shard)
        self._must_be_member(peer)
        if self.leaving:
            raise NetworkError("this peer is leaving the run as well")
        if not message.payload:
            return Held(replica.chain.version, replica.chain.digest)
        if message.digest not in (replica.chain.digest, *(m.base_digest for m in self._last_header(replica))):
            self._events.emit("shard.handover_of_other_state", shard=replica.shard, peer=peer)
        if not (self._has_made(replica, peer, message) or self.ownership(replica.shard).owner == peer):
            raise NetworkError(f"shard {replica.shard}: {peer} made none of its last versions, so it has nothing to hand over")
        if message.codec not in (PRECISE, COARSE):
            raise CodecError(f"hand-over in codec {message.codec!r}, {PRECISE} and {COARSE} are allowed")
        value = await self.compute(replica.numel, codec.get(message.codec).decode, message.payload, replica.numel)
        async with replica.lock:
            which = (peer, message.version, message.digest)
            if replica.taken_over.get(message.part) != which:  # else our answer was lost, and it comes again
                self._take_over(replica, message, value)
                replica.taken_over[message.part] = which
        return Held(replica.chain.version, replica.chain.digest)

    def _has_made(self, replica: Replica, peer: PeerId, message: Handover) -> bool:
        """Whether `peer` made the version that is held, or one that led to it. Raises: LegionError, for a forged proof."""
        if replica.chain.was_made_by(peer) or not message.header:
            return replica.chain.was_made_by(peer)
        header = self._open_update(peer, Update(message.header, message.signature, b""))
        return header.owner == peer and header.shard == replica.shard and replica.chain.passed(header.version, header.digest)

    def _take_over(self, replica: Replica, message: Handover, value: Tensor) -> None:
        """The caller holds the lock. Raises: CodecError."""
        if message.part == "residual":
            kept = replica.owner_residual
            together = value if kept is None else kept + value
            if not is_finite(together):
                raise CodecError("the residual leads to infinity")
            replica.owner_residual = together
            return
        if replica.outer.momentum is not None and message.version > replica.owned_from:
            return  # both owned it at the same time: what this one remembers is of the same rounds
        recent = message.part == "recent"
        before = OuterState(None, value, message.n_recent) if recent else OuterState(value)
        rounds = 0 if replica.round is None else max(0, replica.chain.version - message.version)
        together = carried_on(replica.outer, before, rounds, momentum=self.spec.round.outer_momentum)
        if not all(is_finite(x) for x in (together.momentum, together.recent) if x is not None):
            raise CodecError("the momentum leads to infinity")
        replica.outer = together

    @staticmethod
    def _last_header(replica: Replica) -> tuple[UpdateHeader, ...]:
        last = replica.chain.last()
        return () if last is None else (last.header,)


def _kept(replica: Replica) -> dict[Part, Tensor]:
    """What only its owner has, what matters most first."""
    kept: dict[Part, Tensor | None] = {
        "residual": replica.owner_residual, "momentum": replica.outer.momentum, "recent": replica.outer.recent,
    }  # fmt: skip
    return {part: value for part, value in kept.items() if value is not None and bool(value.any())}
