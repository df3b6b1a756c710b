"""Two regions that meet for the first time after long separate training, or again after a cut, as a model's loss sees it.

A network of two layers learns from a stream of its own at each peer, over the real engine in virtual time.
"""

from functools import cache

import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

IN, HIDDEN = 8, 16
NUMEL = IN * HIDDEN + 2 * HIDDEN
RATE = 0.03


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TEACHER = torch.randn(IN, 12, generator=generator(0)), torch.randn(12, 1, generator=generator(1))


def samples(n: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, IN, generator=source)
    return x, torch.tanh(x @ TEACHER[0]) @ TEACHER[1] + 0.1 * torch.randn(n, 1, generator=source)


def loss_of(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    inner, bias, outer = theta.split([IN * HIDDEN, HIDDEN, HIDDEN])
    return ((torch.tanh(x @ inner.view(IN, HIDDEN) + bias) @ outer - y.squeeze(1)) ** 2).mean()


def descend(theta: Tensor, source: torch.Generator) -> None:
    theta.grad = None
    loss_of(theta, *samples(16, source)).backward()
    with torch.no_grad():
        theta -= RATE * theta.grad


@cache
def begun() -> Tensor:
    """What the founder starts from: in the basin in which all stay."""
    theta, stream = torch.nn.Parameter(0.3 * torch.randn(NUMEL, generator=generator(2))), generator(0)
    for _ in range(1000):
        descend(theta, stream)
    return theta.detach()


STREAMS = {"a": generator(1), "b": generator(2)}


def local_step(peer: SimPeer) -> None:
    descend(peer.theta, STREAMS[peer.name])


@pytest.mark.parametrize(("rule", "together_s"), [("elastic", 0), ("nesterov", 0), ("center", 6)])
async def test_regions_that_trained_apart_come_together_without_a_jump_in_loss(rule, together_s, autojump_clock):
    """`together_s`: before they are cut off from each other. The center, which nobody moves then, must not draw them back."""
    for seed, stream in enumerate(STREAMS.values(), 1):
        stream.manual_seed(seed)
    spec = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=96, sync_every=2, sync_rule=rule)
    held_out = samples(1000, generator(99))
    async with Swarm(round=spec, step_s=0.1, numel=NUMEL, start=begun().clone(), local_step=local_step) as swarm:
        a, b = [await swarm.add(name, region=region) for name, region in (("a", "east"), ("b", "west"))]
        await trio.sleep(together_s)
        swarm.world.partition({a.id}, {b.id})

        async def losses(seconds: int) -> Tensor:
            seen = []
            for _ in range(seconds):
                await trio.sleep(1)
                seen.append([float(loss_of(peer.engine.common_parameters(), *held_out)) for peer in (a, b)])
            return torch.tensor(seen)

        def apart() -> float:
            return float(torch.dist(a.engine.common_parameters(), b.engine.common_parameters()))

        await losses(50)
        before, far = await losses(15), apart()
        swarm.world.heal()
        after = await losses(40)

        assert apart() < 0.6 * far
        smooth = after.unfold(0, 5, 1).mean(-1)  # SGD's own noise moves the loss by some per cent from round to round
        assert bool((smooth.amax(0) < 1.05 * before.mean(0)).all())
        assert not a.events_named("run.rejoining") and not b.events_named("run.rejoining")
