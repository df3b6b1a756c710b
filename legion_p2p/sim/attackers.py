"""Members that push what hurts: peers of a simulated swarm that run the real engine, and change their pushes on the wire.

The strongest that the protocol allows: they know all honest pushes, act together, and claim a thousand times their tokens and
steps.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor

from legion_p2p.core.account import sign_push
from legion_p2p.core.identity import PeerId
from legion_p2p.core.spliced import Bytes
from legion_p2p.core.wire import Push, PushClaim, decode_request, encode
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.inputs import payload_digest
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor.codec import Codec

INFLATED = 1000  # times their tokens and steps
BEYOND = 100.0  # times an honest push: enough to reach any cap
LARGEST = 1e30  # of an element
ALIE_Z = 1.5  # standard deviations of the others: hardly noticed among 5 to 25 (Baruch, Baruch and Goldberg 2019)
IPM_EPSILON = 0.5  # of the others' mean, the other way round (Xie, Koyejo and Gupta 2019)


@dataclass(frozen=True, eq=False)
class View:
    """What an attacker knows when it pushes."""

    own: Tensor
    """What it would push if it were honest: 1-D fp32."""
    honest: tuple[Tensor, ...]
    """The newest pushes of the others to this shard, by name."""
    noise: torch.Generator

    @property
    def mean(self) -> Tensor:
        return torch.stack(self.honest).mean(dim=0)

    def scaled(self, direction: Tensor, times: float = 1.0) -> Tensor:
        """As long as an honest push."""
        length = statistics.median(float(x.norm()) for x in self.honest)
        return direction * (times * length / max(float(direction.norm()), 1e-30))


Attack = Callable[[View], Tensor]


def _drift(view: View) -> Tensor:
    """Always in the same direction, which all attackers share."""
    fixed = torch.Generator(device="cpu").manual_seed(view.own.numel())
    direction = torch.randn(view.own.numel(), generator=fixed, dtype=torch.float32, device="cpu")
    return view.scaled(direction, BEYOND)


def _alie(view: View) -> Tensor:
    stack = torch.stack(view.honest)
    return view.mean - ALIE_Z * stack.std(dim=0, unbiased=False)


def _random(view: View) -> Tensor:
    direction = torch.randn(view.own.numel(), generator=view.noise, dtype=torch.float32, device="cpu")
    return view.scaled(direction, BEYOND)


ATTACKS: dict[str, Attack] = {
    "flip": lambda view: -view.own,
    "against": lambda view: -BEYOND * view.mean,
    "x-100": lambda view: -100.0 * view.own,
    "x100": lambda view: 100.0 * view.own,
    "drift": _drift,
    "random": _random,
    "ALIE": _alie,
    "IPM": lambda view: -IPM_EPSILON * view.mean,
    "mimic": lambda view: view.honest[0].clone(),
}


@dataclass(eq=False)
class Conspiracy:
    """All attackers of a swarm, and what they overhear."""

    attack: Attack
    inflated: int = INFLATED
    heard: dict[int, dict[PeerId, Tensor]] = field(default_factory=dict)
    """By shard, the newest push of each honest member."""
    n_changed: int = 0
    noise: torch.Generator = field(default_factory=lambda: torch.Generator(device="cpu").manual_seed(0))

    def overhear(self, peers: Iterable[SimPeer]) -> None:
        """Learn all that these honest members push to others."""
        for peer in peers:
            _wrap(peer, partial(self._listen, peer))

    def turn(self, peers: Iterable[SimPeer]) -> None:
        """From now on these attack."""
        for peer in peers:
            _wrap(peer, partial(self._change, peer))

    def _listen(self, peer: SimPeer, push: Push) -> Push:
        value = _codec_of(peer, push).decode(push.payload, peer.engine.plan.size(push.shard))
        self.heard.setdefault(push.shard, {})[peer.id] = value
        return push

    def _change(self, peer: SimPeer, push: Push) -> Push:
        honest = self.heard.get(push.shard, {})
        if not honest:
            return push
        codec = _codec_of(peer, push)
        own = codec.decode(push.payload, peer.engine.plan.size(push.shard))
        view = View(own, tuple(honest[p] for p in sorted(honest)), self.noise)
        self.n_changed += 1
        value = torch.nan_to_num(self.attack(view), nan=0.0).clamp(-LARGEST, LARGEST)  # more would be refused
        changed = msgspec.structs.replace(
            push,
            payload=codec.encode(value),
            tokens=push.tokens * self.inflated,
            local_steps=push.local_steps * self.inflated,
        )
        return _signed(changed, peer) if push.signature else changed


def _signed(push: Push, peer: SimPeer) -> Push:
    """As a run has it that watches its owners."""
    claim = PushClaim(
        push.run, push.shard, peer.id, push.version, push.seq, push.tokens, push.codec, payload_digest(push.payload),
        push.local_steps,
    )  # fmt: skip
    return msgspec.structs.replace(push, signature=sign_push(claim, peer.network.identity))


def _codec_of(peer: SimPeer, push: Push) -> Codec:
    return shard_codec(peer.engine.spec, push.shard, push.codec)


def _wrap(peer: SimPeer, change: Callable[[Push], Push]) -> None:
    messenger = peer.network.messenger
    honest_request = messenger.request

    async def request(to: PeerId, body: Bytes, *how: Any, **more: Any) -> bytes:
        message = decode_request(bytes(body))
        return await honest_request(to, encode(change(message)) if isinstance(message, Push) else body, *how, **more)

    messenger.request = request  # type: ignore[method-assign, assignment]
