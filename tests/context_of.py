"""A `PeerContext` for tests that build one service alone."""

import random
from collections.abc import Callable
from typing import Any

import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.reach import NO_CONNECTION, UNKNOWN_REACH, OwnReach, PeerConnection
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.events import Events
from legion_p2p.services.context import PeerContext
from legion_p2p.services.ports import Messenger
from legion_p2p.services.upload_slots import UploadSlotService

SPEC = RunSpec("test", "", (ParamSpec("w", (64,)),), RoundSpec(push_codec="fp32", update_codec="fp32", shard_elements=16))


class Undiscovered:
    """The Reachability of a network that found out nothing."""

    def __init__(self) -> None:
        self.changed: Observers[OwnReach] = Observers()
        self.regained: Observers[PeerId] = Observers()

    def own(self) -> OwnReach:
        return UNKNOWN_REACH

    def connection(self, peer: PeerId) -> PeerConnection:
        return NO_CONNECTION

    def is_cut_off(self) -> bool:
        return False


async def inline(fn: Callable[..., Any], *args: Any) -> Any:
    """The Offload port without threads."""
    await trio.lowlevel.checkpoint()
    return fn(*args)


def context_of(identity: Identity, messenger: Messenger, **parts: Any) -> PeerContext:
    """`parts`: fields of the context that the test is about. Those without a default (`discovery`, `gossip`) are missing unless
    they are given: a service under test that touches one of them fails.
    """
    missing: Any = None
    defaults: dict[str, Any] = {
        "run": "run",
        "spec": SPEC,
        "config": PeerConfig(),
        "reachability": Undiscovered(),
        "discovery": missing,
        "gossip": missing,
        "offload": inline,
        "disk": inline,
        "upload_slots": UploadSlotService(messenger),
        "events": Events(),
        "rng": random.Random(identity.peer_id),
        "wall_time": lambda: 1.7e9,
    }
    return PeerContext(identity=identity, messenger=messenger, **{**defaults, **parts})
