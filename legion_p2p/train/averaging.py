"""The mean of tensors over several peers, once: a run whose parameters start at zero, and one round that waits for all members.

    gather       until `n_peers` members hold the zeros and say that they will push
    contribute   -x, so that the common model becomes the mean of all x
    follow       until every shard has version 1
    stay         until all others have it, too: an owner that left at once would take the result with it

An owner pushes its own part only once it sees all of them, and its round waits for its own part: so no round can close on those
that came first. Only version 1 is the mean; what comes later joins a next version, which nobody looks at.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import trio
from torch import Tensor

from legion_p2p.config import NewRun, Peer
from legion_p2p.config.fields import argument
from legion_p2p.config.forms import refusal
from legion_p2p.config.old_names import AVERAGE_ARGUMENTS, explains
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.roles import Role
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import IncompatibleModelError, JoinError, NetworkError, NonFiniteError, UsageError
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.shards.replica import LocalChange, Replica
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.arguments import must_train
from legion_p2p.train.described import check_codecs
from legion_p2p.train.entering import enter, entry_of
from legion_p2p.train.parameters import param_specs

LOOK_EVERY_S = 0.1  # a shard's notify may be meant for another waiter


@dataclass(frozen=True, eq=False)
class AverageResult:
    """What became of `average`."""

    tensors: tuple[Tensor, ...]
    """The means, in the types and shapes of what was handed in."""
    averaged_fraction: float
    """Contributions in the result, of those that were due: 1 when all elements are means over all peers, 0 when nothing came."""
    failed: Mapping[str, str]
    """The members that are missing in at least one shard, and why."""
    digest: str
    """Of the result's bytes, in hex: peers with the same digest hold the same bits."""
    sent_bytes: int
    """Since all members were there; what joining took is not counted."""
    received_bytes: int


@explains(AVERAGE_ARGUMENTS)
def average(
    tensors: Sequence[Tensor],
    run: str | NewRun,
    *,
    n_peers: int,
    initial_peers: Iterable[str] = (),
    codec: str = "fp32",
    gather_s: float = 60.0,
    peer: Peer = Peer(),
) -> AverageResult:
    """The mean of these tensors over `n_peers` peers, each of which calls this with tensors of the same shapes. Blocks.

        result = legion.average([grad], run="grads/17", initial_peers=[...], n_peers=4)

    Every peer ends with the same bits. One of them creates the run, with `run=NewRun("grads/17")`. A peer that dies on the way is
    missing in the result and named in `failed`; one that is merely slow is waited for.

    Args:
        tensors: what to average; they are not changed.
        run: name of the run to join, or a NewRun("name") to create it; a name averages once.
        n_peers: how many peers take part, this one included.
        initial_peers: addresses of any peers or bootstrap nodes, or "@file".
        codec: how the bytes travel; every peer must name the same one. With fp32 the mean is exact.
        gather_s: seconds until all must have found each other.
        peer: how this peer behaves on the network. It serves no status.

    Raises: JoinError, if fewer came; NonFiniteError; IncompatibleModelError, naming the first tensor that differs; otherwise as
    `Optimizer`.
    """
    entry = entry_of("average", run, initial_peers)
    argument("average(peer=...)", Peer, peer)
    must_train(Role(peer.role))
    argument("average(n_peers=...)", Annotated[int, msgspec.Meta(ge=1)], n_peers)
    argument("average(gather_s=...)", Annotated[float, msgspec.Meta(ge=0)], gather_s)
    given = list(tensors) if isinstance(tensors, Iterable) and not isinstance(tensors, Tensor | str) else []
    if not given or not all(isinstance(tensor, Tensor) for tensor in given):
        raise UsageError(f"average(tensors=...): {refusal(tensors, 'a list of tensors')}")
    named = [(str(i), tensor.detach()) for i, tensor in enumerate(given)]
    view = FlatView(named)
    values = view.snapshot()
    if not bool(values.isfinite().all()):
        raise NonFiniteError("the tensors to average contain NaN or infinity")
    params = param_specs(view)
    zeros = values.new_zeros(values.shape)
    creation = None
    if entry.new_run is not None:
        if entry.new_run != NewRun(entry.new_run.name):
            raise UsageError("average(run=...): a NewRun that averages has a name only; how it averages follows from that")
        rounds = RoundSpec(local_steps=1, push_codec=codec, update_codec=codec, aggregation="mean", quorum=1.0, synchronous=True)
        creation = RunCreation(RunSpec(entry.name, "", params, round=rounds), zeros)
        check_codecs(creation.spec)

    def fit(spec: RunSpec) -> Sequence[ParamSpec]:
        if spec.round.push_codec != codec or spec.round.quorum < 1:
            raise IncompatibleModelError(
                f"run {spec.name!r} averages with codec {spec.round.push_codec!r}, asked for was {codec!r}"
            )
        return params

    quiet = msgspec.structs.replace(peer, status=False, search_s=gather_s)
    thread = enter(entry, quiet, creation=creation, params=fit, start=zeros)
    try:
        mean: Mean = thread.wait(average_once, thread.engine, values, n_peers, gather_s)
    finally:
        thread.close()
    results = tuple(tensor.new_empty(tensor.shape) for _, tensor in named)
    FlatView([(name, result) for (name, _), result in zip(named, results, strict=True)]).assign_slice(0, mean.flat)
    return AverageResult(results, mean.averaged_fraction, mean.failed, mean.digest, mean.sent_bytes, mean.received_bytes)


@dataclass(frozen=True, eq=False)
class Mean:
    """The same, of one flat tensor."""

    flat: Tensor
    averaged_fraction: float
    failed: Mapping[str, str]
    digest: str
    sent_bytes: int
    received_bytes: int


async def average_once(engine: ActiveRun, values: Tensor, n_peers: int, gather_s: float) -> Mean:
    """Average `values` (1-D fp32) with all members of a run of zeros. In the peer's thread.

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
    while not all(a.done for a in engine.members.roster.everyone()):
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


def _taking_part(engine: ActiveRun) -> set[PeerId]:
    """Members that hold the zeros and are about to push, or have pushed."""
    return {PeerId(a.peer_id) for a in engine.members.roster.everyone() if a.ready and a.role.trains and (a.training or a.done)}


async def _meet(engine: ActiveRun) -> None:
    """Tell all known members at once, because gossip may take seconds to find its mesh."""
    async with trio.open_nursery() as nursery:
        for member in engine.members.table.counted():
            nursery.start_soon(engine.members.exchange_with, member.peer_id)
