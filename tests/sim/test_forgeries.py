"""What nobody can make a run follow: versions, updates and whole shards that a hostile peer made up, or that lead to nonsense."""

import random
from collections.abc import Callable

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.announcement import Mark, mark_of, pack_marks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import (
    Done,
    GetUpdates,
    HandoverPart,
    Held,
    Inclusion,
    NotOwner,
    Push,
    Pushed,
    ShardState,
    Update,
    Updates,
)
from legion_p2p.errors import CodecError, RefusedError, UnreachableError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState
from tests.sim.liar import (
    CAPPED,
    HUGE,
    LAST_VERSION,
    N_ELEMENTS,
    SMALL,
    Liar,
    assert_sane,
    encoded,
    ends_equal,
    goes_on,
    heaviest,
    owner_of,
    raw_payload,
    three,
)


async def test_who_claims_to_be_ahead_and_then_says_nothing_is_asked_more_and_more_rarely(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        await three(swarm)
        liar = Liar(swarm)
        await liar.become_member()

        with goes_on(swarm):
            for seq in range(40):
                await liar.ask(owner_of(swarm), liar.push(version=LAST_VERSION, seq=seq))
                await trio.sleep(1)

        assert 2 <= liar.n_asked(GetUpdates) <= 7
        assert all(message.log_only for message in liar.asked if isinstance(message, GetUpdates))
        await ends_equal(swarm, liar)


async def test_a_majority_that_claims_to_be_ahead_and_says_nothing_holds_up_few_rounds(autojump_clock):
    """Four of seven announce one state that nobody made; whoever asks them for it hears nothing."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liars = [Liar(swarm, f"liar {i}") for i in range(4)]
        ahead = pack_marks([Mark(peers[0].versions()[0] + 100_000, 7)] * 2)

        for liar in liars:
            await liar.become_member(ready=True, weight=SMALL, marks=ahead)
        with goes_on(swarm, 0.6):
            for _ in range(90):
                await trio.sleep(2)
                for liar in liars:
                    await liar.become_member(ready=True, weight=SMALL, marks=ahead)

        for liar in liars:
            swarm.world.kill(liar.id)
        await ends_equal(swarm)


async def test_silent_identities_have_no_vote_on_what_the_state_is(autojump_clock):
    """Five of eight announce one state that they made up, and give it to all that ask."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        await trio.sleep(20)
        version, value = peers[0].versions()[0] + 1000, 7.0
        made_up = torch.full((N_ELEMENTS,), value)
        liars = [Liar(swarm, f"liar {i}") for i in range(5)]
        marks = pack_marks([mark_of(version, digest(made_up))] * 2)

        with goes_on(swarm):
            for _ in range(20):
                for liar in liars:
                    liar.answers[GetUpdates] = lambda liar=liar: poison(liar, version, value)
                    await liar.become_member(ready=True, weight=0.0, marks=marks)
                await trio.sleep(2)

        replicas = [replica for peer in peers for replica in peer.engine.shards.replicas.values()]
        assert not any(torch.equal(replica.reference, made_up) for replica in replicas)
        for liar in liars:
            swarm.world.kill(liar.id)
        await ends_equal(swarm)


def poison(liar: Liar, version: int = LAST_VERSION, value: float = 1e6) -> ShardState:
    state = torch.full((N_ELEMENTS,), value)
    return ShardState(0, version, digest(state), (Inclusion(liar.honest[0].id, 1 << 62),), encoded(state), True)


def own_update(liar: Liar) -> Updates:
    return Updates((liar.update(owner_of_liar(liar), torch.full((N_ELEMENTS,), 1e6)),), None)


def owner_of_liar(liar: Liar) -> SimPeer:
    owner = liar.honest[0].engine.shards.ownership(0).owner
    return next(peer for peer in liar.honest if peer.id == owner)


def of_another_run(liar: Liar) -> Updates:
    return Updates((liar.update(owner_of_liar(liar), torch.zeros(N_ELEMENTS), run="another"),), None)


def mis_signed(liar: Liar) -> Updates:
    return Updates(
        (msgspec.structs.replace(liar.update(owner_of_liar(liar), torch.ones(N_ELEMENTS)), signature=b"s" * 64),), None
    )


def not_a_header(liar: Liar) -> Updates:
    return Updates((Update(b"\xc1garbage", b"s" * 64, b""),), None)


@pytest.mark.parametrize(
    ("lie", "is_out"),
    [
        (poison, True),
        (own_update, True),
        (of_another_run, True),
        (mis_signed, True),
        (not_a_header, True),
        (lambda _: Done(), True),
    ],
    ids=["a whole shard", "updates of its own", "updates of another run", "mis-signed updates", "garbage", "something else"],
)
async def test_who_announces_versions_that_nobody_made_is_not_followed(lie, is_out, autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        await three(swarm)
        liar = Liar(swarm)
        liar.answers[GetUpdates] = lambda: lie(liar)
        marks = pack_marks([Mark(LAST_VERSION, 7)] * 2)

        with goes_on(swarm):
            for _ in range(10):
                if not any(liar.is_out(peer) for peer in swarm.living()):
                    await liar.become_member(ready=True, weight=SMALL, marks=marks)
                await trio.sleep(2)

        assert liar.n_asked(GetUpdates) >= 1
        n_blamed = sum(peer.network.messenger.refusals.score(liar.id) > 0 for peer in swarm.living())
        assert (n_blamed + sum(liar.is_out(peer) for peer in swarm.living()) > 0) == is_out
        assert liar.n_asked(GetUpdates) <= 16  # two shards, a handful each in 20 s
        await ends_equal(swarm, liar)


async def test_an_update_is_followed_only_from_whom_it_may_come(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        owner = owner_of(swarm)
        victim = next(peer for peer in peers if peer is not owner)
        ones = torch.full((N_ELEMENTS,), 1e6)

        def case(name: str, make: Callable[[Liar], Update], weight: float = SMALL) -> tuple[str, Callable[[Liar], Update], float]:
            return name, make, weight

        def replayed(liar: Liar) -> Update:
            return owner.engine.shards.replicas[0].chain.last().update

        def altered(liar: Liar) -> Update:
            return msgspec.structs.replace(replayed(liar), payload=encoded(ones))

        def in_the_name_of_the_owner(liar: Liar) -> Update:
            return liar.update(victim, ones, owner=owner.id)

        def with_another_signature(liar: Liar) -> Update:
            return msgspec.structs.replace(liar.update(victim, ones), signature=owner.network.identity.sign(b"something else"))

        cases = [
            ("NetworkError", *case("no owner", lambda liar: liar.update(victim, ones))),
            ("NetworkError", *case("no owner, far ahead", lambda liar: liar.update(victim, ones, version=LAST_VERSION))),
            ("SignatureError", *case("the owner's name", in_the_name_of_the_owner)),
            ("SignatureError", *case("mis-signed", with_another_signature)),
            ("", *case("passed on", replayed)),  # what its owner signed may come from any member, and changes nothing
            ("DecodeError", *case("altered on the way", altered)),
            ("DecodeError", *case("no header", lambda liar: Update(b"\x80", b"s" * 64, b""))),
            ("DecodeError", *case("no such shard", lambda liar: liar.update(victim, ones, claims_shard=99))),
            ("CodecError", *case("another codec", lambda liar: liar.update(victim, ones, codec="int8"))),
            ("IncompatibleModelError", *case("another run", lambda liar: liar.update(victim, ones, run="another"))),
        ]
        liars = []

        with goes_on(swarm):
            for kind, name, make, weight in cases:
                liar = Liar(swarm, name)
                liars.append(liar)
                await liar.become_member(ready=True, weight=weight)
                await trio.sleep(0.1)
                assert await liar.refused(victim, make(liar)) == kind, name
                assert (owner_of(swarm), victim.engine.shards.ownership(0).owner) == (owner, owner.id)
            outsider = Liar(swarm, "no member")
            assert await outsider.refused(victim, outsider.update(victim, ones)) == "RemoteProtocolError"
            for _ in range(20):
                with pytest.raises((RefusedError, UnreachableError)):
                    await liars[2].ask(victim, in_the_name_of_the_owner(liars[2]))
            assert liars[2].is_out(victim)
            await trio.sleep(5)

        for liar in [*liars, outsider]:
            swarm.world.kill(liar.id)
        await ends_equal(swarm)


async def test_an_owner_cannot_set_a_shard_to_what_it_likes_and_cannot_stop_it_for_long(autojump_clock):
    """It owns the shard by a huge weight, and signs updates that hold together and are far longer than those before them."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        await trio.sleep(20)
        liar = Liar(swarm, heaviest(swarm))
        liar.answers[GetUpdates] = lambda: poison(liar, peers[0].versions()[0] + 100, 7.0)
        await liar.become_member(ready=True, weight=HUGE)
        await swarm.until(lambda: all(p.engine.shards.ownership(0).owner == liar.id for p in peers), 5, "it owns the shard")
        await swarm.until(lambda: all(p.engine.shards.replicas[0].round is None for p in peers), 5, "handed over")
        await trio.sleep(1)

        for peer in peers:
            to_seven = peer.engine.shards.replicas[0].reference - 7.0
            before = peer.digests()[0]
            assert await liar.refused(peer, liar.update(peer, to_seven)) == "TooLongError"
            assert await liar.refused(peer, liar.update(peer, -1000 * to_seven)) == "TooLongError"
            assert peer.digests()[0] == before
        # it says no more than that it lives, and that it is ahead
        mark = pack_marks([Mark(peers[0].versions()[0] + 100, 7)] * 2)
        before = peers[0].versions()[0]
        for _ in range(45):
            await liar.become_member(ready=True, weight=HUGE, marks=mark)
            await trio.sleep(2)

        for peer in peers:
            assert_sane(peer)
            assert peer.events_named("update.too_long")
            assert peer.versions()[0] > before + 10, "the standby goes on"
        await ends_equal(swarm, liar)


async def test_even_an_owner_cannot_send_what_does_not_hold_together(autojump_clock):
    """Whoever announces a huge weight owns everything, and may stop the versions while it lives; more it cannot do to anybody."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        victim = peers[0]
        liar = Liar(swarm, heaviest(swarm))
        liar.answers[GetUpdates] = lambda: poison(liar, victim.versions()[0] + 100, 0.5)
        await liar.become_member(ready=True, weight=HUGE)
        await swarm.until(lambda: all(p.engine.shards.ownership(0).owner == liar.id for p in peers), 5, "it owns the shard")
        await swarm.until(lambda: all(p.engine.shards.replicas[0].round is None for p in peers), 5, "handed over")
        await trio.sleep(1)
        small = torch.full((N_ELEMENTS,), 0.001)
        replica = victim.engine.shards.replicas[0]

        kinds = {
            "wrong digest": await liar.refused(victim, liar.update(victim, small, digest=b"d" * 32)),
            "infinite": await liar.refused(
                victim, msgspec.structs.replace(liar.update(victim, small), payload=raw_payload(float("inf")))
            ),
            "of another size": await liar.refused(victim, msgspec.structs.replace(liar.update(victim, small), payload=b"x")),
        }
        before = replica.chain.version
        frozen = (Inclusion(victim.id, 1 << 62), Inclusion(peers[1].id, replica.life.push.next_seq + 5))
        followed = await liar.ask(victim, liar.update(victim, small, included=frozen, tokens=1 << 62))
        behind = await liar.ask(victim, liar.update(victim, small, version=LAST_VERSION))  # then it asks, and gets a whole shard

        assert kinds == {"wrong digest": "DecodeError", "infinite": "CodecError", "of another size": "CodecError"}
        assert isinstance(followed, Held) and followed.version == before + 1
        assert isinstance(behind, Held)
        await swarm.until(lambda: replica.chain.version > before + 100, 10, "the whole shard was taken over")
        assert not replica.chain.includes(victim.id, 1 << 40)
        swarm.world.kill(liar.id)
        await swarm.until(swarm.owners_agree, 20, "the honest ones own again")
        await trio.sleep(5)  # what only the victim has is given up for what its new owner has
        with goes_on(swarm):
            await trio.sleep(10)
        seqs = [p.engine.shards.replicas[0].life.push.next_seq for p in peers]
        await trio.sleep(10)
        chain = owner_of(swarm).engine.shards.replicas[0].chain
        assert all(chain.includes(p.id, seq) for p, seq in zip(peers, seqs, strict=True)), "all of them contribute again"
        await ends_equal(swarm)


async def test_an_owner_that_answers_pushes_with_lies_holds_up_its_own_shards_only_while_it_lives(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm, heaviest(swarm))
        lies = [Pushed(LAST_VERSION, True), NotOwner("nobody", b"garbage"), NotOwner(liar.id, b""), Done(), Held(0, b"d" * 32)]
        answers = random.Random(1)
        liar.answers[Push] = lambda: answers.choice(lies)
        liar.answers[GetUpdates] = lambda: poison(liar)
        liar.answers[HandoverPart] = lambda: Held(LAST_VERSION, b"d" * 32)

        await liar.become_member(ready=True, weight=HUGE)
        await trio.sleep(20)
        for peer in peers:
            assert_sane(peer)
        swarm.world.kill(liar.id)

        await swarm.until(swarm.owners_agree, 20, "the honest ones own again")
        with goes_on(swarm):
            await trio.sleep(10)
        await ends_equal(swarm)


async def test_a_lone_peer_that_diverges_goes_back_to_what_it_had(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a = await swarm.add("a")
        await trio.sleep(5)

        with torch.no_grad():
            a.theta[3] = float("nan")
        await trio.sleep(5)
        b = await swarm.add("b")
        await trio.sleep(5)

        assert a.events_named("push.non_finite")
        assert torch.isfinite(a.theta.detach()).all() and torch.isfinite(b.engine.common_parameters()).all()
        await swarm.settle()
        assert swarm.agree()


def test_a_round_whose_pushes_are_too_large_together_makes_no_version() -> None:
    from legion_p2p.core.round import Closed, Contribution
    from legion_p2p.services.shards.replica import combine

    big = torch.full((4,), -3e38)
    closed = Closed(0, (Contribution(PeerId("liar"), 0, 0, 1, 0.0),), 1, ())

    result = combine(
        -big,
        None,
        OuterState(),
        closed,
        {PeerId("liar"): big},
        msgspec.structs.replace(CAPPED, aggregation="mean"),
        codec.get("fp32"),
    )

    assert result.payload is None and result.owner_residual is None
    assert torch.equal(result.reference, -big) and [source for source, _ in result.refused] == ["liar"]


def test_an_update_that_leads_to_infinity_is_refused() -> None:
    from legion_p2p.services.shards.replica import advance

    with pytest.raises(CodecError, match="infinity"):
        advance(torch.full((4,), 3e38), encoded(torch.full((4,), -3e38)), codec.get("fp32"))
