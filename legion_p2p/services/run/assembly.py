"""A peer's part in a run, put together: what its services are built on, and whether the run takes this peer at all."""

from dataclasses import replace

import msgspec

from legion_p2p.config.engine import AUTO_REGION, DEFAULT_REGION
from legion_p2p.core.run import RunSpec, SignedSpec, run_id
from legion_p2p.errors import CodecError, IncompatibleModelError, JoinError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.traffic import RegionalMessenger
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.lobby import Lobby
from legion_p2p.services.run.resume import Restored
from legion_p2p.services.run.status import describe
from legion_p2p.tensor import codec


def assembled(lobby: Lobby, signed: SignedSpec, spec: RunSpec, restored: Restored | None) -> ActiveRun:
    """All of it, which answers nobody yet. `restored`: what this peer resumes from.

    Raises: IncompatibleModelError; JoinError, if the run does not admit this peer.
    """
    parts, network = lobby.parts, lobby.parts.network
    try:
        for name in spec.round.codecs():
            codec.get(name)
    except CodecError as unknown:
        raise IncompatibleModelError(f"run {spec.name!r} needs another version of this program: {unknown}") from unknown
    run: ActiveRun
    messenger = RegionalMessenger(network.messenger, lambda peer: run.is_across(peer), parts.wall_time)
    config = parts.config
    if spec.sharding == "full" and config.privacy is not None:
        raise JoinError(
            f"run {spec.name!r} is sharded: gradients of every step go to others, and dp= adds no noise to those; "
            "join a run that is not sharded, or leave dp out"
        )
    # Round trips do not show which members are near enough to hold a model together.
    if spec.sharding == "full" and config.region == AUTO_REGION:
        config = msgspec.structs.replace(config, region=DEFAULT_REGION)
    ctx = PeerContext(
        run=run_id(signed),
        spec=spec,
        identity=network.identity,
        config=config,
        messenger=messenger,
        reachability=network.reachability,
        discovery=network.discovery,
        gossip=network.gossip,
        offload=parts.offload,
        disk=parts.disk or parts.offload,
        upload_slots=lobby.upload_slots,
        events=parts.events,
        rng=parts.rng,
        wall_time=parts.wall_time,
        running_clock=parts.running_clock,
        shelf=parts.shelf,
        spent=parts.spent,
    )
    members = MemberService(ctx, lambda: describe(run))
    refusal = members.access.admission.refusal(ctx.me, ctx.config.token, ctx.wall_time())
    if refusal:
        raise JoinError(f"run {spec.name!r} does not admit this peer, {ctx.me}: {refusal}; ask its creator, {spec.creator}")
    resumed_from = None if restored is None else replace(restored, shards=())  # the tensors are held by the shards
    run = ActiveRun(lobby, ctx, signed, messenger, members, resumed_from)
    return run
