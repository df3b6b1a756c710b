"""A hostile peer in a simulated swarm, and what must hold whatever it does."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import torch
import trio

from legion_p2p.core.announcement import Announcement, sign
from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.rendezvous import owned_by
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import (
    Done,
    Exchange,
    Exchanged,
    GetUpdates,
    Message,
    Ping,
    Push,
    Update,
    UpdateHeader,
    decode_request,
    encode,
)
from legion_p2p.errors import IncompatibleModelError, RefusedError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from tests.replies import decode_reply

CAPPED = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", norm_cap=3.0, shard_elements=16)
HALF = RoundSpec(local_steps=10, push_codec="fp16", update_codec="fp32", norm_cap=3.0, shard_elements=16)
N_ELEMENTS = 16
LAST_VERSION = 0xFFFFFFFF
SMALL = 1e-6  # a weight that owns nothing beside others of 1, and stands by for nobody
HUGE = 1e9  # a weight that owns everything


def heaviest(swarm: Swarm) -> str:
    """The name of a liar that owns shard 0 and no other by a huge weight, which counts as ten."""
    run, weights = swarm.living()[0].engine, {peer.id: 1.0 for peer in swarm.living()}
    for name in (f"liar {i}" for i in range(1000)):
        me = swarm.identity(name).peer_id
        if owned_by(me, run.id, run.region, range(run.plan.n_shards), {**weights, me: 10.0}) == [0]:
            return name
    raise AssertionError("no such key")


class Liar:
    """A peer with a key and no manners."""

    def __init__(self, swarm: Swarm, name: str = "liar") -> None:
        self.identity: Identity = swarm.identity(name)
        self.id: PeerId = self.identity.peer_id
        self.network = swarm.world.join(self.identity)
        self.honest = list(swarm.living())
        self.run = self.honest[0].engine.id
        self.asked: list[Message] = []
        self.answers: dict[type, Callable[[], Message]] = {}
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
        raise IncompatibleModelError("no")

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

    async def ask(self, peer: SimPeer, message: Message | bytes, priority: Priority = Priority.ROUND) -> Message:
        body = message if isinstance(message, bytes) else encode(message)
        return decode_reply(await self.network.messenger.request(peer.id, body, priority))

    async def refused(self, peer: SimPeer, message: Message | bytes, priority: Priority = Priority.ROUND) -> str:
        """The kind of error that this is refused with; "" if it is not."""
        try:
            await self.ask(peer, message, priority)
        except RefusedError as refused:
            return refused.kind
        return ""

    def is_out(self, peer: SimPeer) -> bool:
        return peer.network.messenger.refusals.is_refused(self.id)

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
        return Update(raw, sign_header(raw, self.identity), encoded(change))


def encoded(x: torch.Tensor, name: str = "fp32") -> bytes:
    return codec.get(name).encode(x)


def raw_payload(value: float, dtype: str = "f") -> bytes:
    """What no encoder writes: any value, in a body of the right form."""
    codec_id = {"f": 1, "e": 2}[dtype]
    return struct.pack("<BBHI", codec_id, 1, 0, N_ELEMENTS) + struct.pack(f"<{N_ELEMENTS}{dtype}", *[value] * N_ELEMENTS)


def owner_of(swarm: Swarm, shard: int = 0) -> SimPeer:
    owner = swarm.living()[0].engine.shards.ownership(shard).owner
    return next(peer for peer in swarm.living() if peer.id == owner)


def updates_of(peer: SimPeer, shard: int = 0) -> list[Update]:
    return [entry.update for entry in peer.engine.shards.replicas[shard].chain._log.values()]


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
        assert not any(peer.network.messenger.refusals.is_refused(other.id) for other in peers), "no honest peer is blamed"
