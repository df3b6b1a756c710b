"""What services need from the outside, as Protocols.

Two sets of implementations stand behind them: `net` (libp2p) and `sim.network` (in memory, under a virtual clock).
Both pass the suite in tests/contract; services cannot tell them apart.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import trio

from legion_p2p.core.checkpoint_policy import StoredRun
from legion_p2p.core.cids import Cid
from legion_p2p.core.contact import Bandwidth, Contact, Handler, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import Base, StoredMoments, StoredShard
from legion_p2p.core.observers import Observers
from legion_p2p.core.priority import Priority
from legion_p2p.core.privacy import Spent
from legion_p2p.core.reach import OwnReach, PeerConnection
from legion_p2p.core.run import SignedSpec
from legion_p2p.core.spliced import Bytes
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader

T = TypeVar("T")


class Messenger(Protocol):
    """Requests to peers and their replies, over long-lived streams."""

    @property
    def peer_id(self) -> PeerId: ...

    def serve(self, handler: Handler, longest: float = math.inf) -> None:
        """Answer all requests with `handler` from now on. Before the first call they are refused, and so are those of more than
        `longest` bytes, always, as the asker's DecodeError; nothing of them is held."""

    async def request(self, peer: PeerId, body: Bytes, priority: Priority = Priority.CONTROL) -> bytes:
        """Send `body` and wait for the reply. Connects first where needed. Deadlines are the caller's.

        What goes first where the upload is not enough for everything: see Priority. A request may have been carried out even if
        this is cancelled or raises UnreachableError. Services use `Rpc.ask` instead.

        Raises: UnreachableError; RefusedError, if the other's handler refused; RemoteProtocolError, if it answered garbage;
        UsageError, if `body` is larger than a frame may be.
        """

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Remember where `peer` may be found."""

    def addresses(self) -> tuple[str, ...]:
        """Where this peer listens, without the trailing /p2p/ part."""

    def connected(self) -> frozenset[PeerId]:
        """The peers that there is a connection to now."""

    def rtt_s(self, peer: PeerId) -> float | None:
        """The shortest of the last few round trips of control requests, if there were any."""

    def traffic(self) -> Traffic:
        """What was sent and received so far."""

    def bandwidth(self) -> Bandwidth:
        """How fast sending and receiving have proved to be, and what limits them."""

    def report(self, peer: PeerId, misbehaviour: str) -> None:
        """Count misbehaviour against `peer`. After much in a short time it is disconnected, and refused for a while."""


class Reachability(Protocol):
    """What the network found out of how peers reach each other. No call waits."""

    @property
    def changed(self) -> Observers[OwnReach]:
        """Told whenever `own` is another one than before."""
        ...

    @property
    def regained(self) -> Observers[PeerId]:
        """Told of each peer that is connected again, after this machine's network had changed or was away."""
        ...

    def own(self) -> OwnReach:
        """How others reach this peer."""

    def connection(self, peer: PeerId) -> PeerConnection:
        """How this peer reaches `peer` now."""

    def heard_of_relay(self, peer: PeerId) -> None:
        """`peer` says that it carries circuits: it may be asked to, where this peer needs relays."""

    def is_cut_off(self) -> bool:
        """This machine has no network, as far as it can tell: then the silence of others says nothing about them."""


class Discovery(Protocol):
    """Who provides a key, as far as anybody knows."""

    async def provide(self, key: str) -> None:
        """Be found under `key` from now on, until `withdraw`. Renewed in the background; returns after the first attempt."""

    async def withdraw(self, key: str) -> None:
        """No longer be found under `key`: at once by peers that ask this one, and within one lifetime by others."""

    async def find(self, key: str, limit: int = 20) -> tuple[Contact, ...]:
        """Peers that provide `key` and confirmed it just now; never this one. Empty if there are none."""

    def unreachable(self, key: str) -> Mapping[PeerId, str]:
        """Peers that were named as providers of `key` in the last `find` and could not be asked, and what was tried. Bounded."""


def _anything(data: bytes) -> bool:
    return True


class Gossip(Protocol):
    """Publish and subscribe, best effort."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Send `data` to all who subscribed to `topic`, this peer excluded."""

    def subscribe(self, topic: str) -> AbstractAsyncContextManager["trio.MemoryReceiveChannel[bytes]"]:
        """What others publish there. Bounded: what a slow reader leaves behind is dropped, oldest first."""

    def listen(
        self, topic: str, heard: Callable[[bytes], None], is_valid: Callable[[bytes], bool] = _anything
    ) -> AbstractAsyncContextManager[None]:
        """Call `heard` with what others publish there, at once: it must neither take long nor raise. Cheaper than `subscribe`,
        because no task has to wake for each message. What is not valid is neither heard nor passed on, and the peer that it came
        from is reported, since it should have looked."""


class Offload(Protocol):
    """Runs what would hold up the event loop: arithmetic on large tensors, disk."""

    async def __call__(self, fn: Callable[..., T], *args: Any) -> T: ...


class BytesShelf(Protocol):
    """Holds bytes that are needed seldom elsewhere than in memory, where it can."""

    def keep(self, data: bytes | memoryview) -> bytes | memoryview:
        """The same bytes, to be held instead of `data`. May take as long as writing them to a disk's cache."""


class MemoryShelf:
    """Holds them in memory."""

    def keep(self, data: bytes | memoryview) -> bytes | memoryview:
        return data


IN_MEMORY = MemoryShelf()


class SpentStore(Protocol):
    """Where it is written down what pushes have spent of a peer's privacy: store/spent_file.py. All of it waits for the disk."""

    def load(self, run: str) -> Spent:
        """Raises: StoreError."""

    def save(self, run: str, spent: Spent) -> None:
        """Raises: StoreError."""


class NoSpentStore:
    """That of a peer that has no key file, and so is another peer the next time."""

    def load(self, run: str) -> Spent:
        return Spent()

    def save(self, run: str, spent: Spent) -> None:
        pass


FORGOTTEN = NoSpentStore()


class CheckpointArchive(Protocol):
    """The checkpoints of one run on a disk (store/archive.py). Every call may wait for the disk: make them through an Offload,
    one at a time; only `get` and `size_of` may be called meanwhile.

    What fails raises StoreError, and leaves what is stored as it was.
    """

    @property
    def newest(self) -> Cid | None:
        """The newest checkpoint of the run that is open."""

    @property
    def kept(self) -> tuple[Cid, ...]:
        """All checkpoints of the run that is open, the newest first."""

    @property
    def shared(self) -> tuple[Cid, ...]:
        """Prepared data sets of which `get` has the blocks as well."""

    def find(self, run: str) -> tuple[StoredRun, ...]:
        """The checkpoints of runs of this name or id, the newest first."""

    def losses(self, run: str) -> str:
        """Which checkpoints of the run of this name or id lack blocks, and what to do, in words; empty where none does."""

    def open(self, signed: SignedSpec, stored: StoredRun | None = None) -> None:
        """Go on from what is stored of a run; without a checkpoint of it, begin. Raises: DecodeError too."""

    def shard(self, shard: int) -> tuple[Base, bytes, Iterator[bytes], Iterator[bytes]]:
        """A shard's base, its fp32 bytes, the encoded updates since, and those after the checkpoint. Raises: DecodeError too."""

    def moments(self, cid: Cid) -> StoredMoments:
        """What the optimizer remembers, as it is named in a checkpoint's state. Raises: DecodeError too."""

    def moment(self, shard: int, base: Cid) -> bytes:
        """The fp32 bytes of one of them, of one shard. Raises: DecodeError too."""

    def last_state(self) -> tuple[int, dict[str, Any]]:
        """The step, and what else the trainer needs to go on, as last written. Raises: DecodeError too."""

    def remembered(self) -> list[tuple[str, tuple[str, ...]]]:
        """Peers of the run, and the addresses at which they last were."""

    def get(self, cid: Cid) -> bytes:
        """A block, checked. Raises: MissingBlockError."""

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes; None where it is not here."""

    def put_all(self, blocks: Iterable[tuple[Cid, bytes | memoryview]]) -> None:
        """Store blocks that were fetched. What no checkpoint comes to need is removed when one is made."""

    def adopt(self, state: StoredShard) -> None:
        """A shard is here as this says: all blocks of it are."""

    def append(self, updates: Sequence[tuple[UpdateHeader, Update]], step: int, state: Mapping[str, Any] | None = None) -> None:
        """Write updates that lead on from what is stored, and if given the trainer's state."""

    def remember(self, contacts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Write down where other members are."""

    def put_base(
        self, shard: int, version: int, digest: bytes, included: Sequence[Inclusion], data: memoryview, *, salt: bytes = b""
    ) -> None:
        """Store a shard whole; `data` is its little-endian fp32 bytes."""

    def append_whole(
        self, shard: int, version: int, digest: bytes, included: Sequence[Inclusion], data: memoryview, *, salt: bytes = b""
    ) -> None:
        """The same, quickly: the next checkpoint makes blocks of it."""

    def put_moment(self, step: int, data: memoryview) -> Cid:
        """Store one moment of a shard, for `put_moments`."""

    def put_moments(self, moments: StoredMoments) -> Cid:
        """Store what the optimizer remembers, for the state of the next checkpoint."""

    @property
    def journal_bytes(self) -> int:
        """What was written since the newest checkpoint."""

    def recover(self) -> None:
        """After a failed write: go on from what the newest checkpoint and the journal have, and remove what neither needs."""

    def holds(self, shard: int, version: int, digest: bytes) -> bool:
        """Whether what is stored of a shard leads to this state."""

    def publish(self, step: int, created_s: int, state: Mapping[str, Any]) -> Cid:
        """Make a checkpoint of all shards as they are stored, and prune what need not be kept."""
