"""Between a relay and the owner of a shard in its region: what the shard has to move by after a meeting.

the relay met another region   -> the step is compressed, and what that leaves out goes with the next one
the owner puts it into its residual, once a version at most -> it reaches the members inside the next ordinary updates
no answer                      -> the same message again at the next version: it counts once
the relay speaks no longer     -> all that is left, in one last message; also when it leaves in order
the relay dies                 -> what was left is lost, about a step: the other region has moved its part of it, this one not
"""

from collections.abc import Callable

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Held, RelayRequest
from legion_p2p.errors import CodecError, DecodeError, NetworkError, RefusedError, RemoteProtocolError
from legion_p2p.observe.events import Events
from legion_p2p.services.inter_region.copies import RegionCopy, RelayEstimate
from legion_p2p.services.inter_region.schedule import WHOLE, Schedule
from legion_p2p.services.shards.follower import TRANSFER_DEADLINE_S
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.meeting import norm, reach

LAST_STEP_S = 5.0  # that a relay which leaves waits for owners to have room for its last step, which they take once a version
SLACK = 4.0  # on the longest step that the owner takes from a relay: it may be several meetings' left over, or the last word


class RelayService:
    """Both sides of it."""

    def __init__(self, shards: ShardService, schedule: Schedule, events: Events, number: Callable[[], int]) -> None:
        """`number`: a new number for a message."""
        self._shards = shards
        self._schedule = schedule
        self._events = events
        self._number = number
        self._copies: dict[int, RelayEstimate] = {}

    # the relay's

    def copy(self, replica: Replica) -> RelayEstimate:
        """What this peer, as a relay, takes for its region's copy."""
        if replica.shard not in self._copies:
            self._copies[replica.shard] = RelayEstimate(replica)
        return self._copies[replica.shard]

    async def deliver(self, replica: Replica, codec_name: str) -> str:
        """Bring the owner what it lacks, unless that was tried at this version: in which codec it got it, empty where not."""
        copy = self._copies.get(replica.shard)
        owner = self._shards.ownership(replica.shard).owner
        if copy is None or copy.is_delivering or copy.tried == copy.version or owner is None:
            return ""
        copy.is_delivering, copy.tried = True, copy.version
        try:
            if copy.in_delivery is None:
                async with copy.lock:
                    codec = self._shards.codec_of(replica, codec_name)
                    payload, sent = await self._shards.compute(replica.numel, _encoded, codec, copy.undelivered)
                    copy.in_delivery = (RelayRequest(self._shards.run, replica.shard, self._number(), codec_name, payload), sent)
            message = copy.in_delivery[0]
            if owner == self._shards.me:
                await self.on_request(owner, message)
            else:
                with trio.fail_after(TRANSFER_DEADLINE_S):
                    reply = await self._shards.ask_owner(owner, message)
                if not isinstance(reply, Held):
                    raise DecodeError(f"carried a step of shard {replica.shard}, got {type(reply).__name__}")
            copy.delivered()
            return message.codec
        except RefusedError as refused:
            self._events.emit("cross.undelivered", shard=replica.shard, owner=owner, reason=str(refused))
            if refused.kind == DecodeError.__name__:  # it will not take it the next time either
                self._copies.pop(replica.shard, None)
        except (NetworkError, DecodeError, trio.TooSlowError) as failed:
            self._events.emit("cross.undelivered", shard=replica.shard, owner=owner, reason=str(failed) or "no answer in time")
        finally:
            copy.is_delivering = False
        return ""

    async def finish(self, replica: Replica) -> None:
        """This peer does not speak for the shard any more: give away what is left, then forget it."""
        if replica.shard in self._copies and await self.deliver(replica, WHOLE) == WHOLE:
            self._copies.pop(replica.shard, None)
            replica.notify.notify()  # `finish_all` may be waiting for what another task has just delivered

    async def finish_all(self) -> None:
        """This peer leaves: finish with every shard, at its next version where the owner has taken a step in this one already."""
        with trio.move_on_after(LAST_STEP_S):
            async with trio.open_nursery() as nursery:
                for shard in self._copies:
                    nursery.start_soon(self._finish_soon, self._shards.replica(shard))

    async def _finish_soon(self, replica: Replica) -> None:
        await self.finish(replica)
        while replica.shard in self._copies:
            await replica.notify.wait()
            await self.finish(replica)

    def clear(self) -> None:
        self._copies.clear()

    # the owner's

    async def on_request(self, peer: PeerId, message: RelayRequest) -> Held:
        """Take a step from a relay. Raises: LegionError, to be sent back; then nothing has moved."""
        replica = self._shards.replica(message.shard)
        if peer != self._shards.me and not self._schedule.volunteers(peer):
            raise RemoteProtocolError(peer, f"not a relay of region {self._shards.region}, as far as I know")
        allowed = (WHOLE, *self._shards.spec.round.allowed_cross_codecs())
        if message.codec not in allowed:
            raise CodecError(f"a relay's step in codec {message.codec!r}, this run allows {', '.join(allowed)}")
        if replica.round is None:
            raise NetworkError(f"shard {message.shard} is not owned by this peer")
        met = self._schedule.met(replica)
        if met.carried is not None and met.carried[:2] == (peer, message.number):
            return Held(replica.chain.version, replica.chain.digest)
        if met.carried is not None and met.carried[2] == replica.chain.version:
            raise NetworkError(f"shard {message.shard}: a relay has brought a step in this version already")
        codec = self._shards.codec_of(replica, message.codec)
        step = await self._shards.compute(replica.numel, codec.decode, message.payload, replica.numel)
        async with replica.lock:
            copy = RegionCopy(replica)
            if not copy.is_ours:
                raise NetworkError(f"shard {message.shard} is no longer owned by this peer")
            own = copy.value()
            travelled = met.travelled(own, copy.version)
            rounds, length = self._shards.spec.round, norm(step)
            longest = reach(own, travelled, rounds.cross_reach, rounds.cross_rule)
            if longest is not None and length > SLACK * longest:
                raise DecodeError(f"shard {message.shard}: a step of norm {length:.3g}, at most {SLACK * longest:.3g} is taken")
            copy.subtract(step)
            met.leave(own, own - step, copy.version)
            met.carried = (peer, message.number, copy.version)
        met.last, met.at_s = copy.version, trio.current_time()
        self._events.emit("cross.carried", shard=message.shard, version=copy.version, relay=peer, n_bytes=len(message.payload))
        replica.notify.notify()
        return Held(replica.chain.version, replica.chain.digest)


def _encoded(codec: Codec, step: Tensor) -> tuple[bytes, Tensor]:
    payload = codec.encode(step)
    return payload, codec.decode(payload, step.numel())
