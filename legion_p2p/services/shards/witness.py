"""The standby of a shard watches its owner: it computes each update again, from the inputs that the owner accounts for.

    the update is what its inputs give  -> nothing more
    it is another one                   -> evidence: the owner owns nothing any more, and this peer takes over (core/account.py)
    the owner does not account for it   -> said in an event; it proves nothing

It follows what the owner should have of the shard (residual, state of the outer optimizer), and goes on from that when it takes
the shard over from an owner that is dead, stalled or proven wrong. So an owner that dies takes no residual with it. What a wrong
update did is taken back (taking_back.py); where it is final already, by the next right ones, as error feedback does with whatever
a codec has changed.
"""

import random
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple

import trio
from torch import Tensor

from legion_p2p.core.account import Breaks, Continuity, CountVerdict, header_digest
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.evidence import SignedHeader
from legion_p2p.core.messages.shards import UpdateHeader
from legion_p2p.core.observers import Observers
from legion_p2p.core.shard.provisional import WINDOW
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.evidence import EvidenceService
from legion_p2p.services.shards.input_exchange import InputExchange
from legion_p2p.services.shards.inputs import state_digest
from legion_p2p.services.shards.recount import Recount, recount
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import AcceptedUpdate, ShardStates
from legion_p2p.tensor.outer import OuterState

AUDITED = 1 / 16  # of the updates, by members that do not stand by: as much more as the standby's copy costs, and all it fetches
MAX_FOLLOWED = WINDOW + 1  # versions of a shard after which is known what its owner should have: those that are not final
MAX_CHECKED = 2 * WINDOW  # updates of a shard of which is remembered what was found: owners ask again where an answer is lost
MAX_BACKLOG = 4  # updates of a shard that wait to be computed again; one that is slower than its owner leaves some out


@dataclass(frozen=True, eq=False)
class Followed:
    """What the owner of a shard should have."""

    owner: str
    version: int
    residual: Tensor | None
    outer: OuterState
    digest: bytes
    contradicted: bool
    """The owner contradicts it without a possible reason."""


class Checked(NamedTuple):
    """What a second computation has found."""

    finding: CountVerdict
    reason: str


class _Job(NamedTuple):
    accepted: AcceptedUpdate
    breaks: bool


class StandbyWatch:
    """What this peer does for the shards that it stands by for."""

    def __init__(self, ctx: PeerContext, states: ShardStates, evidence: EvidenceService, exchange: InputExchange) -> None:
        self.broken: Observers[PeerId] = Observers()
        """Told of an owner that begins rounds with something else than it had, too often."""
        self._events = ctx.events
        self._rounds = ctx.spec.round
        self._rng: random.Random = ctx.rng
        self._states = states
        self._evidence = evidence
        self._exchange = exchange
        self._breaks = Breaks()
        self._continuity: dict[int, Continuity] = {}
        self._followed: dict[int, list[Followed]] = {}
        """Of each shard after each of the last versions: the newest may be taken back."""
        self._jobs: dict[int, deque[_Job]] = {}
        self._computing: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        """Of each shard one update at a time."""
        self._checked: dict[int, BoundedMap[bytes, Checked]] = {}
        """Of the last updates of each shard that were computed again, by `header_digest`."""
        self._not_shown: dict[int, tuple[PeerId, int]] = {}
        """Of each shard the last update that was not accounted for: its owner, and its version."""
        states.updated.add(self._on_update)

    async def inherit(self, replica: Replica, former: PeerId) -> None:
        """This peer owns the shard from now on, and `former` will not hand it over: go on with what it should have."""
        async with replica.lock:
            followed = self._followed_at(replica.shard, former, replica.chain.version)
            self._followed.pop(replica.shard, None)
            if followed is None:
                return
            if replica.owner_residual is None:
                replica.owner_residual, replica.outer = followed.residual, followed.outer
                replica.inherited = former, followed.version

    def was_shown_nothing(self, replica: Replica, owner: PeerId) -> bool:
        """Whether the owner did not show what a version was made of that may be taken back now."""
        named, version = self._not_shown.get(replica.shard, (None, 0))
        return named == owner and version > replica.provisional.final

    def _followed_at(self, shard: int, owner: str, version: int) -> Followed | None:
        return next((one for one in self._followed.get(shard, ()) if (one.owner, one.version) == (owner, version)), None)

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        header, states = accepted.header, self._states
        if header.account is None:
            return
        owner, shard = PeerId(header.owner), header.shard
        is_broken = self._continuity.setdefault(shard, Continuity()).breaks(owner, header.version, header.account)
        is_broken = (is_broken and not states.has_other_regions()) or not accepted.agrees
        if is_broken and self._breaks.add(owner):
            self.broken.tell(owner)
        if header_digest(accepted.update.header) in self._checked.get(shard, ()):
            return  # it was asked to before it came here
        owners = states.ownership(shard)
        stands_by = owners.standby == states.me and owners.owner == owner
        if not stands_by:
            self._followed.pop(shard, None)
        if states.nursery is None or not (stands_by or self._audits(owner)):
            return
        jobs = self._jobs.get(shard)
        if jobs is None:
            self._jobs[shard] = jobs = deque(maxlen=MAX_BACKLOG)
            states.nursery.start_soon(self._work, accepted.replica, jobs)
        jobs.append(_Job(accepted, is_broken))

    def _audits(self, owner: PeerId) -> bool:
        """Whether this peer computes an update again though it does not stand by for its owner. Chance decides, which nobody
        foresees, so that an owner and its standby in league cannot know which of their updates are looked at."""
        states = self._states
        n_others = sum(peer != owner for peer in states.members.roster.ready(states.region))
        return owner != states.me and n_others > 1 and self._rng.random() < AUDITED / n_others

    async def _work(self, replica: Replica, jobs: deque[_Job]) -> None:
        """Compute updates of one shard again, one after the other, until none is left."""
        try:
            while jobs:
                job = jobs.popleft()
                try:
                    update = job.accepted.update
                    shown = SignedHeader(update.header, update.signature)
                    await self.check(replica, job.accepted.header, shown, breaks=job.breaks)
                except NetworkError as failed:
                    header = job.accepted.header
                    self._not_shown[replica.shard] = PeerId(header.owner), header.version
                    self._events.emit(
                        "owner.unaccounted",
                        shard=header.shard,
                        version=header.version,
                        owner=header.owner,
                        reason=str(failed),
                    )
        finally:
            del self._jobs[replica.shard]

    async def check(self, replica: Replica, header: UpdateHeader, update: SignedHeader, *, breaks: bool = False) -> Checked:
        """Compute an update again, once. Raises: NetworkError, where the owner does not account for it."""
        digest = header_digest(update.header)
        async with self._computing[replica.shard]:
            checked = self._checked.setdefault(replica.shard, BoundedMap(MAX_CHECKED))
            if digest not in checked:
                found = await self._check(replica, header, update, breaks=breaks)
                checked[digest] = Checked(found.finding, found.reason)
            return checked[digest]

    async def _check(self, replica: Replica, header: UpdateHeader, update: SignedHeader, *, breaks: bool) -> Recount:
        states = self._states
        assert header.account is not None
        followed = self._followed_at(replica.shard, header.owner, header.version - 1)
        known = true = None
        if followed is not None and followed.digest == header.account.before:
            known = followed.residual, followed.outer
        elif followed is not None and (breaks or followed.contradicted):
            true = followed.residual, followed.outer
        inputs = await self._exchange.fetch(PeerId(header.owner), update.header, header, known)
        codec_of = self._states.bound_codec_of(replica)
        found = await states.compute(
            replica.numel * max(1, len(inputs.pushes)),
            recount,
            inputs,
            header.account,
            self._rounds,
            codec_of,
            replica.numel,
            true,
        )
        digest = await states.compute(replica.numel, state_digest, found.residual, found.outer)
        is_wrong = found.finding is CountVerdict.WRONG
        after = Followed(header.owner, header.version, found.residual, found.outer, digest, is_wrong or true is not None)
        final, before = replica.provisional.final, self._followed.get(replica.shard, ())
        kept = [one for one in before if final <= one.version < header.version]
        self._followed[replica.shard] = [*kept, after][-MAX_FOLLOWED:]
        if is_wrong:
            self._evidence.accuse(update, inputs, found.reason)
        return found
