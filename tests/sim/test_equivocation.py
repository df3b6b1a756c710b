"""An owner that tells two groups two things is found out, owns nothing any more, and all come to hold the same again."""

from typing import Any

import msgspec
import torch
import trio

from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Equivocation, Update, decode_header, decode_request, encode
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.inputs import payload_digest
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor.flatten import digest
from tests.sim.liar import Liar

ROUNDS = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=8)


class TwoFaced:
    """An owner that publishes to some members what it makes of the pushes, and to the others noise, as a chain of its own."""

    def __init__(self, owner: SimPeer, deceived: list[SimPeer]) -> None:
        self._owner = owner
        self._deceived = {peer.id for peer in deceived}
        self._references = {s: (r.chain.version, r.reference) for s, r in owner.engine.shards.replicas.items()}
        self._made: dict[tuple[int, int], Update] = {}
        self._request = owner.network.messenger.request
        owner.network.messenger.request = self._ask  # type: ignore[method-assign, assignment]
        owner.engine.shards.marks = lambda: b""  # its own marks would give it away at once

    async def _ask(self, to: PeerId, body: bytes, *how: Any, **more: Any) -> bytes:
        message = decode_request(body)
        if isinstance(message, Update) and to in self._deceived:
            body = encode(self._other(message))
        return await self._request(to, body, *how, **more)

    def _other(self, update: Update) -> Update:
        header = decode_header(update.header)
        key = (header.shard, header.version)
        if key not in self._made:
            version, reference = self._references[header.shard]
            if header.version != version + 1:
                return update
            codec = shard_codec(self._owner.engine.spec, header.shard, header.codec)
            payload = codec.encode(0.1 * torch.randn(reference.numel(), dtype=torch.float32, device="cpu"))
            made = reference - codec.decode(payload, reference.numel())
            named = payload_digest(payload)
            raw = encode(msgspec.structs.replace(header, base_digest=digest(reference), digest=digest(made), payload=named))
            self._made[key] = Update(raw, sign_header(raw, self._owner.network.identity), payload)
            self._references[header.shard] = (header.version, made)
        return self._made[key]


def owned_of(peer: SimPeer, viewed_by: SimPeer) -> list[int]:
    return viewed_by.engine.shards.states.owned_by(peer.id)


async def test_an_owner_that_tells_two_things_is_found_out_and_owns_nothing_any_more(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(30)
        two_faced = max(peers, key=lambda peer: len(owned_of(peer, peers[0])))
        others = [peer for peer in peers if peer is not two_faced]

        TwoFaced(two_faced, others[:2])
        await swarm.until(
            lambda: all(peer.engine.members.proofs.book.excluded() == {two_faced.id} for peer in others), 90, "found out by all"
        )
        await swarm.until(lambda: all(not owned_of(two_faced, peer) for peer in others), 5, "it owns nothing")
        await swarm.kill(two_faced.name)
        await trio.sleep(30)

        assert {e.fields["peer"] for peer in others for e in peer.events_named("owner.excluded")} == {two_faced.id}
        await swarm.settle()
        assert swarm.agree()


async def test_who_comes_later_is_shown_what_is_proven(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(10)
        shown = await evidence_against(b, a)
        a.engine.shards.evidence.take(shown)
        late = await swarm.add("c")

        await swarm.until(lambda: late.engine.members.proofs.book.excluded() == {b.id}, 20, "told")

        assert a.engine.members.proofs.book.excluded() == {b.id} and not owned_of(b, late)


WEIGHED = msgspec.structs.replace(ROUNDS, aggregation="norm-cap")
"""A run whose members do not all trust each other."""


async def test_the_pushes_of_a_culprit_count_nothing_and_nobody_waits_for_them(autojump_clock):
    async with Swarm(round=WEIGHED) as swarm:
        a, b, c = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        for peer in (a, c):
            peer.engine.shards.evidence.take(await evidence_against(b, a))
        await trio.sleep(5)
        before = [a.engine.shards.replicas[s].chain.version for s in range(2)]
        seqs = [a.engine.shards.replicas[s].chain.newest(b.id) for s in range(2)]
        await trio.sleep(20)

        after = [a.engine.shards.replicas[s].chain for s in range(2)]
        assert [chain.newest(b.id) for chain in after] == seqs, "no version has a push of it"
        assert min(chain.version - then for chain, then in zip(after, before, strict=True)) >= 2, "the others go on"
        assert "proven" in (b.local_trainer.last_failure or ""), "and it is told why"
        assert not b.events_named("push.refused"), "once, not with every push"
        await swarm.settle()
        assert swarm.agree(), "it follows all the same"


async def test_a_push_that_waits_when_its_member_is_proven_to_have_lied_is_left_out_with_the_reason(autojump_clock):
    async with Swarm(round=WEIGHED) as swarm:
        peers = a, b, c = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)

        def waits() -> Any:
            held = ((peer, r) for peer in (a, c) for r in peer.engine.shards.replicas.values() if b.id in r.arrived)
            return next(held, None)

        await swarm.until(lambda: waits() is not None, 20, "a push of it waits")
        owner, replica = waits()
        version = replica.chain.version
        owner.engine.shards.evidence.take(await evidence_against(b, a))
        await swarm.until(lambda: replica.chain.version > version, 20, "the next version")

        header = replica.chain.entry(version + 1).header
        assert b.id not in {i.peer for i in header.included} and header.included
        assert [f.reason for f in header.failed if f.peer == b.id and "proven" in f.reason]
        assert not any(e.fields["peer"] != b.id for peer in peers for e in peer.events_named("owner.excluded"))


async def test_where_all_members_are_trusted_a_culprit_owns_nothing_and_trains_on(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        a, b, c = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        for peer in (a, c):
            peer.engine.shards.evidence.take(await evidence_against(b, a))
        await trio.sleep(5)
        seq = a.engine.shards.replicas[0].chain.newest(b.id)
        await trio.sleep(10)

        assert a.engine.shards.replicas[0].chain.newest(b.id) > seq and not owned_of(b, a)


async def test_an_owner_that_goes_on_using_the_pushes_of_a_culprit_is_named_by_all(autojump_clock):
    async with Swarm(round=WEIGHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(20)
        accomplice = max(peers, key=lambda peer: len(owned_of(peer, peers[0])))
        culprit = next(peer for peer in peers if peer is not accomplice)
        others = [peer for peer in peers if peer not in (accomplice, culprit)]
        accomplice.engine.shards.evidence.take = lambda *_, **__: None  # it looks away

        others[0].engine.shards.evidence.take(await evidence_against(culprit, others[0]))

        await swarm.until(lambda: all(not owned_of(accomplice, peer) for peer in others), 90, "deposed")
        named = {e.fields["owner"] for peer in others for e in peer.events_named("owner.inconsistent")}
        assert named == {accomplice.id}


async def test_evidence_against_a_key_that_has_no_part_in_the_run_is_neither_kept_nor_passed_on(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(10)
        stranger = Liar(swarm, "no member")

        a.engine.shards.evidence.take(await evidence_against(stranger, a))

        assert not a.engine.members.proofs.book.excluded() and not a.events_named("owner.excluded")
        await trio.sleep(5)
        assert not b.engine.members.proofs.book.excluded()


async def test_members_that_were_cut_off_meanwhile_are_shown_it_when_they_are_back(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        peers = [await swarm.add(name) for name in "abcde"]
        await trio.sleep(10)
        away = peers[3:]
        wall = swarm.world.partition([peer.id for peer in away])
        await trio.sleep(15)

        peers[0].engine.shards.evidence.take(await evidence_against(peers[1], peers[0]))
        await trio.sleep(15)
        assert all(not peer.engine.members.proofs.book.excluded() for peer in away)
        swarm.world.heal(wall)

        told = {peers[1].id}
        await swarm.until(lambda: all(p.engine.members.proofs.book.excluded() == told for p in away), 60, "told")


async def evidence_against(culprit: SimPeer, at: SimPeer) -> Equivocation:
    """Two updates that `culprit` signs now."""
    from legion_p2p.core.evidence import equivocation

    replica = at.engine.shards.replicas[0]
    entry = replica.chain.last()
    assert entry is not None
    updates = []
    for i in range(2):
        made = msgspec.structs.replace(entry.header, owner=culprit.id, digest=bytes([i]) * len(entry.header.digest))
        raw = encode(made)
        updates.append(Update(raw, sign_header(raw, culprit.network.identity), b""))
    found = equivocation(*updates)
    assert found is not None
    return found


async def test_false_evidence_counts_against_who_shows_it(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(10)
        liar = Liar(swarm)
        await liar.become_member()
        true = await evidence_against(b, a)
        forged = msgspec.structs.replace(true, second=msgspec.structs.replace(true.second, signature=b"s" * 64))

        kinds = {await liar.refused(a, forged) for _ in range(3)}

        assert kinds == {"SignatureError"} and not a.engine.members.proofs.book.excluded()
        for _ in range(20):
            await liar.refused(a, forged) if not liar.is_out(a) else None
        assert liar.is_out(a)


async def test_an_owner_that_leaves_out_what_it_took_owns_nothing_any_more(autojump_clock):
    """It signs receipts for all pushes, and drops those of one member. The others see that their versions go on."""
    watched = msgspec.structs.replace(ROUNDS, verify="late")
    async with Swarm(round=watched) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(30)
        assert not any(peer.engine.members.proofs.book.excluded() for peer in peers), "nobody is accused of what it did not do"
        unfair = max(peers, key=lambda peer: len(owned_of(peer, peers[0])))
        victim = next(peer for peer in peers if peer is not unfair)
        others = [peer for peer in peers if peer is not unfair]

        for replica in unfair.engine.shards.replicas.values():
            leave_out(replica, victim.id)
        await swarm.until(
            lambda: all(peer.engine.members.proofs.book.excluded() == {unfair.id} for peer in others), 30, "found out by all"
        )
        await swarm.until(lambda: all(not owned_of(unfair, peer) for peer in others), 5, "it owns nothing")

        (error,) = victim.events_named("owner.excluded")
        assert error.fields["peer"] == unfair.id
        await swarm.settle()
        assert swarm.agree()


def leave_out(replica: Any, victim: PeerId) -> None:
    """From now on this owner takes the pushes of `victim`, and forgets them."""
    close = replica.life.owner.close

    def unfair(now: float) -> Any:
        closed = close(now)
        if closed is None:
            return None
        replica.arrived.pop(victim, None)
        return msgspec.structs.replace(closed, contributions=tuple(c for c in closed.contributions if c.peer != victim))

    replica.life.owner.close = unfair
