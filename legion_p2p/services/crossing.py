"""Between the owners of a shard in two regions: every K versions they meet, and each moves towards the other.

    due, and matched with a region -> what I hold, compressed  -->  its owner moves, and answers with what it held
    its answer came                -> I move as it did, the other way
    no answer                      -> the same message again the next time: it counts once
    what one knows the other does not -> both begin anew, with the whole shard

What a copy moves by goes into the owner's residual, so it reaches the members inside the next ordinary updates, and what counts
as one's copy is the reference less that residual: where all that is on its way has arrived. Nothing here holds up a round.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass, field

import trio
from torch import Tensor

from legion_p2p.core.announcement import Announcement, peer_of, version_at
from legion_p2p.core.distance import DistanceGuard
from legion_p2p.core.identity import PeerId
from legion_p2p.core.matching import epoch_of, partner, patience
from legion_p2p.core.membership import weights_of
from legion_p2p.core.rendezvous import ownership
from legion_p2p.core.wire import Cross, Crossed, Reply, Unknown
from legion_p2p.errors import CodecError, DecodeError, NetworkError, NonFiniteError, RefusedError, RemoteProtocolError
from legion_p2p.observe.events import Events
from legion_p2p.services.following import TRANSFER_DEADLINE_S
from legion_p2p.services.members import MemberService
from legion_p2p.services.ports import Messenger
from legion_p2p.services.replica import Replica
from legion_p2p.services.shards import ShardService
from legion_p2p.tensor.elastic import center_bound, pairwise_bound
from legion_p2p.tensor.meeting import Known, Moved, hear, move, tell

CENTER = ""  # in place of a region's label: the center variable, which no region has; it sorts before all of them
WHOLE = "bf16"  # codec of first meetings; what it rounds away is in the next difference
MAX_LINKS = 8  # other regions of which an owner keeps what it knows, two shards each; who met longest ago begins anew
MAX_STALENESS = 64


@dataclass(frozen=True, eq=False)
class Asked:
    """A meeting that was begun here, and what was known when it was."""

    peer: PeerId
    message: Cross
    known: Known | None
    ours: Tensor
    version: int


@dataclass(eq=False)
class Link:
    """What is known here of the other side, for one shard."""

    guard: DistanceGuard
    known: Known | None = None
    digest: bytes = b""
    asked: Asked | None = None
    is_asking: bool = False
    answered: tuple[int, Crossed] | None = None
    staleness: int = 0
    """Meetings' times that the last answer took."""

    def forget(self) -> None:
        self.known, self.digest, self.asked = None, b"", None


class RegionCopy:
    """This region's copy of a shard, at its owner."""

    def __init__(self, replica: Replica) -> None:
        self.lock = replica.lock
        self._replica = replica

    @property
    def version(self) -> int:
        return self._replica.chain.version

    def value(self) -> Tensor:
        residual = self._replica.owner_residual
        return self._replica.reference if residual is None else self._replica.reference - residual

    def subtract(self, step: Tensor) -> None:
        residual = self._replica.owner_residual
        self._replica.owner_residual = step if residual is None else residual + step


class CenterCopy:
    """The center variable of a shard, at whoever owns it across all regions."""

    def __init__(self, start: Tensor) -> None:
        self.lock = trio.Lock()
        self.version = 0
        self._value = start

    def value(self) -> Tensor:
        return self._value

    def subtract(self, step: Tensor) -> None:
        self._value = self._value - step
        self.version += 1


@dataclass(eq=False)
class Met:
    """When a shard met which region, in versions."""

    last: int | None = None
    by_region: dict[str, int] = field(default_factory=dict)


class Crossing:
    """Keeps the regions of a run together."""

    def __init__(
        self, shards: ShardService, members: MemberService, messenger: Messenger, events: Events, rng: random.Random
    ) -> None:
        self._shards = shards
        self._members = members
        self._messenger = messenger
        self._events = events
        self._rng = rng
        self._rounds = shards.spec.round
        self._met: dict[int, Met] = {}
        self._links: dict[int, OrderedDict[tuple[str, str], Link]] = {}
        self._centers: dict[int, CenterCopy] = {}
        self.n_met = 0

    async def run_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            for replica in self._shards.replicas.values():
                nursery.start_soon(self._cross_when_due, replica)

    def forget(self) -> None:
        """This peer has moved to another region: what it knew as an owner is no longer its own."""
        self._links.clear()
        self._met.clear()

    # who meets whom, and when

    async def _cross_when_due(self, replica: Replica) -> None:
        while True:
            other = self._due(replica)
            if other is not None:
                await self._meet(replica, other)
            await replica.bell.wait()

    def _due(self, replica: Replica) -> str | None:
        """The region to meet now; None: nobody."""
        if replica.round is None:
            self._met.pop(replica.shard, None)
            links = self._links.get(replica.shard, {})
            for key in [key for key in links if key[0] != CENTER]:
                del links[key]
            return None
        met, version, every = self._met.setdefault(replica.shard, Met()), replica.chain.version, self._rounds.cross_every
        if met.last is None:
            met.last = version
        if version < met.last + every:
            return None
        mine = self._shards.region
        members = self._by_region()
        if not any(region != mine for region in members):
            return None
        if self._rounds.cross_rule == "center":
            return CENTER
        versions = {region: _versions(announced, replica.shard) for region, announced in members.items()}
        other = partner(self._shards.run, replica.shard, epoch_of(versions, every), members.keys(), mine)
        if other is None or version < met.last + patience(mine, other, every):
            return None
        return other

    def _by_region(self) -> dict[str, list[Announcement]]:
        """The members that may own, by region."""
        members: dict[str, list[Announcement]] = {}
        for announcement in self._members.everyone():
            if announcement.ready and announcement.weight > 0 and announcement.region:
                members.setdefault(announcement.region, []).append(announcement)
        return members

    def _owner(self, region: str, shard: int) -> PeerId | None:
        everyone = self._members.everyone()
        if region == CENTER:
            weights = {peer_of(a): a.weight for a in everyone if a.ready and a.weight > 0}
        else:
            weights = weights_of(everyone, region)
        return ownership(self._shards.run, region, shard, weights).owner

    def _link(self, shard: int, mine: str, other: str) -> Link:
        links = self._links.setdefault(shard, OrderedDict())
        link = links.get((mine, other))
        if link is None:
            link = links[mine, other] = Link(DistanceGuard(self._rounds.moving_rate))
        links.move_to_end((mine, other))
        while len(links) > MAX_LINKS:
            links.popitem(last=False)
        return link

    # asking

    async def _meet(self, replica: Replica, other: str) -> None:
        peer = self._owner(other, replica.shard)
        link = self._link(replica.shard, self._shards.region, other)
        if peer is None or link.is_asking:
            return
        if link.asked is not None and link.asked.peer != peer:
            link.forget()  # whether the one before has moved nobody can tell
        link.is_asking = True
        try:
            reply = await self._ask(replica, link, peer, other)
            if isinstance(reply, Unknown):
                link.forget()
                reply = await self._ask(replica, link, peer, other)
            if isinstance(reply, Crossed):
                await self._take_answer(replica, link, other, reply)
            elif reply is not None:
                raise DecodeError(f"asked to meet about shard {replica.shard}, got {type(reply).__name__}")
        except RefusedError as refused:  # it has not moved
            link.asked = None
            self._events.emit("cross.refused", shard=replica.shard, region=other, peer=peer, reason=str(refused))
        except (NetworkError, trio.TooSlowError) as failed:
            reason = str(failed) or "no answer in time"
            self._events.emit("cross.failed", shard=replica.shard, region=other, peer=peer, reason=reason)
        except (DecodeError, CodecError, NonFiniteError) as bad:
            link.forget()
            self._messenger.report(peer, f"bad meeting about shard {replica.shard}: {bad}")
            self._events.error("cross.failed", f"shard {replica.shard}: {bad}", peer=peer, region=other)
        finally:
            link.is_asking = False

    async def _ask(self, replica: Replica, link: Link, peer: PeerId, other: str) -> Reply | None:
        if link.asked is None:
            async with replica.lock:
                if replica.round is None:
                    return None
                own, version = RegionCopy(replica).value(), replica.chain.version
            codec = WHOLE if link.known is None else self._rounds.cross_codec
            payload, ours = await self._compute(replica.numel, tell, own, link.known, self._shards.codec_of(replica, codec))
            message = Cross(
                self._shards.run,
                replica.shard,
                self._shards.region,
                self._rng.getrandbits(62),
                link.digest,
                link.guard.rate(self._bound(link.staleness)),
                other == CENTER,
                codec,
                payload,
            )
            link.asked = Asked(peer, message, link.known, ours, version)
        if peer == self._shards.me:
            return await self.on_cross(peer, link.asked.message)
        with trio.fail_after(TRANSFER_DEADLINE_S):
            return await self._shards.ask_owner(peer, link.asked.message)

    async def _take_answer(self, replica: Replica, link: Link, other: str, reply: Crossed) -> None:
        asked = link.asked
        if asked is None:
            return
        link.asked = None
        codec = self._shards.codec_of(replica, asked.message.codec)
        async with replica.lock:
            theirs = await self._compute(replica.numel, hear, reply.payload, asked.known, replica.numel, codec)
            first = self._shards.region < other
            moved = await self._compute(
                replica.numel, move, asked.ours, theirs, asked.known, self._rounds.cross_rule, asked.message.rate, first
            )
            if replica.round is None:
                self._events.emit("cross.lost", shard=replica.shard, region=other)
                return
            RegionCopy(replica).subtract(moved.step_N)
        link.staleness = min((replica.chain.version - asked.version) // self._rounds.cross_every, MAX_STALENESS)
        self._note(replica.shard, link, other, moved, replica.chain.version, asked.message, len(reply.payload))
        replica.bell.ring()

    def _bound(self, staleness: int) -> float:
        """Below which moving rate regions come together."""
        bound = pairwise_bound(staleness)
        if self._rounds.cross_rule == "center":
            n_regions = max(1, len(self._by_region()))
            bound = min(bound, center_bound(n_regions, 0.0) / n_regions)
        return bound

    # answering

    async def on_cross(self, peer: PeerId, message: Cross) -> Reply:
        """Meet the owner of a shard in another region. Raises: LegionError, to be sent back; then nothing has moved."""
        replica = self._shards.replica(message.shard)
        mine = CENTER if message.center else self._shards.region
        self._check(peer, message, replica, mine)
        link = self._link(message.shard, mine, message.region)
        if link.answered is not None and link.answered[0] == message.exchange:
            return link.answered[1]
        if link.is_asking and mine < message.region:  # else both that ask would refuse each other, again and again
            raise NetworkError(f"shard {message.shard}: this peer is just asking region {message.region} itself")
        codec = self._shards.codec_of(replica, message.codec)
        copy = await self._copy(replica, message)
        async with copy.lock:
            if message.known != link.digest:
                if message.known:
                    return Unknown()
                link.forget()
            link.asked = None  # the other side has not moved for it, or it would know something else
            theirs = await self._compute(replica.numel, hear, message.payload, link.known, replica.numel, codec)
            payload, ours = await self._compute(replica.numel, tell, copy.value(), link.known, codec)
            first = mine < message.region
            moved = await self._compute(
                replica.numel, move, ours, theirs, link.known, self._rounds.cross_rule, message.rate, first
            )
            if not message.center and replica.round is None:
                raise NetworkError(f"shard {message.shard} is no longer owned by this peer")
            copy.subtract(moved.step_N)
            reply = Crossed(payload)
            link.answered = (message.exchange, reply)
        self._note(message.shard, link, message.region, moved, copy.version, message, len(payload), center=message.center)
        if not message.center:
            replica.bell.ring()
        return reply

    def _check(self, peer: PeerId, message: Cross, replica: Replica, mine: str) -> None:
        if not self._members.is_known(peer):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")
        if message.center != (self._rounds.cross_rule == "center"):
            raise DecodeError(f"regions of this run meet by the rule {self._rounds.cross_rule!r}")
        if message.region == mine:
            raise NetworkError(f"region {mine} does not meet itself")
        if message.codec != (self._rounds.cross_codec if message.known else WHOLE):
            raise CodecError(
                f"meeting in codec {message.codec!r}, this run has {self._rounds.cross_codec!r}, and {WHOLE!r} at first"
            )
        if self._owner(message.region, message.shard) != peer:
            raise NetworkError(f"shard {message.shard} of region {message.region} is not owned by {peer}, as far as I know")
        if self._owner(mine, message.shard) != self._shards.me or (not message.center and replica.round is None):
            raise NetworkError(f"shard {message.shard} of region {mine or 'center'} is not owned by this peer")
        met = self._met.get(message.shard)
        if not message.center and met is not None and met.by_region.get(message.region) == replica.chain.version:
            raise NetworkError(f"shard {message.shard}: regions {mine} and {message.region} have met already in this round")

    async def _copy(self, replica: Replica, message: Cross) -> RegionCopy | CenterCopy:
        if not message.center:
            return RegionCopy(replica)
        center = self._centers.get(message.shard)
        if center is None:  # the first that meets the center finds itself there
            codec = self._shards.codec_of(replica, WHOLE)
            if message.known:
                return CenterCopy(replica.reference)  # of no use: the asker will be told to begin anew
            start = await self._compute(replica.numel, hear, message.payload, None, replica.numel, codec)
            center = self._centers.setdefault(message.shard, CenterCopy(start))
        return center

    # both

    def _note(
        self, shard: int, link: Link, other: str, moved: Moved, version: int, message: Cross, replied: int, center: bool = False
    ) -> None:
        link.known, link.digest = moved.known, moved.digest
        if not center:
            met = self._met.setdefault(shard, Met())
            met.last = met.by_region[other] = version
            while len(met.by_region) > 4 * MAX_LINKS:
                del met.by_region[next(iter(met.by_region))]
        if link.guard.met(moved.distance):
            link.forget()
            self._events.emit("cross.apart", shard=shard, region=other, distance=moved.distance)
        self.n_met += 1
        self._events.emit(
            "cross.met",
            shard=shard,
            version=version,
            region=other,
            distance=round(moved.distance, 6),
            rate=round(message.rate, 4),
            whole=not message.known,
            n_bytes=len(message.payload) + replied,
        )

    async def _compute(self, n_elements: int, fn, *args):  # type: ignore[no-untyped-def]
        return await self._shards.compute(n_elements, fn, *args)


def _versions(announced: list[Announcement], shard: int) -> list[int]:
    versions = (version_at(a.marks, shard) for a in announced)
    return [version for version in versions if version is not None]
