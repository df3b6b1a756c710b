"""Evidence against owners: what this peer has found goes to others, and what they show is checked. See core/evidence.py."""

import math
import random
from typing import Any

import trio

from legion_p2p.core.account import Breaks, CountVerdict, accuse, check_accusation, header_digest
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.evidence import EXCLUDED_S, culprit, open_header, reason_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Changed, Liveness
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES
from legion_p2p.core.observers import Observers
from legion_p2p.core.wire import Done, Evidence, Miscount, Request, SignedHeader, UpdateHeader
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.input_exchange import InputExchange
from legion_p2p.services.shards.inputs import RoundInputs
from legion_p2p.services.shards.recount import recount
from legion_p2p.services.shards.states import AcceptedUpdate, ShardStates

N_TOLD = 8  # members that are told of new evidence; each tells as many
N_SHOWN = 8  # pieces of evidence that a member hears of when it comes
TELL_S = 10.0
TIMES_TOLD = 3
AGAIN_S = 10.0  # longer than it takes until one that is cut off is taken for dead
JUDGE_EVERY_S = 600.0  # for one accuser: to judge costs as much as the pushes of a round
MAX_ACCUSERS = 256  # of which that is remembered: those that may own, or most of them
KNOWN_AFTER_S = 30.0  # from then on an owner that has been shown evidence goes by it, also in the round that was open
GOES_BY_S = EXCLUDED_S / 2  # by evidence that is older an honest owner may go no longer: it may have known it earlier
MAX_COMPLAINTS = 256  # owners and culprits
MAX_ASIDE = 16  # pieces of evidence against peers of which nothing is known: a newcomer hears of some before it knows all members


class EvidenceService:
    """Takes evidence in, and passes it on."""

    def __init__(self, ctx: PeerContext, states: ShardStates, exchange: InputExchange) -> None:
        self._events = ctx.events
        self._identity = ctx.identity
        self._rounds = ctx.spec.round
        self._exchange = exchange
        self._judging = trio.CapacityLimiter(1)
        self._judged_at: BoundedMap[PeerId, float] = BoundedMap(MAX_ACCUSERS)
        self._rng: random.Random = ctx.rng
        self._states = states
        self._members = states.members
        self._members.member_changed.add(self._on_member_changed)
        self.ignored: Observers[PeerId] = Observers()
        """Told of an owner that goes on using the pushes of members that are proven to have lied."""
        self._aside: BoundedMap[PeerId, Evidence] = BoundedMap(MAX_ASIDE)
        self._breaks = Breaks()
        self._told_at: BoundedMap[tuple[PeerId, PeerId], float] = BoundedMap(MAX_COMPLAINTS)
        """By owner and culprit: when the owner had been shown the evidence."""
        states.updated.add(self._on_update)
        self.proven_wrong: Observers[UpdateHeader] = Observers()
        """Told of each update that is proven not to be what it was made of, before its owner is excluded."""

    async def on_evidence(self, peer: PeerId, message: Evidence) -> Done:
        """A member shows evidence. Raises: DecodeError, to be sent back: what proves nothing is its own fault."""
        self.take(message, shown_by=peer)
        return Done()

    def accuse(self, update: SignedHeader, inputs: RoundInputs, reason: str) -> None:
        """This peer has computed an update again, and its owner is wrong."""
        self._events.emit("owner.miscounted", shard=inputs.header.shard, version=inputs.header.version,
                          owner=inputs.header.owner, reason=reason)  # fmt: skip
        if len(update.header) <= MAX_SHOWN_HEADER_BYTES:
            self._exchange.proofs[header_digest(update.header)] = inputs
            self.proven_wrong.tell(inputs.header)
            self._convict(PeerId(inputs.header.owner), accuse(self._states.run, update, self._identity), None)

    async def on_miscount(self, peer: PeerId, message: Miscount) -> Done:
        """A member accuses an owner. What proves something are the inputs, which that member has to give.

        Raises: LegionError, to be sent back.
        """
        header = open_header(message.update.header, message.update.signature)
        check_accusation(message)
        if header.run != self._states.run or header.account is None or header.owner == message.accuser:
            raise DecodeError("an accusation that cannot be right")
        self._states.replica(header.shard)
        accuser, now = PeerId(message.accuser), trio.current_time()
        if {PeerId(header.owner), accuser} & self._members.proofs.book.excluded() or self._states.nursery is None:
            return Done()
        if not self._matters(PeerId(header.owner)):
            return Done()
        if accuser not in self._members.roster.eligible(self._states.region).weights:
            raise NetworkError(f"{accuser} has no ownership to answer with for an accusation")
        if now - self._judged_at.get(accuser, -JUDGE_EVERY_S) < JUDGE_EVERY_S:
            return Done()
        self._judged_at[accuser] = now
        self._states.nursery.start_soon(self._judge, peer, message, header)
        return Done()

    async def _judge(self, peer: PeerId, message: Miscount, header: UpdateHeader) -> None:
        """Compute the update again, from inputs that `peer` has."""
        assert header.account is not None
        states, replica = self._states, self._states.replica(header.shard)
        async with self._judging:
            try:
                inputs = await self._exchange.fetch(peer, message.update.header, header, None)
            except NetworkError as failed:
                self._events.emit("accusation.unproven", shard=header.shard, peer=peer, reason=str(failed))
                self._judged_at.pop(PeerId(message.accuser), None)  # another member may have the inputs
                return
            found = await states.compute(
                replica.numel * max(1, len(inputs.pushes)), recount, inputs, header.account, self._rounds,
                states.bound_codec_of(replica), replica.numel,
            )  # fmt: skip
        if found.finding is not CountVerdict.UNCLEAR:
            self._exchange.proofs[header_digest(message.update.header)] = inputs
            if found.finding is CountVerdict.WRONG:
                self.proven_wrong.tell(header)
            self._convict(PeerId(header.owner if found.finding is CountVerdict.WRONG else message.accuser), message, peer)

    def _convict(self, culprit: PeerId, message: Miscount, shown_by: PeerId | None) -> None:
        if self._members.proofs.convict(culprit, message):
            self._pass_on(culprit, message, shown_by, reason_of(message, by_owner=culprit != message.accuser))

    def take(self, evidence: Evidence | None, shown_by: PeerId | None = None) -> None:
        """Check it, and tell others where it is news. None: nothing. Raises: DecodeError, where it proves nothing."""
        if evidence is None:
            return
        against = culprit(evidence)
        if not self._matters(against):
            self._aside[against] = evidence
        elif self._members.proofs.prove(evidence) is not None:
            self._pass_on(against, evidence, shown_by, reason_of(evidence))

    def _matters(self, peer: PeerId) -> bool:
        """Keys cost nothing: evidence against one that has no part in the run does not count, and is not passed on."""
        replicas = self._states.replicas.values()
        return self._members.roster.is_known(peer) or any(replica.chain.newest(peer) >= 0 for replica in replicas)

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        """An owner that uses pushes of culprits is shown the evidence. One that goes on is named to others."""
        weightless, owner = self._states.weightless(), PeerId(accepted.header.owner)
        if not weightless or owner == self._states.me:
            return
        now = trio.current_time()
        for one in accepted.header.included:
            peer = PeerId(one.peer)
            if peer not in weightless:
                continue
            evidence = self._members.proofs.book.proof_against(peer, now, GOES_BY_S)
            told_at = self._told_at.get((owner, peer))
            if evidence is None:
                continue
            if told_at is None:
                self._told_at[owner, peer] = math.inf
                self._start_showing(owner, peer, evidence)
            elif now - told_at > KNOWN_AFTER_S and self._breaks.add(owner):
                self.ignored.tell(owner)

    def _start_showing(self, owner: PeerId, peer: PeerId, evidence: Evidence) -> None:
        if self._states.nursery is not None:
            self._states.nursery.start_soon(self._show_to_owner, owner, peer, evidence)

    async def _show_to_owner(self, owner: PeerId, peer: PeerId, evidence: Evidence) -> None:
        if await self._tell(owner, evidence):
            self._told_at[owner, peer] = trio.current_time()
        else:
            self._told_at.pop((owner, peer), None)

    def _pass_on(self, culprit: PeerId, evidence: Evidence, shown_by: PeerId | None, reason: str) -> None:
        whom = "this peer" if culprit == self._states.me else culprit
        self._events.error(
            "owner.excluded", f"{whom} {reason}: it owns nothing for a day, and its pushes count nothing", peer=culprit
        )
        others = [m.peer_id for m in self._members.table.counted() if m.peer_id not in (shown_by, culprit)]
        told = self._rng.sample(others, min(N_TOLD, len(others)))
        for peer in told if culprit == self._states.me else (culprit, *told):  # one that was unlucky has to stop owning, too
            self._show(peer, evidence)

    def _on_member_changed(self, change: Changed) -> None:
        if change.before is None:
            self.take(self._aside.pop(change.peer_id, None))
        if change.before in (None, Liveness.DEAD) and change.after not in (None, Liveness.DEAD):  # it may have heard of none
            for evidence in self._members.proofs.book.newest(N_SHOWN):
                self._show(change.peer_id, evidence)

    def _show(self, peer: PeerId, evidence: Evidence) -> None:
        if self._states.nursery is not None:
            self._states.nursery.start_soon(self._tell, peer, evidence)

    async def _tell(self, peer: PeerId, evidence: Request[Any]) -> bool:
        """Whether it has taken note."""
        for _ in range(TIMES_TOLD):
            try:
                await self._states.rpc.ask(peer, evidence, within_s=TELL_S)
            except NetworkError:
                await trio.sleep(AGAIN_S)  # others tell it too, unless all of them are cut off from it
            else:
                return True
            if not self._states.lives(peer):
                break  # it is shown again when it is back
        return False
