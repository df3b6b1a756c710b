"""Peers of a run without training: `PeerParts` over the network in memory, for tests of how runs are entered and left."""

import hashlib
import random

import torch

from legion_p2p.config import PeerConfig
from legion_p2p.core.identity import Identity
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.ports import CheckpointArchive
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.sim.network import World
from tests.context_of import inline

NUMEL = 64
PARAMS = (ParamSpec("w", (NUMEL,)),)
ROUND = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=4)


def identity_of(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


def parts_of(world: World, name: str, *, archive: CheckpointArchive | None = None, config: PeerConfig | None = None) -> PeerParts:
    """A peer of that name, which joins the world."""
    return PeerParts(
        world.join(identity_of(name)),
        offload=inline,
        mailbox=Mailbox(),
        events=Events(),
        config=config or PeerConfig(),
        rng=random.Random(name),
        wall_time=lambda: 1.7e9,
        archive=archive,
    )


def log_of(parts: PeerParts) -> list[Event]:
    """Everything that the peer emits from now on."""
    log: list[Event] = []
    parts.events.add_sink(log.append)
    return log


def creation_of(name: str = "run", start: torch.Tensor | None = None, rounds: RoundSpec = ROUND) -> RunCreation:
    """A run of NUMEL parameters, or as many as `start` has.

    By default they are in sixteen shards: that of two peers one owns none is unlikely.
    """
    start = torch.arange(float(NUMEL)) if start is None else start
    return RunCreation(RunSpec(name, "", (ParamSpec("w", (start.numel(),)),), rounds), start)
