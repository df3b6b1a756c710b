"""The mean of tensors over several peers, once: a run whose parameters start at zero, and one round that waits for everybody.

    gather       until `n_peers` members hold the zeros and say that they will push
    contribute   -x, so that the common model becomes the mean of all x
    follow       until every shard has version 1
    stay         until everybody else has, too: an owner that went at once would take the result with it

An owner pushes its own part only once it sees all of them, and its round waits for its own part: so no round can close on those
who came first. Only version 1 is the mean; what comes later joins a next version, which nobody looks at.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import JoinError, NetworkError
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.run import Run
from legion_p2p.services.shards.replica import LocalChange, Replica

LOOK_EVERY_S = 0.1  # a shard's notify may be rung for somebody else


@dataclass(frozen=True, eq=False)
class AverageResult:
    """What became of `average`."""

    tensors: tuple[Tensor, ...]
    """The means, in the types and shapes of what was handed in."""
    averaged_fraction: float
    """Contributions in the result, of those that were due: 1 when all elements are means over all peers, 0 when nothing came."""
    failed: Mapping[str, str]
    """Who is missing in at least one shard, and why."""
    digest: str
    """Of the result's bytes, in hex: peers with the same digest hold the same bits."""
    sent_bytes: int
    """Since everybody was there; what joining took is not counted."""
    received_bytes: int


@dataclass(frozen=True, eq=False)
class Mean:
    """The same, of one flat tensor."""

    flat: Tensor
    averaged_fraction: float
    failed: Mapping[str, str]
    digest: str
    sent_bytes: int
    received_bytes: int


async def average_once(engine: Run, values: Tensor, n_peers: int, gather_s: float) -> Mean:
    """Average `values` (1-D fp32) with everybody in a run of zeros. In the peer's thread.

    Raises: JoinError, if fewer than `n_peers` came within `gather_s`, or the round is over already; NetworkError, if this peer
    was away while the others went on.
    """
    import torch

    replicas = [engine.shards.replicas[shard] for shard in range(engine.plan.n_shards)]
    if any(replica.chain.version for replica in replicas):
        raise JoinError("this run has averaged already: average under a new name")
    engine.report(Progress(training=True))
    await _meet(engine)
    with trio.move_on_after(gather_s) as gathering:
        while len(_taking_part(engine)) < n_peers:
            await engine.members.changed.wait()
    roster = _taking_part(engine)
    if gathering.cancelled_caught:
        raise JoinError(f"{len(roster)} of {n_peers} peers came within {gather_s:.0f} s")

    before = engine.network.messenger.traffic()
    changes = []
    for shard, replica in enumerate(replicas):
        start, end = engine.plan.bounds(shard)
        changes.append(LocalChange(shard, 0, replica.reference, values[start:end], tokens=1, steps=1))
    engine.contribute(changes)

    async with trio.open_nursery() as nursery:
        outcomes = [_Outcome() for _ in replicas]
        for replica, outcome in zip(replicas, outcomes, strict=True):
            nursery.start_soon(_follow, replica, outcome)
    failed: dict[str, str] = {}
    for outcome in outcomes:
        for peer in sorted(roster - outcome.included):
            failed.setdefault(peer, outcome.told.get(peer, "left or died before its contribution was there"))

    engine.report(Progress(training=False, done=True))
    await _meet(engine)
    while not all(a.done for a in engine.members.everyone()):
        await engine.members.changed.wait()
    late = [replica.shard for replica, outcome in zip(replicas, outcomes, strict=True) if outcome.version != 1]
    if late:
        raise NetworkError(f"shard {late[0]} went on before this peer saw the mean: it was away; average again")
    traffic = engine.network.messenger.traffic()
    due = max(n_peers, len(roster))
    shares = [o.reference.numel() * len(o.included) / due for o in outcomes]
    return Mean(
        torch.cat([outcome.reference for outcome in outcomes]),
        math.fsum(shares) / engine.plan.numel,
        failed,
        hashlib.sha256(b"".join(outcome.digest for outcome in outcomes)).hexdigest(),
        traffic.sent_bytes - before.sent_bytes,
        traffic.received_bytes - before.received_bytes,
    )


class _Outcome:
    """Of one shard, as it was when this peer first saw it changed: later versions are nobody's mean."""

    version: int
    reference: Tensor
    digest: bytes
    included: set[str]
    told: dict[str, str]


async def _follow(replica: Replica, outcome: _Outcome) -> None:
    while replica.chain.version < 1:
        with trio.move_on_after(LOOK_EVERY_S):
            await replica.notify.wait()
    chain, last = replica.chain, replica.chain.last()
    outcome.version, outcome.reference, outcome.digest = chain.version, replica.reference, chain.digest
    outcome.included = {inclusion.peer for inclusion in chain.included()}
    outcome.told = {} if last is None else {f.peer: f.reason for f in last.header.failed}


def _taking_part(engine: Run) -> set[PeerId]:
    """Members that hold the zeros and are about to push, or have pushed."""
    return {PeerId(a.peer_id) for a in engine.members.everyone() if a.ready and (a.training or a.done)}


async def _meet(engine: Run) -> None:
    """Tell everybody known at once: gossip may take seconds to find its mesh."""
    async with trio.open_nursery() as nursery:
        for member in engine.members.table.counted():
            nursery.start_soon(engine.members.exchange_with, member.peer_id)
