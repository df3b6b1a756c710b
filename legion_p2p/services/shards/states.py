"""The shards as this peer holds them: the copies, who owns them, and what every conversation about them needs."""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import trio
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import pack_marks
from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.membership import Liveness
from legion_p2p.core.placement import Placement
from legion_p2p.core.priority import Priority
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import LATE, Pace
from legion_p2p.core.wire import (
    Inclusion,
    Reply,
    Request,
    Update,
    UpdateHeader,
    decode_reply,
    encode,
)
from legion_p2p.errors import (
    DecodeError,
    NetworkError,
    RemoteProtocolError,
    UnreachableError,
)
from legion_p2p.observe.status import FailedPush, RoundStatus
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.replica import Replica
from legion_p2p.tensor.codec import Codec

MAX_CONCURRENT_TRANSFERS = 32  # each holds at most one shard in memory
MAX_LOG_BYTES = 60 << 20  # of updates of one shard: they travel in one frame of 64 MiB
INLINE_ELEMENTS = 1 << 15  # below this, arithmetic is quicker than a hop to another thread


def log_bytes(numel: int) -> int:
    """How many bytes of updates to keep: twice the shard, for who may not be given it whole; and room for headers."""
    return min(8 * numel + (64 << 10), MAX_LOG_BYTES)


class Holding:
    """Every shard of a run at one peer. The conversations about them are in the classes below it, down to ShardService."""

    def __init__(self, ctx: PeerContext, members: MemberService, mailbox: Mailbox) -> None:
        self.run = ctx.run
        self.spec = spec = ctx.spec
        self.plan = ctx.plan
        self.placement = Placement(ctx.run, self.plan.n_shards, spec.round.placement)
        self.me = ctx.me
        self.region = "" if ctx.config.region == AUTO_REGION else ctx.config.region
        self.replicas: dict[int, Replica] = {}
        self.push_codec = spec.round.push_codec
        self.update_codec = spec.round.update_codec
        self.ramp_pushes = 0
        """Pushes of this peer that count less than their tokens: it came into a run that was under way."""
        self.rounds = 0
        self.last_round: RoundStatus | None = None
        self._identity = ctx.identity
        self._messenger = ctx.messenger
        self._offload = ctx.offload
        self._members = members
        self._mailbox = mailbox
        self._events = ctx.events
        self._rng = ctx.rng
        self._config = msgspec.structs.replace(ctx.config.rounds, quorum=spec.round.waits_for())
        self._transfers = trio.CapacityLimiter(MAX_CONCURRENT_TRANSFERS)
        self._urgent = trio.CapacityLimiter(MAX_CONCURRENT_TRANSFERS)
        self._in_flight: Counter[tuple[PeerId, int]] = Counter()
        self._nursery: trio.Nursery | None = None
        self._settled = Notify()
        self._codecs: dict[tuple[int, str], Codec] = {}
        self._weights: dict[PeerId, float] = {}
        self.on_update: Callable[[Replica, UpdateHeader, Update], None] = lambda replica, header, update: None
        """Told of every update that was accepted, whoever made it."""
        self.on_replaced: Callable[[Replica], None] = lambda replica: None
        """Told when a shard has new bytes that no update led to."""
        self.upload_slots = ctx.upload_slots
        self._fruitless: dict[tuple[PeerId, int], tuple[float, float]] = {}  # not to be asked before; the pause until then

    def hold(self, shard: int, reference: Tensor, version: int, digest_: bytes, included: Sequence[Inclusion] = ()) -> None:
        """Begin to hold a shard in this state."""
        self.hold_chain(shard, reference, Chain(version, digest_, log_bytes(reference.numel()), included))

    def hold_chain(self, shard: int, reference: Tensor, chain: Chain) -> None:
        """Begin to hold a shard at the end of this chain."""
        replica = Replica(shard, reference, chain, Pace(self._config))
        replica.next_seq = 1 + chain.newest(self.me)
        self.replicas[shard] = replica
        self._mailbox.post(shard, chain.version, reference)

    def codec_of(self, replica: Replica, name: str) -> Codec:
        """The codec of that name as it is used on this shard. Raises: CodecError."""
        found = self._codecs.get((replica.shard, name))
        if found is None:
            found = self._codecs[replica.shard, name] = shard_codec(self.spec, replica.shard, name)
        return found

    def complete(self) -> bool:
        """This peer holds every shard."""
        return len(self.replicas) == self.plan.n_shards

    def marks(self) -> bytes:
        """The packed marks of all shards, for the announcement; empty while some are missing."""
        if not self.complete():
            return b""
        return pack_marks([self.replicas[shard].chain.mark for shard in range(self.plan.n_shards)])

    def ownership(self, shard: int) -> Ownership:
        """Owner and standby in this region, by the members known now."""
        return self.placement.owners(self.region, self._weights)[shard]

    def _refresh_owners(self) -> bool:
        """Look at the members again; whether owners may differ from before."""
        weights = self._members.weights(self.region)
        differ = weights is not self._weights and weights != self._weights
        self._weights = weights
        return differ

    def move(self, region: str) -> None:
        """This peer is in another region from now on, and owns nothing yet."""
        self.region = region
        self._fruitless.clear()

    def owned(self) -> list[int]:
        """The shards that this peer owns."""
        return [shard for shard in self.replicas if self.ownership(shard).owner == self.me]

    def _accept(self, replica: Replica, header: UpdateHeader, update: Update, made: Tensor) -> None:
        """The shard has a new version. The caller holds the lock."""
        replica.reference = made
        replica.chain.applied(header, update)
        self.on_update(replica, header, update)
        if replica.round is not None:
            replica.round.advanced(header.version, header.included)
            waiting = {c.peer for c in replica.round.waiting}
            replica.arrived = {peer: value for peer, value in replica.arrived.items() if peer in waiting}
        # Settled before posted would let the training thread push before it has seen the version that contains its last push.
        self._mailbox.post(replica.shard, header.version, made)
        replica.next_seq = max(replica.next_seq, 1 + replica.chain.newest(self.me))
        self._settle_if_included(replica)
        for failure in header.failed:
            if failure.peer == self.me and failure.reason != LATE:
                self._settle_failed(replica, failure.reason)
        replica.notify.notify()

    def _settle_if_included(self, replica: Replica) -> None:
        if replica.pending is not None and replica.chain.includes(self.me, replica.pending.seq):
            replica.pending = None
            self._mailbox.settle(replica.shard)

    def _settle_failed(self, replica: Replica, reason: str) -> None:
        if replica.pending is not None:
            replica.pending = None
            self._mailbox.settle(replica.shard, reason)

    def _note_round(self, header: UpdateHeader, version: int) -> None:
        self.rounds += 1
        failed = tuple(FailedPush(f.peer, f.reason) for f in header.failed)
        self.last_round = RoundStatus(
            header.shard, version, header.averaged_fraction, failed, len(header.included), header.expected
        )
        self._events.emit(
            "round.closed",
            shard=header.shard,
            version=version,
            n_included=len(header.included),
            n_expected=header.expected,
            digest=header.digest.hex()[:16],
            averaged_fraction=round(header.averaged_fraction, 4),
            failed=[{"peer_id": f.peer, "reason": f.reason} for f in header.failed],
            owner=header.owner,
        )

    def replica(self, shard: int) -> Replica:
        replica = self.replicas.get(shard)
        if replica is None:
            if shard >= self.plan.n_shards:
                raise DecodeError(f"shard {shard}, there are {self.plan.n_shards}")
            raise NetworkError(f"shard {shard} is not held here yet")
        return replica

    def _members_here(self) -> list[PeerId]:
        """Of this region, and up to date: who is sent updates."""
        return [PeerId(a.peer_id) for a in self._members.everyone() if a.ready and a.region == self.region]

    def _must_be_member(self, peer: PeerId) -> None:
        if not self._members.is_known(peer):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")

    def _lives(self, peer: PeerId) -> bool:
        if peer == self.me:
            return True
        member = self._members.table.get(peer)
        return member is not None and member.liveness is not Liveness.DEAD

    async def _ask(self, peer: PeerId, message: Request, priority: Priority) -> Reply:
        try:
            raw = await self._messenger.request(peer, encode(message), priority)
        except UnreachableError:
            self._members.lost(peer)
            raise
        self._members.heard(peer)
        return decode_reply(raw)

    async def ask_owner(self, peer: PeerId, message: Request) -> Reply:
        """Ask another owner, as one of few transfers at a time. Raises: NetworkError; DecodeError."""
        async with self._transfers:
            return await self._ask(peer, message, Priority.ROUND)

    async def compute(self, n_elements: int, fn: Callable, *args):  # type: ignore[no-untyped-def, type-arg]
        return fn(*args) if n_elements <= INLINE_ELEMENTS else await self._offload(fn, *args)
