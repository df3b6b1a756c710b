"""Between a relay and the owner of a shard in its region: what the shard has to move by after a sync with another region.

the relay synced with another region -> the step is compressed, and what that leaves out goes with the next one
the owner puts it into its residual, once a version at most -> it reaches the members inside the next ordinary updates
no answer                      -> the same message again at the next version: it counts once
the relay represents the shard no longer -> all that is left, in one last message; also when it leaves in order
the relay dies                 -> what was left is lost, about a step: the other region has moved its part of it, this one not
"""

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Held, RelayRequest
from legion_p2p.errors import CodecError, DecodeError, NetworkError, RefusedError, RemoteProtocolError
from legion_p2p.services.inter_region.copies import RegionCopy, RelayEstimate
from legion_p2p.services.inter_region.sync_parts import SyncParts
from legion_p2p.services.inter_region.sync_schedule import WHOLE
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.sync_step import norm, reach

OFFER_AGAIN_S = 1.0
LAST_STEP_S = 5.0  # for owners to take the last step of a relay that leaves: they take one a version
SLACK = 4.0  # on the longest step that the owner takes from a relay: it may be what several syncs have left over


class RelayService:
    """Both sides of it."""

    def __init__(self, parts: SyncParts, shards: ShardService) -> None:
        self._parts = parts
        self._shards = shards
        self._schedule = parts.schedule
        self._events = parts.events
        self._copies: dict[int, RelayEstimate] = {}

    # the relay's

    def copy(self, replica: Replica) -> RelayEstimate:
        """This peer's estimate, as a relay, of the owner's copy."""
        if replica.shard not in self._copies:
            self._copies[replica.shard] = RelayEstimate(replica)
        return self._copies[replica.shard]

    async def deliver(self, replica: Replica, codec_name: str) -> str:
        """Bring the owner what it lacks, unless that was tried at this version. The codec in which it got it, or nothing."""
        copy = self._copies.get(replica.shard)
        owner = self._shards.ownership(replica.shard).owner
        if copy is None or copy.is_delivering or copy.tried == copy.version or owner is None:
            return ""
        copy.is_delivering, copy.tried = True, copy.version
        try:
            if copy.in_delivery is None:
                async with copy.lock:
                    codec = self._shards.codec_of(replica, codec_name)
                    payload, sent = await self._parts.compute(replica, _encoded, codec, copy.undelivered)
                    copy.in_delivery = (
                        RelayRequest(self._shards.run, replica.shard, self._parts.number(), codec_name, payload),
                        sent,
                    )
            message = copy.in_delivery[0]
            if owner == self._shards.me:
                await self.on_request(owner, message)
            else:
                with trio.fail_after(TRANSFER_DEADLINE_S):
                    reply = await self._shards.ask_owner(owner, message)
                if not isinstance(reply, Held):
                    raise DecodeError(f"relayed a step of shard {replica.shard}, got {type(reply).__name__}")
            copy.delivered()
            return message.codec
        except RefusedError as refused:
            self._events.emit("sync.undelivered", shard=replica.shard, owner=owner, reason=str(refused))
            if refused.kind == DecodeError.__name__:  # it will not take it the next time either
                self._copies.pop(replica.shard, None)
        except (NetworkError, DecodeError, trio.TooSlowError) as failed:
            self._events.emit("sync.undelivered", shard=replica.shard, owner=owner, reason=str(failed) or "no answer in time")
        finally:
            copy.is_delivering = False
        return ""

    async def finish(self, replica: Replica) -> None:
        """This peer does not represent the shard any more: give away what is left, then forget it."""
        if replica.shard in self._copies and await self.deliver(replica, WHOLE) == WHOLE:
            self._copies.pop(replica.shard, None)
            replica.notify.notify()  # `finish_all` may be waiting for what another task has just delivered

    async def finish_all(self) -> None:
        """This peer leaves: finish with every shard, at its next version where the owner has taken a step in this one already.
        This peer may not hear of that version, because updates go to those that stay."""
        with trio.move_on_after(LAST_STEP_S):
            async with trio.open_nursery() as nursery:
                for shard in self._copies:
                    nursery.start_soon(self._finish_soon, self._shards.replica(shard))

    async def _finish_soon(self, replica: Replica) -> None:
        await self.finish(replica)
        while (copy := self._copies.get(replica.shard)) is not None:
            with trio.move_on_after(OFFER_AGAIN_S):
                await replica.notify.wait()
            copy.tried = None
            await self.finish(replica)

    def clear(self) -> None:
        self._copies.clear()

    # the owner's

    async def on_request(self, peer: PeerId, message: RelayRequest) -> Held:
        """Take a step from a relay. Raises: LegionError, to be sent back; then nothing has moved."""
        replica = self._shards.replica(message.shard)
        if peer != self._shards.me and not self._schedule.is_relay(peer):
            raise RemoteProtocolError(peer, f"not a relay of region {self._shards.region}, as far as I know")
        allowed = (WHOLE, *self._shards.spec.round.allowed_sync_codecs())
        if message.codec not in allowed:
            raise CodecError(f"a relay's step in codec {message.codec!r}, this run allows {', '.join(allowed)}")
        if replica.round is None:
            raise NetworkError(f"shard {message.shard} is not owned by this peer")
        last = self._schedule.last_sync(replica)
        if last.relayed is not None and last.relayed[:2] == (peer, message.number):
            return Held(replica.chain.version, replica.chain.digest)
        if last.relayed is not None and last.relayed[2] == replica.chain.version:
            raise NetworkError(f"shard {message.shard}: a relay has brought a step in this version already")
        codec = self._shards.codec_of(replica, message.codec)
        step = await self._parts.compute(replica, codec.decode, message.payload, replica.numel)
        async with replica.lock:
            copy = RegionCopy(replica)
            if not copy.is_ours:
                raise NetworkError(f"shard {message.shard} is no longer owned by this peer")
            own = copy.value()
            travelled = last.travel.distance(own, copy.version)
            rounds, length = self._shards.spec.round, norm(step)
            longest = reach(own, travelled, rounds.sync_reach, rounds.sync_rule)
            if longest is not None and length > SLACK * longest:
                raise DecodeError(f"shard {message.shard}: a step of norm {length:.3g}, at most {SLACK * longest:.3g} is taken")
            copy.subtract(step)
            last.travel.left(own, own - step, copy.version)
            last.relayed = (peer, message.number, copy.version)
        last.times.moved(copy.version, trio.current_time())
        self._events.emit("sync.relayed", shard=message.shard, version=copy.version, relay=peer, n_bytes=len(message.payload))
        replica.notify.notify()
        return Held(replica.chain.version, replica.chain.digest)


def _encoded(codec: Codec, step: Tensor) -> tuple[bytes, Tensor]:
    payload = codec.encode(step)
    return payload, codec.decode(payload, step.numel())
