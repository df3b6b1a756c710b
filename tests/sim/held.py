"""What a simulated peer holds of a run, in bytes: every tensor and every run of bytes that can be reached from its parts."""

import gc
import types
from collections.abc import Iterator
from typing import Any

import torch

from legion_p2p.sim.swarm_peer import SimPeer

LARGE = 1024
"""Bytes of an object that counts: a piece of a shard, not a key or a name."""
OUTSIDE = ("legion_p2p.sim", "trio", "outcome", "contextvars", "tests", "msgspec")
"""Modules whose objects belong to the world, not to the peer."""


def held_bytes(peer: SimPeer) -> int:
    """Of a run, beside the parameters that it trains."""
    own = {p.untyped_storage().data_ptr() for p in peer.view.parameters}
    pieces: dict[int, int] = {}
    for found in reachable(peer.engine, peer.local_trainer, peer.mailbox):
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            if storage.data_ptr() not in own:
                pieces[storage.data_ptr()] = storage.nbytes()
        elif isinstance(found, bytes | bytearray) and len(found) >= LARGE:
            pieces[id(found)] = len(found)
    return sum(n for n in pieces.values() if n >= LARGE)


def reachable(*roots: object) -> Iterator[object]:
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    while waiting:
        at = waiting.pop()
        if id(at) in seen or isinstance(at, types.ModuleType | type | types.FrameType | types.CodeType | str | int | float):
            continue
        seen.add(id(at))
        if type(at).__module__.startswith(OUTSIDE) and id(at) not in map(id, roots):
            continue
        yield at
        waiting += _inside(at)


def _inside(at: Any) -> list[object]:
    if isinstance(at, memoryview):
        return [at.obj]
    if isinstance(at, types.FunctionType):  # not its module's globals
        return [*(at.__closure__ or ()), at.__defaults__]
    return gc.get_referents(at)
