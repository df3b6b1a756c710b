"""What a peer answers: each request goes to the service that it concerns.

    of any peer, at any time                               -> which run this peer is in, and blocks of its checkpoints
    of a peer that the run does not admit                  -> refused, except for the questions which run this is
    about a run that it is not in, or before it is in one  -> refused
    while it has left                                      -> refused as a failure of the network: the sender tries the next owner
    anything else                                          -> answered by the members, the shards, or the sync between regions

A request that cannot be read, or that carries what is not allowed, is reported, and raises the score of its sender.
"""

import math
from typing import Any

from legion_p2p.core.identity import PeerId
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import (
    REQUESTS,
    Accusation,
    Checkpoints,
    Done,
    Exchange,
    Exchanged,
    GetBlocks,
    GetCheckpoints,
    GetRepresentative,
    GetRuns,
    GetSpec,
    HasBlocks,
    Ping,
    PingFor,
    RelayRequest,
    Request,
    RunsFound,
    RunSummary,
    SpecFound,
    SyncRequest,
)
from legion_p2p.errors import IncompatibleModelError, NetworkError, UnknownRunError
from legion_p2p.services.rpc import Scope
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.lobby import Lobby

BESIDE_BYTES = 2 << 20  # what stands beside a shard: an update's header takes up to 1 MiB, and evidence half of that


def answer_before(lobby: Lobby) -> None:
    """Answer as a peer that is in no run yet, from now on."""

    async def refuse(peer: PeerId, message: Request[Any]) -> Done:
        raise IncompatibleModelError("this peer is not in that run")

    async def get_spec(peer: PeerId, message: GetSpec) -> SpecFound:
        raise UnknownRunError(message.run, 0)

    async def get_runs(peer: PeerId, message: GetRuns) -> RunsFound:
        return RunsFound(())

    dispatcher = lobby.dispatcher
    for kind in REQUESTS:
        dispatcher.on(kind, refuse)
    dispatcher.on(GetSpec, get_spec)
    dispatcher.on(GetRuns, get_runs)
    dispatcher.on(HasBlocks, lobby.provider.on_has_blocks)
    dispatcher.on(GetBlocks, lobby.provider.on_get_blocks)
    lobby.parts.network.messenger.serve(dispatcher.handle)


def answer(run: ActiveRun) -> None:
    """Answer as a member of a run, from now on."""

    async def get_spec(peer: PeerId, message: GetSpec) -> SpecFound:
        if message.run not in (run.spec.name, run.id):
            raise UnknownRunError(message.run, 0)
        return SpecFound(run.signed.spec, run.signed.signature)

    async def get_runs(peer: PeerId, message: GetRuns) -> RunsFound:
        return RunsFound((RunSummary(run.spec.name, run.id, 1 + run.members.table.n_counted),))

    async def get_checkpoints(peer: PeerId, message: GetCheckpoints) -> Checkpoints:
        if message.run != run.id:
            return Checkpoints(())
        return await run.lobby.provider.checkpoints(with_bytes=message.with_bytes)

    def check_admitted(peer: PeerId, message: Request[Any]) -> None:
        if not isinstance(message, Exchange):  # which brings what the peer is admitted by
            run.members.access.must_be_admitted(peer)

    def check_in_run(peer: PeerId, message: Request[Any]) -> None:
        check_admitted(peer, message)
        if run.presence.left:  # no IncompatibleModelError: a peer that pushes here should try again, with the next owner
            raise NetworkError("this peer is leaving the run")
        if getattr(message, "run", run.id) != run.id:  # an update names its run in its header, which the shards look at
            raise IncompatibleModelError("this peer is not in that run")

    dispatcher = run.lobby.dispatcher
    dispatcher.on(GetSpec, get_spec)
    dispatcher.on(GetRuns, get_runs)
    of_admitted = dispatcher.scope(check_admitted)
    of_admitted.on(HasBlocks, run.lobby.provider.on_has_blocks)
    of_admitted.on(GetBlocks, run.lobby.provider.on_get_blocks)
    of_admitted.on(GetCheckpoints, get_checkpoints)
    in_run = dispatcher.scope(check_in_run, run.members.heard)
    _answer_about_members(in_run, run)
    sync = run.region_sync if run.unit_sync is None else run.unit_sync
    in_run.on(SyncRequest, sync.on_request)
    in_run.on(GetRepresentative, sync.on_get_representative)
    in_run.on(RelayRequest, run.region_sync.relay.on_request)
    run.shards.answer(in_run)
    run.questions.answer(in_run)
    if run.units is not None:
        run.units.answer(in_run)
    run.messenger.serve(dispatcher.handle, longest_request(run.spec))


def longest_request(spec: RunSpec) -> float:
    """No member sends a longer one, in bytes: a shard in fp32, and what stands beside it. Those about units may be as long as a
    frame.
    """
    if spec.sharding != "none":
        return math.inf
    plan = spec.plan()
    return 4 * plan.size(0) + BESIDE_BYTES


def _answer_about_members(in_run: Scope, run: ActiveRun) -> None:
    members = run.members

    async def exchange(peer: PeerId, message: Exchange) -> Exchanged:
        return members.on_exchange(peer, message)

    async def ping(peer: PeerId, message: Ping) -> Done:
        return Done()

    async def ping_for(peer: PeerId, message: PingFor) -> Done:
        return await members.ping_helper.on_ping_for(peer, message)

    async def accusation(peer: PeerId, message: Accusation) -> Done:
        return members.on_accusation(peer, message)

    in_run.on(Exchange, exchange)
    in_run.on(Ping, ping)
    in_run.on(PingFor, ping_for)
    in_run.on(Accusation, accusation)
