"""Owners that are watched: what they made wrongly is found out, proven, and taken back."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.account import CountVerdict, accuse
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import GetInput, SignedHeader
from legion_p2p.services.shards import owner as owner_module
from legion_p2p.services.shards import witness as witness_module
from legion_p2p.services.shards.replica import Combined
from legion_p2p.services.shards.witness import Checked
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor.feedback import compress
from legion_p2p.tensor.flatten import digest
from tests.sim.liar import Liar

WATCHED = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=16, verify="late")
CODECS = [
    WATCHED,
    msgspec.structs.replace(WATCHED, update_codec="int4", aggregation="mean", outer="nesterov", outer_learning_rate=0.5),
]


def accusations(swarm: Swarm) -> list[Any]:
    names = ("owner.excluded", "owner.miscounted", "owner.inconsistent", "accusation.unproven")
    return [event for peer in swarm.living() for event in peer.log if event.name in names]


def is_excluded(swarm: Swarm, culprit: SimPeer) -> bool:
    others = [peer for peer in swarm.living() if peer is not culprit]
    return all(peer.engine.members.proofs.book.excluded() == {culprit.id} for peer in others)


def busiest(peers: list[SimPeer]) -> SimPeer:
    return max(peers, key=lambda peer: len(peer.engine.shards.owned()))


@pytest.mark.parametrize("rounds", CODECS, ids=["int8", "int4, nesterov"])
async def test_nobody_accuses_honest_owners_whoever_comes_and_goes(rounds: RoundSpec, autojump_clock: object) -> None:
    async with Swarm(round=rounds) as swarm:
        for name in "abcd":
            await swarm.add(name, step_s=0.5)
        await trio.sleep(40)
        await swarm.add("slow", step_s=2.0)
        await trio.sleep(20)
        await swarm.kill(busiest(list(swarm.living())).name)
        await trio.sleep(20)
        await swarm.add("late")
        await trio.sleep(20)
        await swarm.leave(busiest(list(swarm.living())).name)
        await trio.sleep(20)

        assert accusations(swarm) == []
        n_checked = sum(len(peer.engine.shards.witness._followed) for peer in swarm.living())
        assert n_checked >= 3, "of four shards"
        await swarm.settle()
        assert swarm.agree()


class WrongOwner:
    """An owner that makes something else of a round, and keeps books that fit it."""

    def __init__(self, culprit: SimPeer, monkeypatch: pytest.MonkeyPatch, shards: Iterable[int] | None = None) -> None:
        self.n_lies = 0
        combine_arrived = owner_module.combine_arrived
        replicas = culprit.engine.shards.replicas
        if shards is not None:
            replicas = {shard: replicas[shard] for shard in shards}

        def wrong(reference: torch.Tensor, residual: Any, outer: Any, closed: Any, arrived: Any, *rest: Any) -> Combined:
            made = combine_arrived(reference, residual, outer, closed, arrived, *rest)
            if all(reference is not r.reference for r in replicas.values()) or made.payload is None:
                return made
            self.n_lies += 1
            codec = rest[1]
            sent = codec.decode(made.payload, reference.numel())
            packed = compress(codec, None, -sent)
            left = sent - packed.sent if made.owner_residual is None else sent + made.owner_residual - packed.sent
            away = reference - packed.sent
            return Combined(packed.data, away, digest(away), left, made.outer, made.used, made.refused, made.norm)

        monkeypatch.setattr(owner_module, "combine_arrived", wrong)


async def five_under_way(swarm: Swarm) -> tuple[list[SimPeer], SimPeer]:
    """Five members after a minute of training, and the one that owns most."""
    peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
    await trio.sleep(60)
    return peers, busiest(peers)


async def test_an_owner_that_publishes_something_else_is_proven_to_and_it_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers, culprit = await five_under_way(swarm)
        lie = WrongOwner(culprit, monkeypatch)

        await swarm.until(lambda: is_excluded(swarm, culprit), 20, "found out by all")

        assert 1 <= lie.n_lies <= 6, "no more than two of each of its shards"
        (miscounted, *_) = [e for peer in peers for e in peer.events_named("owner.miscounted")]
        assert miscounted.fields["owner"] == culprit.id and "carry" in miscounted.fields["reason"]
        assert [e for peer in peers for e in peer.events_named("owner.excluded") if e.fields["peer"] != culprit.id] == []
        inherited = [r for peer in peers for r in peer.engine.shards.replicas.values() if r.inherited is not None]
        assert inherited and all(r.inherited[0] == culprit.id for r in inherited), "what it should have had is gone on from"
        await trio.sleep(20)
        await swarm.settle()
        assert swarm.agree()


async def test_an_owner_and_a_standby_in_league_are_found_out_by_chance(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(witness_module, "AUDITED", 0.5)
    async with Swarm(round=WATCHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(40)
        culprit = busiest(peers)
        shard = culprit.engine.shards.owned()[0]
        standby = next(peer for peer in peers if peer.id == peers[0].engine.shards.ownership(shard).standby)

        async def look_away(*_: Any, **__: Any) -> Checked:
            return Checked(CountVerdict.RIGHT, "")

        standby.engine.shards.witness.check = look_away
        lie = WrongOwner(culprit, monkeypatch, [shard])

        await swarm.until(lambda: is_excluded(swarm, culprit), 100, "found out by all")

        assert lie.n_lies >= 1
        assert not standby.events_named("owner.miscounted")
        assert [e for peer in peers for e in peer.events_named("owner.excluded") if e.fields["peer"] != culprit.id] == []


async def test_what_only_an_owner_had_does_not_die_with_it(autojump_clock: object) -> None:
    coarse = msgspec.structs.replace(WATCHED, update_codec="int2", dense_codec="", outer="nesterov", outer_learning_rate=0.5)
    async with Swarm(round=coarse) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(40)
        victim = busiest(peers)
        for peer in peers:
            peer.hung = True  # so that the last round is over, and its residual stays
        await trio.sleep(10)
        replicas = {s: victim.engine.shards.replicas[s] for s in victim.engine.shards.owned()}
        residuals = {s: (replica.owner_residual, replica.outer.momentum) for s, replica in replicas.items()}

        await swarm.kill(victim.name)
        others = [peer for peer in peers if peer is not victim]
        await swarm.until(
            lambda: all(any(p.engine.shards.replicas[s].round is not None for p in others) for s in residuals), 20, "taken over"
        )

        for shard, (residual, momentum) in residuals.items():
            heir = next(p for p in others if p.engine.shards.replicas[shard].round is not None)
            replica = heir.engine.shards.replicas[shard]
            assert residual.any() and torch.equal(replica.owner_residual, residual)
            assert torch.equal(replica.outer.momentum, momentum)
            assert replica.inherited is not None and replica.inherited[0] == victim.id


async def test_an_owner_that_brings_in_something_of_its_own_is_named_by_all(autojump_clock: object) -> None:
    """Each update is what its inputs give, but the residual that it begins with is made up, in every round."""
    async with Swarm(round=WATCHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(80)
        culprit = busiest(peers)
        others = [peer for peer in peers if peer is not culprit]
        shards = culprit.engine.shards.owned()

        def bring_in(_: object) -> None:
            for shard in culprit.engine.shards.owned():
                culprit.engine.shards.replicas[shard].owner_residual = torch.full((16,), 0.05)

        culprit.engine.shards.states.updated.add(bring_in)
        await swarm.until(
            lambda: all(not peer.engine.shards.states.owned_by(culprit.id) for peer in others), 60, "it owns nothing"
        )

        assert shards and {e.fields["owner"] for p in others for e in p.events_named("owner.inconsistent")} == {culprit.id}
        assert not any(peer.events_named("owner.excluded") for peer in peers), "that proves nothing"


async def test_who_accuses_falsely_loses_its_own_shards(autojump_clock: object) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(30)
        accuser, accused = peers[1], busiest([peers[0], *peers[2:]])
        shard = accused.engine.shards.owned()[0]
        await swarm.until(lambda: len(accused.engine.shards.replicas[shard].inputs) == 2, 20, "versions made")
        (raw, inputs) = list(accused.engine.shards.replicas[shard].inputs.items())[-1]
        update = accuser.engine.shards.replicas[shard].chain.entry(inputs.header.version).update

        accuser.engine.shards.exchange.proofs[raw] = inputs
        false = accuse(accuser.engine.id, SignedHeader(update.header, update.signature), accuser.network.identity)
        for peer in peers:
            if peer is not accuser:
                accuser.engine.shards.evidence._show(peer.id, false)
        await swarm.until(lambda: is_excluded(swarm, accuser), 20, "found out by all")

        assert not any(peer.events_named("owner.miscounted") for peer in peers)


async def test_nobody_without_ownership_can_have_others_compute(autojump_clock: object) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        liar = Liar(swarm)
        await liar.become_member()
        update = peers[0].engine.shards.replicas[0].chain.last().update

        shown = SignedHeader(update.header, update.signature)
        kinds = [
            await liar.refused(peers[0], accuse(liar.run, shown, liar.identity)),
            await liar.refused(peers[0], msgspec.structs.replace(accuse(liar.run, shown, liar.identity), signature=b"s" * 64)),
            await liar.refused(peers[0], accuse("another", shown, liar.identity)),
        ]

        assert kinds == ["NetworkError", "SignatureError", "IncompatibleModelError"] and liar.n_asked(GetInput) == 0
