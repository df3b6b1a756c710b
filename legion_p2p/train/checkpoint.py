"""A stored checkpoint as tensors: shard by shard, or parameter by parameter, without ever holding all of them."""

from collections.abc import Callable, Iterable, Iterator

import msgspec
import torch
from torch import Tensor

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import Base, StoredShard
from legion_p2p.core.plan import ParamSpec
from legion_p2p.errors import DecodeError
from legion_p2p.services.checkpoint.replay import replay
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import base_bytes, get_manifest, get_shards, get_spec, update_bytes
from legion_p2p.tensor.flatten import digest, from_fp32_bytes

Progress = Callable[[int], None]
"""Called with the number of elements that are done since the last call."""


def no_progress(n: int) -> None:
    """Tells nobody."""


class Checkpoint:
    """A manifest and what it leads to. Everything is checked on the way: bytes, signatures, chains of updates, digests."""

    def __init__(self, store: BlockStore, cid: Cid) -> None:
        """Raises: MissingBlockError; DecodeError; SignatureError."""
        self.cid = cid
        self.store = store
        self.manifest = get_manifest(store, cid)
        self.signed, self.spec = get_spec(store, self.manifest)
        self.plan = self.spec.plan()

    def states(self) -> Iterator[tuple[StoredShard, Base]]:
        """Every shard's state and base, in order. Raises: MissingBlockError; DecodeError."""
        return get_shards(self.store, self.manifest, self.plan)

    def shard(self, state: StoredShard, base: Base) -> Tensor:
        """A shard in the version of `state`: 1-D fp32. Raises: MissingBlockError; DecodeError; SignatureError."""
        n_elements = self.plan.size(state.shard)
        reference = from_fp32_bytes(base_bytes(self.store, base, n_elements))
        messages = (update_bytes(self.store, leaves) for leaves in state.log)
        for _, after in replay(str(self.manifest.run), self.spec, state.shard, base.version, reference, messages):
            reference = after
        if digest(reference) != state.digest:
            raise DecodeError(f"shard {state.shard} in version {state.version} is not what its digest says")
        return reference

    def shards(self, progress: Progress = no_progress) -> Iterator[Tensor]:
        """All shards, in order. Raises: MissingBlockError; DecodeError; SignatureError."""
        for state, base in self.states():
            reference = self.shard(state, base)
            progress(len(reference))
            yield reference

    def parameters(self, progress: Progress = no_progress) -> Iterator[tuple[ParamSpec, Tensor]]:
        """All parameters, in the run's order, in their shapes. Raises: MissingBlockError; DecodeError; SignatureError."""
        pieces = cut(self.shards(progress), [param.numel for param in self.spec.params])
        for param, flat in zip(self.spec.params, pieces, strict=True):
            yield param, flat.view(param.shape)


def cut(pieces: Iterable[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    """The same elements in pieces of other sizes, 1-D; at most one piece of either kind is held. There are enough of them."""
    waiting = iter(pieces)
    rest = torch.empty(0, dtype=torch.float32, device="cpu")
    for size in sizes:
        out = torch.empty(size, dtype=torch.float32, device="cpu")
        filled = 0
        while filled < size:
            if not len(rest):
                rest = next(waiting).reshape(-1)
            n = min(size - filled, len(rest))
            out[filled : filled + n] = rest[:n]
            rest, filled = rest[n:], filled + n
        yield out


class Change(msgspec.Struct, frozen=True):
    """How far one parameter moved."""

    name: str
    numel: int
    changed: int
    """Elements of other bits."""
    relative: float
    """Euclidean norm of the change over that of the parameter before; the change's own norm, where that was zero."""
    largest: float


def changes_between(a: Checkpoint, b: Checkpoint, progress: Progress = no_progress) -> list[Change]:
    """From `a` to `b`, parameter by parameter; both have the same ones. Raises: MissingBlockError; DecodeError."""
    changes = []
    for (param, before), (_, after) in zip(a.parameters(progress), b.parameters(), strict=True):
        moved = after.double() - before.double()
        norm, size = float(moved.norm()), float(before.double().norm())
        n_changed = int((before.view(torch.int32) != after.view(torch.int32)).sum())
        largest = float(moved.abs().max()) if moved.numel() else 0.0
        changes.append(Change(param.name, param.numel, n_changed, norm / size if size else norm, largest))
    return changes
