"""A peer before it is in a run: it has a network and a disk, and can give blocks of its checkpoints to others."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.traffic_ledger import NetworkTraffic
from legion_p2p.core.wire import Blocks, Busy, Checkpoints, GetBlocks, HasBlocks, HeldBlocks
from legion_p2p.errors import NetworkError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.serve import ProvideService
from legion_p2p.services.ports import (
    FORGOTTEN,
    IN_MEMORY,
    BytesShelf,
    CheckpointArchive,
    Discovery,
    Gossip,
    Messenger,
    Offload,
    Reachability,
    SpentStore,
)
from legion_p2p.services.rpc import Dispatcher
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.upload_slots import UploadSlotService


class Network(Protocol):
    """What a peer runs on."""

    @property
    def identity(self) -> Identity: ...

    @property
    def messenger(self) -> Messenger: ...

    @property
    def reachability(self) -> Reachability: ...

    @property
    def discovery(self) -> Discovery: ...

    @property
    def gossip(self) -> Gossip: ...

    @property
    def dial_reports(self) -> Mapping[str, str | None]:
        """Of each initial peer why it is not connected; None: it is."""
        ...

    def addresses(self) -> tuple[str, ...]: ...

    def network_traffic(self) -> NetworkTraffic:
        """What it has sent and received beside requests, and in all."""


@dataclass(frozen=True, eq=False)
class PeerParts:
    """What a peer is made of, in whatever run it takes part."""

    network: Network
    offload: Offload
    """Runs arithmetic on large tensors."""
    mailbox: Mailbox
    events: Events
    config: PeerConfig
    rng: random.Random
    wall_time: Callable[[], float] = time.time
    running_clock: Callable[[], float] = trio.current_time
    """Seconds on a clock that nobody sets, and that runs on while the machine sleeps."""
    archive: CheckpointArchive | None = None
    """Where checkpoints are kept; None: nowhere."""
    disk: Offload | None = None
    """Runs what waits for the disk; None: `offload` does."""
    shelf: BytesShelf = IN_MEMORY
    """Holds what is needed seldom."""
    spent: SpentStore = FORGOTTEN
    """Remembers what pushes have spent of this peer's privacy."""


class BlockProvider(Protocol):
    """Answers questions about checkpoints."""

    async def on_has_blocks(self, peer: PeerId, message: HasBlocks) -> HeldBlocks: ...

    async def on_get_blocks(self, peer: PeerId, message: GetBlocks) -> ThrottledReply[Blocks] | Busy: ...

    async def checkpoints(self, *, with_bytes: bool) -> Checkpoints: ...


class NoBlocks:
    """The provider of a peer that keeps no checkpoints."""

    async def on_has_blocks(self, peer: PeerId, message: HasBlocks) -> HeldBlocks:
        raise NetworkError("this peer keeps no checkpoints")

    async def on_get_blocks(self, peer: PeerId, message: GetBlocks) -> ThrottledReply[Blocks] | Busy:
        raise NetworkError("this peer keeps no checkpoints")

    async def checkpoints(self, *, with_bytes: bool) -> Checkpoints:
        raise NetworkError("this peer keeps no checkpoints")


class Lobby:
    """A peer that is in no run yet."""

    def __init__(self, parts: PeerParts) -> None:
        self.parts = parts
        self.dispatcher = Dispatcher(parts.network.messenger, parts.events)
        """Answers all requests by the run that this peer is in at the time."""
        self.upload_slots = UploadSlotService(parts.network.messenger)
        self.provider: BlockProvider = (
            NoBlocks() if parts.archive is None else ProvideService(parts.archive, parts.offload, self.upload_slots)
        )
        self._opened_at_s = trio.current_time()

    def uptime_s(self) -> float:
        """Since this peer was made."""
        return trio.current_time() - self._opened_at_s
