"""What every service of one peer in one run is built on, passed as one value."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.events import Events
from legion_p2p.services.ports import (
    FORGOTTEN,
    IN_MEMORY,
    BytesShelf,
    Discovery,
    Gossip,
    Messenger,
    Offload,
    Reachability,
    SpentStore,
)
from legion_p2p.services.upload_slots import UploadSlotService
from legion_p2p.tensor.compact import Keep, in_memory


@dataclass(frozen=True, eq=False)
class PeerContext:
    """One peer in one run: who it is, what it runs on, and how it should behave.

    A service takes it whole, and the other services that it talks to as further arguments.
    """

    run: str
    """The run's id."""
    spec: RunSpec
    identity: Identity
    config: PeerConfig
    messenger: Messenger
    reachability: Reachability
    discovery: Discovery
    gossip: Gossip
    offload: Offload
    """Runs arithmetic on large tensors."""
    disk: Offload
    """Runs whatever waits for the disk, one call at a time."""
    upload_slots: UploadSlotService
    events: Events
    rng: random.Random
    wall_time: Callable[[], float]
    running_clock: Callable[[], float] = trio.current_time
    """Seconds on a clock that nobody sets, and that runs on while the machine sleeps."""
    shelf: BytesShelf = IN_MEMORY
    """Holds updates that members may still ask for."""
    spent: SpentStore = FORGOTTEN
    """Remembers what pushes have spent of this peer's privacy."""

    @cached_property
    def me(self) -> PeerId:
        return self.identity.peer_id

    @cached_property
    def keep(self) -> Keep:
        """Holds what a round needs once."""
        return self.shelf.keep if self.config.offload else in_memory

    @cached_property
    def plan(self) -> ShardPlan:
        """How the parameters are cut into shards."""
        return self.spec.plan()
