"""What strangers cannot do to a run: a hostile peer among three honest ones, in virtual time, over the real engine.

It has a key and speaks the protocol as it likes. Whatever it sends is refused with a typed error or bounded in what it can do; an
engine that dies of it fails the test, because its exception comes out of the swarm.
"""

import random
import struct

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.announcement import Announcement, open_signed, sign
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.run import announce_topic
from legion_p2p.core.wire import (
    MAX_EXCHANGED,
    Accusation,
    Exchange,
    Exchanged,
    GetShard,
    GetSpec,
    GetUpdates,
    HandoverPart,
    Message,
    Ping,
    PingFor,
    Pushed,
    ShardState,
    decode_header,
)
from legion_p2p.errors import LegionError, UnreachableError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.liar import (
    CAPPED,
    HALF,
    HUGE,
    N_ELEMENTS,
    Liar,
    encoded,
    ends_equal,
    goes_on,
    owner_of,
    raw_payload,
    three,
    updates_of,
)


async def test_random_bytes_are_refused_and_whoever_sends_them_is_disconnected(autojump_clock):
    rng = random.Random(1)
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)

        with goes_on(swarm):
            for peer in peers:
                kinds = []
                with pytest.raises(UnreachableError):
                    for _ in range(30):
                        kinds.append(await liar.refused(peer, rng.randbytes(rng.randrange(200)), rng.choice(list(Priority))))
                assert set(kinds) == {"DecodeError"} and 5 <= len(kinds) <= 10
                assert liar.is_out(peer)
            await trio.sleep(5)

        await ends_equal(swarm)


async def test_messages_about_another_run_are_refused_and_nobody_is_blamed(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        liar.run = "bafkrei-another-run"
        d = b"d" * 32

        with goes_on(swarm):
            messages = [
                Exchange(liar.run, ()),
                Ping(liar.run),
                PingFor(liar.run, peers[1].id),
                Accusation(liar.run, peers[1].id, 0),
            ]
            messages += [liar.push(), GetUpdates(liar.run, 0, 0, d), GetShard(liar.run, 0), HandoverPart(liar.run, 0, 0, d, b"")]
            messages += [liar.update(peers[0], torch.ones(N_ELEMENTS))]
            kinds = [await liar.refused(peer, message) for _ in range(3) for message in messages for peer in peers]
            unknown = await liar.refused(peers[0], GetSpec("no such run"))
            await trio.sleep(5)

        assert set(kinds) == {"IncompatibleModelError"} and unknown == "UnknownRunError"
        assert not any(liar.is_out(peer) for peer in peers)
        await ends_equal(swarm)


@pytest.mark.parametrize("round", [CAPPED, HALF], ids=["fp32", "fp16"])
async def test_a_malformed_push_is_refused_and_never_averaged(round, autojump_clock):
    dtype = {"fp32": "f", "fp16": "e"}[round.push_codec]
    async with Swarm(round=round, numel=32) as swarm:
        await three(swarm)
        owner = owner_of(swarm)
        good = encoded(torch.ones(N_ELEMENTS), round.push_codec)
        header, values = good[:8], good[8:]
        cases = {
            "another codec": ("CodecError", {"codec": "int8"}),
            "an unknown codec": ("CodecError", {"codec": "pickle"}),
            "nothing": ("CodecError", {"payload": b""}),
            "half a header": ("CodecError", {"payload": good[:4]}),
            "too short": ("CodecError", {"payload": good[:-1]}),
            "too long": ("CodecError", {"payload": good + b"\x00"}),
            "more elements than there are": ("CodecError", {"payload": struct.pack("<BBHI", header[0], 1, 0, 1 << 31) + values}),
            "the codec id of another": ("CodecError", {"payload": b"\x09" + good[1:]}),
            "NaN": ("CodecError", {"payload": raw_payload(float("nan"), dtype)}),
            "infinity": ("CodecError", {"payload": raw_payload(float("-inf"), dtype)}),
            "a shard that is not there": ("DecodeError", {"shard": 2}),
            "no tokens": ("DecodeError", {"tokens": 0}),
            "a negative version": ("DecodeError", {"version": -1}),
            "a number that no member reaches": ("DecodeError", {"seq": 1 << 62}),
        }

        with goes_on(swarm):
            for name, (kind, fields) in cases.items():
                liar = Liar(swarm, name)
                await liar.become_member()
                bad = liar.push(**{"payload": good, "codec": round.push_codec, **fields})
                assert await liar.refused(owner, bad) == kind, name
                assert owner.network.messenger.refusals.score(liar.id) > 0, name
            outsider = Liar(swarm, "no member")
            assert await outsider.refused(owner, outsider.push(payload=good, codec=round.push_codec)) == "RemoteProtocolError"
            with pytest.raises(UnreachableError):
                for _ in range(20):
                    await liar.refused(owner, bad)
            assert liar.is_out(owner)
            await trio.sleep(5)

        included = {i.peer for peer in swarm.living() for i in peer.engine.shards.replicas[0].chain.included()}
        assert included == {peer.id for peer in swarm.living()}
        for name in [*cases, "no member"]:
            swarm.world.kill(swarm.identity(name).peer_id)
        await ends_equal(swarm)


async def test_absurd_tokens_values_and_numbers_in_pushes_are_bounded(autojump_clock):
    """Five liars, whose tokens together are more than an integer of the wire holds; one of them pushes as far as fp32 goes."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        await three(swarm)
        liars = [Liar(swarm, f"liar {i}") for i in range(5)]
        for liar in liars:
            await liar.become_member()

        with goes_on(swarm):
            for seq in range(12):
                for liar in liars:
                    value = 3e38 * (-1) ** seq if liar is liars[0] else 0.0
                    payload = encoded(torch.full((N_ELEMENTS,), value))
                    push = liar.push(payload=payload, tokens=1 << 62, seq=seq << 28, local_steps=1 << 62)
                    assert isinstance(await liar.ask(owner_of(swarm), push), Pushed)
                await trio.sleep(1)
            headers = [decode_header(u.header) for u in updates_of(owner_of(swarm))]

        assert any(len(header.included) > 5 and header.tokens == 1 << 62 for header in headers)
        for liar in liars:
            swarm.world.kill(liar.id)
        await ends_equal(swarm)


async def test_nobody_is_announced_by_anybody_else(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a, b, c = await three(swarm)
        liar = Liar(swarm)
        forged = sign(msgspec.structs.replace(a.engine.members.own.now(), seq=1 << 40, leaving=True), liar.identity)
        body = msgspec.msgpack.encode({"peer_id": liar.id, "run": b"\xff\xfe"})
        not_unicode = msgspec.msgpack.encode({"body": body, "signature": liar.identity.sign(body)})

        with goes_on(swarm):
            answered = await liar.ask(b, Exchange(liar.run, (forged,)))
            for garbage in (forged, not_unicode, b"", b"\xff" * 1000):
                await liar.network.gossip.publish(announce_topic(liar.run), garbage)
            await trio.sleep(5)
            many = tuple(random.Random(i).randbytes(50 + i) for i in range(MAX_EXCHANGED))
            await liar.ask(c, Exchange(liar.run, many))

        assert isinstance(answered, Exchanged)
        assert all(peer.engine.members.table.get(a.id).counts for peer in (b, c))
        assert b.network.messenger.refusals.score(liar.id) > 0
        assert liar.is_out(c) and not liar.is_out(a)
        reasons = [e.fields["reason"] for e in a.events_named("announcement.refused")]
        assert len(reasons) == 4 and "not signed by" in reasons[0]
        await ends_equal(swarm)


async def test_only_who_made_versions_of_a_shard_hands_it_over_and_only_what_is_finite(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        owner = owner_of(swarm)
        member = next(peer for peer in peers if peer is not owner)
        liar = Liar(swarm)
        ones = encoded(torch.ones(N_ELEMENTS))
        big = encoded(torch.full((N_ELEMENTS,), 3e38))

        def handover(payload: bytes, shard: int = 0, version: int = 0, codec: str = "fp32") -> HandoverPart:
            return HandoverPart(liar.run, shard, version, b"d" * 32, payload, codec=codec)

        async def from_owner(payload: bytes, version: int = 0, codec: str = "fp32") -> str:
            try:
                await member.engine.shards.handover.on_handover(owner.id, handover(payload, version=version, codec=codec))
            except LegionError as refused:
                return type(refused).__name__
            return ""

        with goes_on(swarm):
            kinds = [await liar.refused(owner, handover(ones))]
            await liar.become_member()
            kinds += [await liar.refused(peer, handover(ones)) for peer in (owner, member)]
            kinds += [await liar.refused(owner, handover(ones, shard=2))]
            made = owner.engine.shards.replicas[0].chain.last().update
            stolen = msgspec.structs.replace(handover(ones), header=made.header, signature=made.signature)
            made_up = liar.update(owner, torch.ones(N_ELEMENTS))
            own = msgspec.structs.replace(stolen, header=made_up.header, signature=made_up.signature)
            unsigned = msgspec.structs.replace(own, signature=made.signature)
            kinds += [await liar.refused(owner, proof) for proof in (stolen, own, unsigned)]
            of_owner = [await from_owner(p) for p in (raw_payload(float("nan")), ones[:-4], big, big)]
            of_owner += [await from_owner(big, version=1), await from_owner(ones, codec="topk64-2bit")]
            member.engine.shards.replicas[0].owner_residual = None
            await trio.sleep(5)

        assert kinds == ["RemoteProtocolError", *["NetworkError"] * 2, "DecodeError", *["NetworkError"] * 2, "SignatureError"]
        assert of_owner == ["CodecError", "CodecError", "", "", "CodecError", "CodecError"], (
            "what comes again counts once; twice 3e38 is infinite"
        )
        await ends_equal(swarm, liar)


async def test_a_flood_of_questions_stops_nobody(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        kinds: list[str] = []

        async def ask(peer: SimPeer, message: Message) -> None:
            kinds.append(await liar.refused(peer, message, random.Random(len(kinds)).choice(list(Priority))))

        with goes_on(swarm):
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for i in range(100):
                        questions = [
                            GetShard(liar.run, i % 2),
                            GetUpdates(liar.run, i % 2, 0, b"d" * 32),
                            PingFor(liar.run, liar.id),
                        ]
                        nursery.start_soon(ask, peers[i % 3], questions[i % len(questions)])
                await trio.sleep(1)

        assert set(kinds) <= {"", "BusyError", "UnreachableError"} and "" in kinds
        await ends_equal(swarm)


async def test_a_probe_for_others_says_whether_a_member_lives_and_asks_nobody_else(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a, b, _ = await three(swarm)
        liar = Liar(swarm)

        living = await liar.refused(a, PingFor(liar.run, b.id))
        unknown = [await liar.refused(a, PingFor(liar.run, peer)) for peer in (liar.id, a.id, "", "nobody")]
        swarm.world.freeze(b.id)
        began = trio.current_time()
        frozen = await liar.refused(a, PingFor(liar.run, b.id))

        assert living == "" and set(unknown) == {"UnreachableError"}
        assert frozen == "UnreachableError" and trio.current_time() - began < 4
        assert liar.n_asked(Ping) == 0


async def test_accusing_everybody_all_the_time_moves_nobody(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        await liar.become_member()
        incarnations = [peer.engine.members.table.incarnation for peer in peers]

        with goes_on(swarm):
            for _ in range(100):
                for peer in peers:
                    for accused in peers:
                        incarnation = accused.engine.members.table.incarnation
                        for lie in (incarnation, 1 << 62):
                            assert await liar.refused(peer, Accusation(liar.run, accused.id, lie), Priority.CONTROL) == ""
                await trio.sleep(0.1)

        for peer, before in zip(peers, incarnations, strict=True):
            assert 1 <= peer.engine.members.table.incarnation - before <= 10
            assert not [e for e in peer.events_named("member.dead") if e.fields["peer"] != liar.id]
            assert not peer.events_named("run.rejoining")
        await ends_equal(swarm, liar)


async def test_an_exception_in_a_handler_is_an_answer_and_ends_nothing(autojump_clock, monkeypatch):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a, _, _ = await three(swarm)
        liar = Liar(swarm)

        async def broken(peer: PeerId, message: object) -> Message:
            raise ZeroDivisionError("a bug")

        with goes_on(swarm, at_least_per_s=0.3):
            with monkeypatch.context() as bug:
                bug.setitem(a.engine.lobby.dispatcher._handlers, GetShard, broken)
                while_broken = await liar.refused(a, GetShard(liar.run, 0))
            afterwards = await liar.ask(a, GetShard(liar.run, 0))
            await trio.sleep(10)

        assert while_broken == "InternalError"
        assert isinstance(afterwards, ShardState)
        await ends_equal(swarm)


def test_what_the_liar_announces_is_valid() -> None:
    """Otherwise the tests above would pass for the wrong reason."""
    key = Identity(b"l" * 32)

    assert open_signed(sign(Announcement(key.peer_id, "run", weight=HUGE, ready=True), key)).ready
