"""Between an owner and its members: collecting pushes, closing rounds, taking over. Updates are sent by forwarder.py.

Decided in core/shard/owner.py and core/round.py.
"""

import dataclasses
import random
from typing import NamedTuple

import msgspec
import trio

from legion_p2p.core.account import check_push, header_digest
from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.messages.shards import MAX_FAILED_NAMED
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.receipts import sign_receipt
from legion_p2p.core.round import Closed, Contribution, Verdict
from legion_p2p.core.seniority import salt_after
from legion_p2p.core.shard import follower_events, owner, push_events
from legion_p2p.core.shard.owner import survivors_to_ask
from legion_p2p.core.shard.push_events import Packed
from legion_p2p.core.wire import (
    MAX_COUNT,
    MAX_INCLUDED,
    Failure,
    Inclusion,
    NotOwner,
    Push,
    PushClaim,
    Pushed,
    Receipt,
    Update,
    UpdateHeader,
    encode_checked,
)
from legion_p2p.errors import CodecError, DecodeError, NetworkError, NotCountedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.catch_up import CatchUpService
from legion_p2p.services.shards.cosigner import CosignService
from legion_p2p.services.shards.forwarder import ForwardService
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush, payload_digest
from legion_p2p.services.shards.network_watch import NetworkWatch
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.recount import account_of
from legion_p2p.services.shards.replica import Body, Combined, Replica, combine_arrived
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.services.shards.taking_back import TakeBackService
from legion_p2p.services.shards.witness import StandbyWatch
from legion_p2p.tensor.compact import compacted, expanded
from legion_p2p.tensor.encoded import Payload
from legion_p2p.tensor.robust.standing import NEWCOMER

PROVEN = "its pushes count nothing, because it is proven to have lied as an owner"
TAIL_S = 2.0  # to collect what a dead owner published last, before going on from it


class Watchers(NamedTuple):
    """What watches owners: this peer as one, and others."""

    witness: StandbyWatch
    cosigner: CosignService
    taking_back: TakeBackService
    networks: NetworkWatch


class OwnerService:
    """Owns the shards that rendezvous gives to this peer."""

    def __init__(
        self,
        ctx: PeerContext,
        states: ShardStates,
        news: ShardNews,
        catch_up: CatchUpService,
        forwarder: ForwardService,
        watchers: Watchers,
    ) -> None:
        self._identity: Identity = ctx.identity
        self._events = ctx.events
        self._rng: random.Random = ctx.rng
        self._rounds = ctx.spec.round
        self._states = states
        self._news = news
        self._catch_up = catch_up
        self._forwarder = forwarder
        self._witness = watchers.witness
        self._cosigner = watchers.cosigner
        self._taking_back = watchers.taking_back
        self._networks = watchers.networks

    # taking over

    async def claim(self, replica: Replica) -> None:
        """The shard is ours: fetch what the owner before us made last, and open a round."""
        states = self._states
        before = replica.chain.owner
        if before is not None and before != states.me:
            if states.lives(before) and not states.members.roster.is_deposed(before):
                # Its view may lag behind ours: our announcement tells it to stop, and then its word is the last one.
                await states.members.exchange_with(before)
                await self._catch_up.fetch_patiently(replica, before)
            else:
                await self._recover_tail(replica)
                is_deposed = states.members.roster.is_deposed(before)
                was_held_up = is_deposed or self._witness.was_shown_nothing(replica, before)
                await self._taking_back.before_taking_over(replica, before, was_held_up=was_held_up)
                await self._witness.inherit(replica, before)
        await self._catch_up_with_former(replica)
        self._tell(replica, owner.Claimed())
        if replica.round is not None:
            self._events.emit("shard.owned", shard=replica.shard, version=replica.chain.version)
            self._news.look_at(replica)
            replica.notify.notify()

    async def _catch_up_with_former(self, replica: Replica) -> None:
        """The present standby owned the shard before this peer came. This peer may have been behind, and have the shard from
        elsewhere."""
        former = self._states.ownership(replica.shard).standby
        if former is None:
            return
        await self._news.hear(replica, [former])
        if not self._news.is_said_to_be_ahead(replica, former):
            return
        if former != replica.chain.owner:
            await self._states.members.exchange_with(former)
        await self._catch_up.fetch_patiently(replica, former, trusted=True)

    async def _recover_tail(self, replica: Replica) -> None:
        """The owner before us is dead. What it published last may have reached others only."""
        states = self._states
        others = [peer for peer in states.members.roster.ready(states.region) if peer != states.me]
        await self._news.hear(replica, others)
        ahead = [peer for peer in others if self._news.is_said_to_be_ahead(replica, peer)]
        ahead, rest = survivors_to_ask(ahead, [peer for peer in others if peer not in ahead], self._rng)
        update_bytes = states.codec_of(replica, states.update_codec).bits_per_element * replica.numel / 8
        update_s = TAIL_S + TRANSFER_DEADLINE_S * update_bytes / (4 * MAX_SHARD_ELEMENTS)
        async with trio.open_nursery() as nursery:
            for survivor in ahead:
                nursery.start_soon(self._ask_survivor, replica, survivor, update_s)
            for survivor in rest:
                nursery.start_soon(self._ask_survivor, replica, survivor, TAIL_S)

    async def _ask_survivor(self, replica: Replica, survivor: PeerId, within_s: float) -> None:
        with trio.move_on_after(within_s):
            await self._catch_up.fetch_patiently(replica, survivor, log_only=True, within_s=within_s)

    # collecting

    async def on_push(self, peer: PeerId, message: Push) -> Pushed | NotOwner:
        """Take a contribution into the round. Raises: LegionError, to be sent back."""
        states, replica = self._states, self._states.replica(message.shard)
        states.must_be_member(peer)
        if peer in states.weightless():
            raise NotCountedError(f"push of {peer}: {PROVEN}")
        if message.codec not in self._rounds.allowed_push_codecs():
            allowed = ", ".join(self._rounds.allowed_push_codecs())
            raise CodecError(f"push of {peer} in codec {message.codec!r}, this run allows {allowed}")
        if not replica.chain.is_plausible(peer, message.seq):
            raise DecodeError(f"contribution number {message.seq} of {peer}, which has made far fewer")
        if replica.chain.includes(peer, message.seq):
            return Pushed(replica.chain.version, True)
        if replica.round is None:
            return self._not_owner(replica)
        payload = Payload(states.codec_of(replica, message.codec), message.payload, replica.numel)
        try:
            await states.compute(replica.numel, payload)
        except CodecError as bad:
            raise CodecError(f"push of {peer}: {bad}") from bad
        signed = await self._signed(replica, peer, message)
        now = trio.current_time()
        contribution = Contribution(peer, message.seq, message.version, message.tokens, now, max(1, message.local_steps))
        arrived = Body(message.codec, message.payload, payload, signed=signed)
        async with replica.lock:
            verdict = self._enter(replica, contribution, arrived)
            answer = Pushed(replica.chain.version, True) if verdict is Verdict.INCLUDED else self._taken(replica, peer, message)
        if verdict is None:
            return self._not_owner(replica)
        if message.version > replica.chain.version:
            replica.life.follower.handle(follower_events.Shown(peer), trio.current_time())
            states.wake(replica)
        return answer

    async def _signed(self, replica: Replica, peer: PeerId, message: Push) -> SignedPush | None:
        """The push as its member signed it. Raises: SignatureError."""
        if self._rounds.verify == "none":
            return None
        digest = await self._states.compute(replica.numel, payload_digest, message.payload)
        claim = PushClaim(
            self._states.run, replica.shard, peer, message.version, message.seq, message.tokens, message.codec, digest,
            message.local_steps,
        )  # fmt: skip
        check_push(claim, message.signature)
        return SignedPush(claim, message.signature, message.payload)

    def _taken(self, replica: Replica, peer: PeerId, message: Push) -> Pushed:
        """The contribution waits for the next version."""
        chain, states = replica.chain, self._states
        if self._rounds.verify == "none":
            return Pushed(chain.version, False)
        receipt = Receipt(states.run, replica.shard, states.me, peer, message.seq, chain.version, chain.digest)
        return Pushed(chain.version, False, chain.digest, sign_receipt(receipt, self._identity))

    def submit(self, replica: Replica, packed: Packed) -> bool:
        """Take this peer's own contribution into the round; False: it does not own the shard."""
        steps = max(1, packed.steps)
        contribution = Contribution(self._states.me, packed.seq, packed.version, packed.tokens, trio.current_time(), steps)
        body = packed.body
        if body.digest:
            signed = SignedPush.by(self._identity, self._states.claim_of(replica, packed), body.payload)
            body = dataclasses.replace(body, signed=signed)
        return self._enter(replica, contribution, body) is not None

    def _enter(self, replica: Replica, contribution: Contribution, arrived: Body) -> Verdict | None:
        verdict = replica.life.owner.push(contribution, trio.current_time())
        if verdict is Verdict.ACCEPTED:
            replica.arrived[contribution.peer] = arrived
            self._states.wake(replica)
        return verdict

    def _not_owner(self, replica: Replica) -> NotOwner:
        states = self._states
        other = states.ownership(replica.shard).owner
        signed = None if other is None else states.members.signed_of(other)
        if other is None or signed is None or other == states.me:
            raise NetworkError(f"shard {replica.shard} has no owner that I know of at the moment")
        return NotOwner(other, signed)

    # closing

    async def close(self, replica: Replica) -> None:
        """Combine what the round has collected, and publish the update."""
        states = self._states
        if not await self._cosigner.may_make_another(replica):
            return
        async with replica.lock:
            closed = replica.life.owner.close(trio.current_time())
            if closed is None:
                return
            closed = self._without_culprits(replica, closed)
            if not closed.contributions:
                return
            closed = self._with_networks(self._with_standings(replica, closed))
            arrived = {c.peer: replica.arrived.pop(c.peer) for c in closed.contributions}
            is_warming_up = any(one.codec == self._rounds.warmup_codec for one in arrived.values())
            name = self._rounds.warmup_codec if is_warming_up else states.update_codec
            result = await states.compute(
                replica.numel * len(arrived),
                combine_arrived,
                replica.reference,
                expanded(replica.owner_kept),
                replica.outer,
                closed,
                arrived,
                self._rounds,
                states.codec_of(replica, name),
                replica.norms.owners_longest if self._states.bounds_updates else None,
            )
            header = self._header(replica, closed, result, name)
            tree = self._forwarder.tree_of(replica, header.version, states.me, len(result.payload or b""))
            before = replica.owner_residual, replica.outer
            if result.payload is None:
                await self._keep_state(replica, result)
                states.round_log.note(header, replica.chain.version)
                for peer, reason in result.refused:  # the next version names them
                    replica.life.owner.refused(PeerId(peer), reason)
                replica.life.push.handle(push_events.Excluded("the owner found it unusable"), trio.current_time())
                return
            signed = [one.signed for one in arrived.values() if one.signed is not None]
            if self._rounds.verify != "none":
                account = await states.compute(replica.numel, account_of, *before, signed, result, result.payload)
                network_of = {c.peer: c.network for c in closed.contributions}
                networks = tuple(network_of[PeerId(i.peer)] for i in header.included)
                if any(networks):
                    account = msgspec.structs.replace(account, networks=networks)
                if result.standings:
                    at_first = {c.peer: c.standing for c in closed.contributions}
                    standings = tuple(_known(at_first[PeerId(i.peer)]) for i in header.included)
                    account = msgspec.structs.replace(account, standings=standings)
                account = msgspec.structs.replace(account, cosigned=self._cosigner.to_show(replica))
                header = msgspec.structs.replace(header, account=account)
            raw = encode_checked(header)
            if header.account is not None:
                replica.inputs[header_digest(raw)] = RoundInputs(header, *before, signed, result.payload)
            n_states = 1 if self._rounds.outer == "average" else 3
            n_input_bytes = sum(len(push.payload) for push in signed) + 4 * replica.numel * n_states
            made_here = Update(raw, sign_header(raw, self._identity), result.payload)
            update = await self._cosigner.signed_by_another(replica, made_here, n_input_bytes)
            if update is None:
                self._put_back(replica, closed, arrived)
                return
            await self._keep_state(replica, result)
            replica.life.owner.made_tokens += header.tokens
            made = await states.to_hold(result.reference)
            shelved = await states.shelved(update, replica.numel)
            self._cosigner.shown(replica, header)
            states.accept(replica, header, shelved, made, result.norm)
            replica.forget_inputs()
        self._cosigner.published(replica)
        self._forwarder.publish(replica, update, header.version, tree)

    def _without_culprits(self, replica: Replica, closed: Closed) -> Closed:
        """The round without the pushes of members that were proven to have lied after they had pushed; the next version says
        so, this one or a later."""
        culprits = [c.peer for c in closed.contributions if c.peer in self._states.weightless()]
        if not culprits:
            return closed
        kept = tuple(c for c in closed.contributions if c.peer not in culprits)
        for peer in culprits:
            replica.arrived.pop(peer, None)
            if not kept:
                replica.life.owner.refused(peer, PROVEN)
        failed = tuple(Failure(peer, PROVEN) for peer in culprits)
        return msgspec.structs.replace(closed, contributions=kept, failed=failed + closed.failed)

    def _with_standings(self, replica: Replica, closed: Closed) -> Closed:
        """The round as it is combined: what is known of each member from earlier ones."""
        if self._rounds.screening == "none":
            return closed
        known = [msgspec.structs.replace(c, standing=replica.chain.standing(c.peer)) for c in closed.contributions]
        return msgspec.structs.replace(closed, contributions=tuple(known))

    def _with_networks(self, closed: Closed) -> Closed:
        """The round as it is combined: what this peer sees of where its pushes came from."""
        if not self._networks.is_on:
            return closed
        numbers = self._networks.numbers([c.peer for c in closed.contributions])
        seen = [msgspec.structs.replace(c, network=n) for c, n in zip(closed.contributions, numbers, strict=True)]
        return msgspec.structs.replace(closed, contributions=tuple(seen))

    async def _keep_state(self, replica: Replica, result: Combined) -> None:
        """What only the owner has after the round."""
        replica.owner_kept, replica.outer = result.owner_residual, result.outer
        # What two copies give each other must not change on the way, and others compute what a watched owner has.
        if self._rounds.verify == "none" and not self._states.has_other_regions():
            replica.owner_kept = await self._states.compute(replica.numel, compacted, result.owner_residual, self._states.keep)

    def _put_back(self, replica: Replica, closed: Closed, arrived: dict[PeerId, Body]) -> None:
        """No version came of the round, because another peer owns the shard now: what waits for one is as it was."""
        for contribution in closed.contributions:
            self._enter(replica, contribution, arrived[contribution.peer])

    def _header(self, replica: Replica, closed: Closed, result: Combined, codec_name: str) -> UpdateHeader:
        used = tuple(c for c in closed.contributions if c.peer in result.used)
        chain, owner_rounds = replica.chain, self._rounds.owner_rounds
        standings = dict(zip(result.used, result.standings, strict=False))
        rounds = {c.peer: chain.rounds(c.peer) + 1 for c in used} if owner_rounds else {}
        refused = tuple(Failure(peer, reason[:200]) for peer, reason in result.refused)
        return UpdateHeader(
            self._states.run,
            replica.shard,
            chain.version + 1,
            chain.digest,
            result.digest or chain.digest,
            self._states.me,
            codec_name,
            tuple(Inclusion(c.peer, c.seq, standings.get(c.peer), rounds.get(c.peer)) for c in used),
            (refused + closed.failed)[:MAX_FAILED_NAMED],
            min(closed.expected, MAX_INCLUDED),
            min(sum(c.tokens for c in used), MAX_COUNT),
            agreement=result.agreement,
            payload=b"" if result.payload is None else payload_digest(result.payload),
            salt=salt_after(chain.version, chain.digest, chain.salt, owner_rounds),
        )

    def _tell(self, replica: Replica, event: owner.Event) -> None:
        replica.life.owner.handle(event, trio.current_time())
        self._states.wake(replica)


def _known(standing: int | None) -> int:
    return NEWCOMER if standing is None else standing
