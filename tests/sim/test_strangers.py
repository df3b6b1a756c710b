"""What strangers cannot do to a run: a hostile peer among three honest ones, in virtual time, over the real engine.

It has a key and speaks the protocol as it likes. Whatever it sends is refused with a typed error or bounded in what it can do; an
engine that dies of it fails the test, because its exception comes out of the swarm.
"""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.announcement import Announcement, Mark, open_signed, pack_marks, sign
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.run import RoundSpec, announce_topic
from legion_p2p.core.wire import (
    MAX_EXCHANGED,
    Accusation,
    Done,
    Exchange,
    Exchanged,
    GetShard,
    GetSpec,
    GetUpdates,
    Handover,
    Held,
    Inclusion,
    Message,
    NotOwner,
    Ping,
    PingFor,
    Push,
    Pushed,
    Reply,
    ShardState,
    Update,
    UpdateHeader,
    Updates,
    decode_header,
    decode_reply,
    decode_request,
    encode,
)
from legion_p2p.errors import CodecError, LegionError, MisfitError, RefusedError, UnreachableError
from legion_p2p.services.ports import Lane
from legion_p2p.sim.swarm import SimPeer, Swarm
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState

CAPPED = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", norm_cap=3.0, shard_elements=16)
HALF = RoundSpec(local_steps=10, push_codec="fp16", update_codec="fp32", norm_cap=3.0, shard_elements=16)
N_ELEMENTS = 16
LAST_VERSION = 0xFFFFFFFF
SMALL = 1e-6  # a weight that owns nothing beside others of 1, and stands by for nobody
HUGE = 1e9  # a weight that owns everything


class Liar:
    """A peer with a key and no manners."""

    def __init__(self, swarm: Swarm, name: str = "liar") -> None:
        self.identity: Identity = swarm.identity(name)
        self.id: PeerId = self.identity.peer_id
        self.network = swarm.world.join(self.identity)
        self.honest = list(swarm.living())
        self.run = self.honest[0].engine.run
        self.asked: list[Message] = []
        self.answers: dict[type, Callable[[], Reply]] = {}
        self._seq = 0
        self.network.messenger.serve(self._answer)
        for peer in self.honest:
            self.network.messenger.add_addresses(peer.id, peer.network.messenger.addresses())

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        """Lives, as far as anybody can tell."""
        message = decode_request(body)
        self.asked.append(message)
        if type(message) in self.answers:
            return encode(self.answers[type(message)]())
        if isinstance(message, Ping):
            return encode(Done())
        if isinstance(message, Exchange):
            return encode(Exchanged(()))
        if isinstance(message, GetUpdates):
            await trio.sleep_forever()  # says nothing, and stays connected
        raise MisfitError("no")

    def n_asked(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.asked)

    def announcement(self, **fields: object) -> Announcement:
        self._seq += 1
        mine = Announcement(self.id, self.run, 1, self._seq, self.network.messenger.addresses(), "home")
        return msgspec.structs.replace(mine, **fields)

    async def become_member(self, **fields: object) -> None:
        """Known to all; where `fields` say so, ready to own."""
        signed = sign(self.announcement(**fields), self.identity)
        for peer in self.honest:
            assert isinstance(await self.ask(peer, Exchange(self.run, (signed,))), Exchanged)

    async def ask(self, peer: SimPeer, message: Message | bytes, lane: Lane = Lane.BULK) -> Reply:
        body = message if isinstance(message, bytes) else encode(message)
        return decode_reply(await self.network.messenger.request(peer.id, body, lane=lane))

    async def refused(self, peer: SimPeer, message: Message | bytes, lane: Lane = Lane.BULK) -> str:
        """The kind of error that this is refused with; "" if it is not."""
        try:
            await self.ask(peer, message, lane)
        except RefusedError as refused:
            return refused.kind
        return ""

    def is_out(self, peer: SimPeer) -> bool:
        return peer.network.messenger.is_refused(self.id)

    def push(self, shard: int = 0, payload: bytes | None = None, **fields: object) -> Push:
        payload = encoded(torch.full((N_ELEMENTS,), 0.01)) if payload is None else payload
        return msgspec.structs.replace(Push(self.run, shard, 0, 0, 100, 10, "fp32", payload), **fields)

    def update(self, peer: SimPeer, change: torch.Tensor, shard: int = 0, **fields: object) -> Update:
        """One that fits what `peer` holds, if the fields are left alone."""
        replica = peer.engine.shards.replicas[shard]
        made = replica.reference - change
        header = UpdateHeader(
            self.run, shard, replica.chain.version + 1, replica.chain.digest, digest(made), self.id, "fp32", (), (), 1, 1
        )
        if "claims_shard" in fields:
            fields["shard"] = fields.pop("claims_shard")
        raw = encode(msgspec.structs.replace(header, **fields))
        return Update(raw, self.identity.sign(raw), encoded(change))


def encoded(x: torch.Tensor, name: str = "fp32") -> bytes:
    return codec.get(name).encode(x)


def raw_payload(value: float, dtype: str = "f") -> bytes:
    """What no encoder writes: any value, in a body of the right form."""
    codec_id = {"f": 1, "e": 2}[dtype]
    return struct.pack("<BBHI", codec_id, 1, 0, N_ELEMENTS) + struct.pack(f"<{N_ELEMENTS}{dtype}", *[value] * N_ELEMENTS)


def owner_of(swarm: Swarm, shard: int = 0) -> SimPeer:
    owner = swarm.living()[0].engine.shards.ownership(shard).owner
    return next(peer for peer in swarm.living() if peer.id == owner)


async def three(swarm: Swarm) -> list[SimPeer]:
    peers = [await swarm.add(name) for name in "abc"]
    await trio.sleep(5)
    return peers


@contextmanager
def goes_on(swarm: Swarm, at_least_per_s: float = 0.5) -> Iterator[None]:
    """The versions of all shards at all honest peers grow meanwhile, and what they hold stays within what they train towards."""
    peers = swarm.living()
    before, began = [peer.versions() for peer in peers], trio.current_time()
    yield
    needed = at_least_per_s * (trio.current_time() - began)
    for peer, then in zip(peers, before, strict=True):
        grown = [now - old for now, old in zip(peer.versions(), then, strict=True)]
        assert min(grown) >= needed, f"{peer.name} made {grown} versions, at least {needed:.1f} expected"
        assert_sane(peer)


def assert_sane(peer: SimPeer) -> None:
    largest = float(peer.engine.common_parameters().abs().max())
    assert largest < 10.0, f"{peer.name} holds {largest}"  # targets are standard normal


async def ends_equal(swarm: Swarm, liar: Liar | None = None) -> None:
    if liar is not None:
        swarm.world.kill(liar.id)
    peers = swarm.living()
    await trio.sleep(5)
    await swarm.settle()
    assert swarm.agree()
    for peer in peers:
        assert_sane(peer)
        assert torch.isfinite(peer.theta.detach()).all()
        assert not any(peer.network.messenger.is_refused(other.id) for other in peers), "no honest peer is blamed"


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
                        kinds.append(await liar.refused(peer, rng.randbytes(rng.randrange(200)), rng.choice(list(Lane))))
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
            messages += [liar.push(), GetUpdates(liar.run, 0, 0, d), GetShard(liar.run, 0), Handover(liar.run, 0, 0, d, b"")]
            messages += [liar.update(peers[0], torch.ones(N_ELEMENTS))]
            kinds = [await liar.refused(peer, message) for _ in range(3) for message in messages for peer in peers]
            unknown = await liar.refused(peers[0], GetSpec("no such run"))
            await trio.sleep(5)

        assert set(kinds) == {"MisfitError"} and unknown == "UnknownRunError"
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
                assert owner.network.messenger._standing.score(liar.id, trio.current_time()) > 0, name
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


def updates_of(peer: SimPeer, shard: int = 0) -> list[Update]:
    return [entry.update for entry in peer.engine.shards.replicas[shard].chain._log.values()]


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
        n_blamed = sum(peer.network.messenger._standing.score(liar.id, trio.current_time()) > 0 for peer in swarm.living())
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

        def in_the_name_of_the_owner(liar: Liar) -> Update:
            return liar.update(victim, ones, owner=owner.id)

        def with_another_signature(liar: Liar) -> Update:
            return msgspec.structs.replace(liar.update(victim, ones), signature=owner.network.identity.sign(b"something else"))

        cases = [
            ("NetworkError", *case("no owner", lambda liar: liar.update(victim, ones))),
            ("NetworkError", *case("no owner, far ahead", lambda liar: liar.update(victim, ones, version=LAST_VERSION))),
            ("SignatureError", *case("the owner's name", in_the_name_of_the_owner)),
            ("SignatureError", *case("mis-signed", with_another_signature)),
            ("DecodeError", *case("replayed", replayed)),
            ("DecodeError", *case("no header", lambda liar: Update(b"\x80", b"s" * 64, b""))),
            ("DecodeError", *case("no such shard", lambda liar: liar.update(victim, ones, claims_shard=99))),
            ("CodecError", *case("another codec", lambda liar: liar.update(victim, ones, codec="int8"))),
            ("MisfitError", *case("another run", lambda liar: liar.update(victim, ones, run="another"))),
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


async def test_even_an_owner_cannot_send_what_does_not_hold_together(autojump_clock):
    """Whoever announces a huge weight owns everything, and may stop the versions while it lives; more it cannot do to anybody."""
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        victim = peers[0]
        liar = Liar(swarm)
        liar.answers[GetUpdates] = lambda: poison(liar, victim.versions()[0] + 100, 0.5)
        await liar.become_member(ready=True, weight=HUGE)
        await swarm.until(lambda: all(p.engine.shards.ownership(0).owner == liar.id for p in peers), 5, "it owns the shard")
        await swarm.until(
            lambda: all(r.round is None for p in peers for r in p.engine.shards.replicas.values()), 5, "handed over"
        )
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
        frozen = (Inclusion(victim.id, 1 << 62), Inclusion(peers[1].id, replica.next_seq + 5))
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
        seqs = [p.engine.shards.replicas[0].next_seq for p in peers]
        await trio.sleep(10)
        chain = owner_of(swarm).engine.shards.replicas[0].chain
        assert all(chain.includes(p.id, seq) for p, seq in zip(peers, seqs, strict=True)), "all of them contribute again"
        await ends_equal(swarm)


async def test_nobody_is_announced_by_anybody_else(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a, b, c = await three(swarm)
        liar = Liar(swarm)
        forged = sign(msgspec.structs.replace(a.engine.members.own(), seq=1 << 40, leaving=True), liar.identity)
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
        assert b.network.messenger._standing.score(liar.id, trio.current_time()) > 0
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

        def handover(payload: bytes, shard: int = 0, version: int = 0, codec: str = "fp32") -> Handover:
            return Handover(liar.run, shard, version, b"d" * 32, payload, codec=codec)

        async def from_owner(payload: bytes, version: int = 0, codec: str = "fp32") -> str:
            try:
                await member.engine.shards.on_request(owner.id, handover(payload, version=version, codec=codec))
            except LegionError as refused:
                return type(refused).__name__
            return ""

        with goes_on(swarm):
            kinds = [await liar.refused(owner, handover(ones))]
            await liar.become_member()
            kinds += [await liar.refused(peer, handover(ones)) for peer in (owner, member)]
            kinds += [await liar.refused(owner, handover(ones, shard=2))]
            of_owner = [await from_owner(p) for p in (raw_payload(float("nan")), ones[:-4], big, big)]
            of_owner += [await from_owner(big, version=1), await from_owner(ones, codec="topk64-2bit")]
            member.engine.shards.replicas[0].owner_residual = None
            await trio.sleep(5)

        assert kinds == ["RemoteProtocolError", "NetworkError", "NetworkError", "DecodeError"]
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
            kinds.append(await liar.refused(peer, message, random.Random(len(kinds)).choice(list(Lane))))

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
                            assert await liar.refused(peer, Accusation(liar.run, accused.id, lie), Lane.CONTROL) == ""
                await trio.sleep(0.1)

        for peer, before in zip(peers, incarnations, strict=True):
            assert 1 <= peer.engine.members.table.incarnation - before <= 10
            assert not [e for e in peer.events_named("member.dead") if e.fields["peer"] != liar.id]
            assert not peer.events_named("run.rejoining")
        await ends_equal(swarm, liar)


async def test_an_owner_that_answers_pushes_with_lies_holds_up_its_own_shards_only_while_it_lives(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        lies = [Pushed(LAST_VERSION, True), NotOwner("nobody", b"garbage"), NotOwner(liar.id, b""), Done(), Held(0, b"d" * 32)]
        answers = random.Random(1)
        liar.answers[Push] = lambda: answers.choice(lies)
        liar.answers[GetUpdates] = lambda: poison(liar)
        liar.answers[Handover] = lambda: Held(LAST_VERSION, b"d" * 32)

        await liar.become_member(ready=True, weight=HUGE)
        await trio.sleep(20)
        for peer in peers:
            assert_sane(peer)
        swarm.world.kill(liar.id)

        await swarm.until(swarm.owners_agree, 20, "the honest ones own again")
        with goes_on(swarm):
            await trio.sleep(10)
        await ends_equal(swarm)


async def test_an_exception_in_a_handler_is_an_answer_and_ends_nothing(autojump_clock, monkeypatch):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        a, _, _ = await three(swarm)
        liar = Liar(swarm)

        async def broken(peer: PeerId, message: object) -> Reply:
            raise ZeroDivisionError("a bug")

        with goes_on(swarm, at_least_per_s=0.3):
            with monkeypatch.context() as bug:
                bug.setattr(a.engine.shards, "on_request", broken)
                while_broken = await liar.refused(a, GetShard(liar.run, 0))
            afterwards = await liar.ask(a, GetShard(liar.run, 0))
            await trio.sleep(10)

        assert while_broken == "InternalError"
        assert isinstance(afterwards, ShardState)
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
    from legion_p2p.services.replica import combine

    big = torch.full((4,), -3e38)
    closed = Closed(0, (Contribution(PeerId("liar"), 0, 0, 1, 0.0),), 1, ())

    result = combine(
        -big, None, OuterState(), closed, {PeerId("liar"): big}, msgspec.structs.replace(CAPPED, norm_cap=0.0), codec.get("fp32")
    )

    assert result.payload is None and result.owner_residual is None
    assert torch.equal(result.reference, -big) and [source for source, _ in result.refused] == ["liar"]


def test_an_update_that_leads_to_infinity_is_refused() -> None:
    from legion_p2p.services.replica import advance

    with pytest.raises(CodecError, match="infinity"):
        advance(torch.full((4,), 3e38), encoded(torch.full((4,), -3e38)), codec.get("fp32"))


def test_what_the_liar_announces_is_valid() -> None:
    """Otherwise the tests above would pass for the wrong reason."""
    key = Identity(b"l" * 32)

    assert open_signed(sign(Announcement(key.peer_id, "run", weight=HUGE, ready=True), key)).ready
