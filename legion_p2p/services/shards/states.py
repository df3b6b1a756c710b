"""The shards as this peer holds them, who owns them, and what every conversation about them needs."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
import trio
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import MARK_BYTES, mark_of
from legion_p2p.core.chain import Chain, with_payload
from legion_p2p.core.cosigning import cosigners
from legion_p2p.core.eligible import Eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Liveness
from legion_p2p.core.observers import Observers
from legion_p2p.core.placement import Placement
from legion_p2p.core.rendezvous import Ownership, Salts, salted_key
from legion_p2p.core.round import LATE
from legion_p2p.core.run import RunSpec
from legion_p2p.core.seniority import is_senior
from legion_p2p.core.shard import push_events
from legion_p2p.core.shard.life import ShardLife
from legion_p2p.core.shard.life_events import Advanced, Owners, TakenBack
from legion_p2p.core.shard.push_events import Packed
from legion_p2p.core.wire import Inclusion, PushClaim, Update, UpdateHeader
from legion_p2p.errors import DecodeError, NetworkError, RemoteProtocolError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.replica import Earlier, Replica
from legion_p2p.services.shards.round_log import RoundLog
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.compact import Shelved, in_memory, shelved

T = TypeVar("T")

TRANSFER_DEADLINE_S = 120.0  # one shard is at most 32 MiB: 2.2 Mbit/s suffice
MAX_CONCURRENT_TRANSFERS = 32  # each holds at most one shard in memory
MAX_LOG_BYTES = 60 << 20  # of updates of one shard: they travel in one frame of 64 MiB
INLINE_ELEMENTS = 1 << 17  # arithmetic on fewer holds up the loop for a millisecond, as long as a hop to another thread takes
LOOKED_AT_SHARD = 0  # with whose versions this peer looks who may own: any one would do
MAX_VERSION_IN_MARK = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class AcceptedUpdate:
    """An update that a shard of this peer has taken over."""

    replica: Replica
    header: UpdateHeader
    update: Update
    agrees: bool = True
    """Its owner began with the standings of members that the updates before had ended with."""


def log_bytes(numel: int) -> int:
    """How many bytes of updates to keep: twice the shard, for members that may not be given it whole; and room for headers."""
    return min(8 * numel + (64 << 10), MAX_LOG_BYTES)


class ShardStates:
    """Every shard of a run at one peer."""

    def __init__(self, ctx: PeerContext, members: MemberService, mailbox: Mailbox) -> None:
        self.run = ctx.run
        self.spec: RunSpec = ctx.spec
        self.plan = ctx.plan
        self.me = ctx.me
        self.placement = Placement(ctx.run, self.plan.n_shards, ctx.spec.round.placement)
        self.keep = ctx.keep
        self.region = "" if ctx.config.region == AUTO_REGION else ctx.config.region
        self.replicas: dict[int, Replica] = {}
        self.members = members
        self.mailbox = mailbox
        self.rpc = Rpc(ctx.messenger, members)
        self.reachability = ctx.reachability
        self.push_codec = ctx.spec.round.push_codec
        self.update_codec = ctx.spec.round.update_codec
        self.ramp_pushes = 0
        """Pushes of this peer that count less than their tokens: it came into a run that was under way."""
        self.bounds_updates = ctx.spec.round.rule() != "mean"
        """Whether updates that are far longer than usual are refused; not where all members are trusted."""
        self.keeps_provisional = ctx.spec.round.verify == "late"
        """Whether the newest versions may be taken back: see `core.shard.provisional`."""
        self.round_log = RoundLog(ctx)
        self.transfers = QuickLock(MAX_CONCURRENT_TRANSFERS)
        self.urgent = QuickLock(MAX_CONCURRENT_TRANSFERS)
        """For transfers that a round of this peer waits for."""
        self.settled = Notify()
        """Wakes those that wait until something has been delivered or handed over."""
        self.updated: Observers[AcceptedUpdate] = Observers()
        """Told of every update that was accepted, of any owner."""
        self.packed: Observers[Replica] = Observers()
        """Told when a contribution of this peer has been compressed, and is about to be brought to the owner."""
        self.replaced: Observers[Replica] = Observers()
        """Told when a shard has new bytes that no update led to."""
        self.nursery: trio.Nursery | None = None
        """Runs what is under way, while the service runs."""
        self.woken = trio.Event()
        """Set when something happened to a shard."""
        self._to_look_at: dict[int, None] = {}
        self._ctx = ctx
        self._config = msgspec.structs.replace(ctx.config.rounds, quorum=ctx.spec.round.waits_for())
        self._codecs: dict[tuple[int, str], Codec] = {}
        self._marks = bytearray(MARK_BYTES * self.plan.n_shards)
        self._packed_marks: bytes | None = None
        self._eligible = Eligible()
        self._salted_by: Salts = ()
        self.redealt: Observers[None] = Observers()
        """Told when shards may have other owners though no member came, went or announced anything."""
        self._owners = (Ownership(None, None),) * self.plan.n_shards
        self._owned_by: dict[PeerId, list[int]] = {}

    # what is held

    def hold(self, shard: int, reference: Tensor, version: int, digest: bytes, included: Sequence[Inclusion] = ()) -> None:
        """Begin to hold a shard in this state."""
        self.hold_chain(shard, reference, Chain(version, digest, log_bytes(reference.numel()), included))

    def hold_chain(self, shard: int, reference: Tensor, chain: Chain) -> None:
        """Begin to hold a shard at the end of this chain."""
        chain.shelve(self._ctx.shelf.keep)
        life = ShardLife(self.me, chain, self._config, self.members.config.announce_s)
        replica = self.replicas[shard] = Replica(shard, shelved(reference, self.keep), life)
        life.handle(Owners(self._owners[shard]), trio.current_time())
        self._note_mark(replica)
        self.mailbox.post(shard, chain.version, replica.common)
        self.wake(replica)

    def replica(self, shard: int) -> Replica:
        """Raises: DecodeError, if there is no such shard; NetworkError, if it is not held here yet."""
        replica = self.replicas.get(shard)
        if replica is None:
            if shard >= self.plan.n_shards:
                raise DecodeError(f"shard {shard}, there are {self.plan.n_shards}")
            raise NetworkError(f"shard {shard} is not held here yet")
        return replica

    def codec_of(self, replica: Replica, name: str) -> Codec:
        """The codec of that name as it is used on this shard. Raises: CodecError."""
        found = self._codecs.get((replica.shard, name))
        if found is None:
            found = self._codecs[replica.shard, name] = shard_codec(self.spec, replica.shard, name)
        return found

    def bound_codec_of(self, replica: Replica) -> Callable[[str], Codec]:
        """`codec_of`, for this shard."""
        return partial(self.codec_of, replica)

    def complete(self) -> bool:
        """This peer holds every shard."""
        return len(self.replicas) == self.plan.n_shards

    def marks(self) -> bytes:
        """The packed marks of all shards; empty while some are missing. The same object until they change."""
        if not self.complete():
            return b""
        if self._packed_marks is None:
            self._packed_marks = bytes(self._marks)
        return self._packed_marks

    # who owns it

    def ownership(self, shard: int) -> Ownership:
        """Owner and standby in this region, by the members known now."""
        return self._owners[shard]

    def cosigners(self, shard: int) -> tuple[PeerId, ...]:
        """Those that may sign for the owner of a shard, by the members known now."""
        eligible = self._eligible
        key = salted_key(self.run, self.region, shard, self._salted_by[shard] if self._salted_by else b"")
        return cosigners(key, self._owners[shard], {**eligible.reserve, **eligible.weights})

    @property
    def owners(self) -> tuple[Ownership, ...]:
        """`ownership` of all shards. The same object until that changes."""
        return self._owners

    def owned(self) -> list[int]:
        """The shards that this peer owns."""
        return self.owned_by(self.me)

    def owned_by(self, peer: PeerId) -> list[int]:
        """The shards that `peer` owns."""
        shards = self._owned_by.get(peer, [])
        return shards if self.complete() else [shard for shard in shards if shard in self.replicas]

    def refresh_owners(self) -> list[Replica]:
        """Look at the members again; the shards whose owner or standby is another one than before."""
        if self.spec.round.owner_rounds:
            self._note_seniors()
        eligible, salts = self.members.roster.eligible(self.region), self._salts()
        if eligible is self._eligible and salts == self._salted_by:
            return []
        self._eligible, self._salted_by = eligible, salts
        before, self._owners = self._owners, self.placement.owners(self.region, eligible.weights, eligible.reserve, salts)
        if self._owners == before:
            return []
        self._owned_by = {}
        for shard, owners in enumerate(self._owners):
            if owners.owner is not None:
                self._owned_by.setdefault(owners.owner, []).append(shard)
        now, changed = trio.current_time(), []
        for shard, replica in self.replicas.items():
            if self._owners[shard] != before[shard]:
                replica.life.handle(Owners(self._owners[shard]), now)
                replica.notify.notify()
                self.wake(replica)
                changed.append(replica)
        return changed

    def _salts(self) -> Salts:
        if not self.spec.round.owner_rounds or not self.complete():
            return ()
        return tuple(self.replicas[shard].chain.salt for shard in range(self.plan.n_shards))

    def _note_seniors(self) -> None:
        """Who may not own yet, by what the versions so far contain."""
        owner_rounds = self.spec.round.owner_rounds
        chains = [replica.chain for replica in self.replicas.values()]
        juniors = frozenset(
            peer
            for peer in self.members.roster.ready(self.region)
            if not is_senior(((chain.rounds(peer), chain.version) for chain in chains), owner_rounds)
        )
        self.members.note_juniors(juniors)

    def lives(self, peer: PeerId) -> bool:
        if peer == self.me:
            return True
        member = self.members.table.get(peer)
        return member is not None and member.liveness is not Liveness.DEAD

    def weightless(self) -> frozenset[PeerId]:
        """Those whose pushes count nothing, because they are proven to have lied as owners. Nobody where all are trusted."""
        return self.members.roster.excluded() if self.bounds_updates else frozenset()

    def trains_here(self, peer: PeerId) -> bool:
        member = self.members.table.get(peer)
        return member is not None and member.announcement.ready and member.liveness is not Liveness.DEAD

    def has_other_regions(self) -> bool:
        """Members of other regions are known."""
        return any(m.announcement.region != self.region for m in self.members.table.counted())

    def must_be_member(self, peer: PeerId) -> None:
        """Raises: RemoteProtocolError."""
        if not self.members.roster.is_known(peer):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")

    # what happens to it

    def wake(self, replica: Replica) -> None:
        """Something happened to it: its machines are to be asked what follows."""
        self._to_look_at[replica.shard] = None
        self.woken.set()

    def take_to_look_at(self) -> dict[int, None]:
        """The shards to which something happened since the last call."""
        taken, self._to_look_at = self._to_look_at, {}
        return taken

    def take_one_to_look_at(self, replica: Replica) -> bool:
        """Whether something happened to this shard since the last call of this or of `take_to_look_at`."""
        happened = self._to_look_at.pop(replica.shard, 0) is None
        if happened and not self._to_look_at:
            self.woken = trio.Event()
        return happened

    def advanced(self, replica: Replica, included: Sequence[Inclusion], *, followed: bool = False) -> None:
        """The shard has another version than before. Call it after the mailbox has got the bytes: what is settled earlier would
        let the training thread push before it has seen the version that contains its last push."""
        chain = replica.chain
        self._note_mark(replica)
        event = Advanced(chain.version, chain.newest(self.me), tuple(included), followed)
        replica.life.handle(event, trio.current_time())
        if replica.arrived:
            waiting = replica.life.owner.still_holds()
            replica.arrived = {peer: value for peer, value in replica.arrived.items() if peer in waiting}
        self.wake(replica)
        replica.notify.notify()

    def accept(self, replica: Replica, header: UpdateHeader, update: Update, made: Tensor | Shelved, norm: float) -> None:
        """The shard has a new version by an update that is `norm` long. The caller holds the lock."""
        is_provisional = self.keeps_provisional and self._owners[replica.shard].standby is not None
        if is_provisional:
            self._keep_earlier(replica, header)
        replica.norms.add(norm)
        replica.common = made
        salted = header.salt != replica.chain.salt
        agrees = replica.chain.agrees_on_standings(header)
        replica.chain.applied(header, update, is_provisional=is_provisional)
        replica.provisional.applied(header)
        replica.forget_final()
        self.updated.tell(AcceptedUpdate(replica, header, update, agrees))
        self.mailbox.post(replica.shard, header.version, made)
        self.advanced(replica, header.included, followed=header.owner != self.me)
        if self.spec.round.owner_rounds and (salted or header.shard == LOOKED_AT_SHARD):
            self.redealt.tell(None)
        for failure in header.failed:
            if failure.peer == self.me and failure.reason != LATE:
                replica.life.push.handle(push_events.Excluded(failure.reason), trio.current_time())
        self.round_log.note(header, header.version)

    def _keep_earlier(self, replica: Replica, header: UpdateHeader) -> None:
        """What is needed to take the next version back."""
        replica.earlier[replica.chain.version] = Earlier(replica.common, replica.norms.known())
        packed = replica.life.push.packed
        if packed is not None and any(one.peer == self.me and one.seq >= packed.seq for one in header.included):
            replica.own_pushes[header.version] = packed

    def taken_back(self, replica: Replica) -> None:
        """The shard is in an earlier version again. The caller holds the lock."""
        self._note_mark(replica)
        self.mailbox.post(replica.shard, replica.chain.version, replica.common)
        replica.life.handle(TakenBack(replica.chain.version), trio.current_time())
        waiting = replica.life.owner.still_holds()
        replica.arrived = {peer: value for peer, value in replica.arrived.items() if peer in waiting}
        self.wake(replica)
        replica.notify.notify()
        self.replaced.tell(replica)

    async def to_hold(self, made: Tensor) -> Tensor | Shelved:
        """What is held of a shard's new values."""
        return made if self.keep is in_memory else await self.compute(made.numel(), shelved, made, self.keep)

    async def shelved(self, update: Update, numel: int) -> Update:
        """The update, held as the shelf holds it, for the log."""
        return with_payload(update, await self.compute(numel, self._ctx.shelf.keep, update.payload))

    def claim_of(self, replica: Replica, packed: Packed) -> PushClaim:
        """What this peer signs of a contribution of its own."""
        body = packed.body
        return PushClaim(
            self.run, replica.shard, self.me, packed.version, packed.seq, packed.tokens, body.codec, body.digest,
            packed.steps,
        )  # fmt: skip

    async def compute(self, n_elements: int, fn: Callable[..., T], *args: object) -> T:
        """The result of `fn(*args)`, which is arithmetic on this many elements."""
        return fn(*args) if self.computes_at_once(n_elements) else await self._ctx.offload(fn, *args)

    def computes_at_once(self, n_elements: int) -> bool:
        """Whether `compute` does not wait."""
        return n_elements <= INLINE_ELEMENTS

    def _note_mark(self, replica: Replica) -> None:
        mark = mark_of(min(replica.chain.version, MAX_VERSION_IN_MARK), replica.chain.digest)
        self._packed_marks = None
        struct.pack_into(">II", self._marks, MARK_BYTES * replica.shard, mark.version, mark.prefix)
