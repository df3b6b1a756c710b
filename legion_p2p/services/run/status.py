"""What a peer says of itself: to the others in announcements, to people in a status."""

import os

import msgspec
import trio

from legion_p2p.core.announcement import MAX_TROUBLE_CHARS, Announcement, peer_of
from legion_p2p.core.control import Wish
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import shown
from legion_p2p.core.messages.base import MAX_COUNT
from legion_p2p.core.reach import OwnReach
from legion_p2p.observe.books import books_of, shard_rows
from legion_p2p.observe.status import (
    ConnectionStatus,
    ContactStatus,
    ErrorStatus,
    MemberStatus,
    ReachStatus,
    RunStatus,
    ShardStatus,
    ShardTrafficRow,
    Status,
    TargetStatus,
)
from legion_p2p.services.ports import Reachability
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.lobby import Lobby
from legion_p2p.services.sharding.service import UnitService

FP32_BYTES = 4
MAX_ANNOUNCED_ADDRESSES = 16  # of one peer: more make every announcement longer, and hardly any of them can be dialed


def describe(run: ActiveRun) -> Announcement:
    """The announcement that this peer makes now, without its order in time."""
    progress = run.progress
    traffic = run.messenger.traffic()
    bandwidth = run.messenger.bandwidth()
    marks = shown(run.shards.marks())
    ready = run.presence.ready and not run.members.absence.was_away  # a peer that was away catches up before it owns
    return Announcement(
        peer_id=run.me,
        run=run.id,
        addresses=run.messenger.addresses()[:MAX_ANNOUNCED_ADDRESSES],
        region=run.region,
        coordinate=run.regions.coordinate,
        testimonies=run.regions.testimonies,
        weight=run.weight.value,
        ready=ready,
        training=progress.training and not progress.paused and ready and run.role.trains,
        done=run.has_finished(),
        step=progress.step,
        run_step=run.steps.own(),
        tokens=progress.tokens,
        tokens_per_s=0.0 if progress.paused else progress.tokens_per_s,
        step_s=progress.step_s,
        loss=progress.loss if run.ctx.config.privacy is None else None,  # it says something of the text, without noise
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        upload_bps=_least(bandwidth.upload_bps, bandwidth.upload_limit_bps),
        download_bps=_least(bandwidth.download_bps, bandwidth.download_limit_bps),
        relay=run.ctx.config.volunteer_relay and run.units is None,  # a member of a sharded run has no copy to sync
        marks=marks.marks,
        epoch=progress.epoch,
        chunks=progress.chunks,
        token=run.ctx.config.token,
        revocations=run.members.access.revocations(),
        stalled=run.shards.stalls.named(trio.current_time()),
        avoided=run.shards.forwarder.avoided(),
        trouble=progress.trouble[:MAX_TROUBLE_CHARS],
        reach=run.reach.now(),
        role=run.role,
        circuits=run.ctx.reachability.own().circuits,
        paused=progress.paused,
        run_tokens=min(run.target.own_tokens(), MAX_COUNT),
        reached=run.target.reached,
        test=b"" if run.questions.ledger is None else run.questions.ledger.mark,
        test_round=0 if run.questions.ledger is None else run.questions.ledger.answered_round,
        marks_digest=marks.digest,
        version=marks.version,
    )


def _least(*known: float | None) -> float:
    return min((bps for bps in known if bps is not None), default=0.0)


def status_before(lobby: Lobby) -> Status:
    """What a peer that is in no run yet knows."""
    network, events = lobby.parts.network, lobby.parts.events
    traffic = network.messenger.traffic()
    bandwidth = network.messenger.bandwidth()
    connections = tuple(_connection_row(network.reachability, peer) for peer in sorted(network.messenger.connected()))
    return Status(
        peer_id=network.identity.peer_id,
        addresses=network.addresses(),
        run=None,
        region="",
        state="joining",
        step=0,
        members=(),
        shards=(),
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        last_round=None,
        errors=tuple(ErrorStatus(e.at, e.name, str(e.fields.get("text", ""))) for e in list(events.errors)),
        local_steps=1,
        uptime_s=lobby.uptime_s(),
        upload_bps=bandwidth.upload_bps,
        download_bps=bandwidth.download_bps,
        upload_limit_bps=bandwidth.upload_limit_bps,
        download_limit_bps=bandwidth.download_limit_bps,
        n_connected=len(connections),
        reach=_reach_row(network.reachability.own()),
        connections=connections,
        contacts=tuple(ContactStatus(address, problem or "") for address, problem in network.dial_reports.items()),
        pid=os.getpid(),
    )


def status_of(run: ActiveRun) -> Status:
    """What a peer in a run knows now. In the peer's thread."""
    progress, private = run.progress, run.shards.pusher.private
    return msgspec.structs.replace(
        status_before(run.lobby),
        run=RunStatus(run.id, run.spec.name),
        region=run.region,
        state=_state(run),
        step=progress.step,
        members=_member_rows(run),
        shards=_shard_rows(run),
        last_round=run.shards.states.round_log.last_round,
        rounds=run.shards.states.round_log.rounds,
        loss=progress.loss,
        tokens=progress.tokens,
        tokens_per_s=0.0 if progress.paused else progress.tokens_per_s,
        mfu=progress.mfu,
        local_steps=run.local_steps,
        run_step=run.run_step(),
        target_steps=progress.target_steps,
        remaining_s=progress.remaining_s,
        remaining_most_s=progress.remaining_most_s,
        agreement=run.shards.states.round_log.agreement.value,
        common_digest=run.common_digest(),
        former=run.former.tried,
        blocked_fraction=progress.blocked_fraction,
        push_codec=run.shards.states.push_codec,
        update_codec=run.shards.states.update_codec,
        bytes_in_region=run.messenger.regional.in_region,
        bytes_across=run.messenger.regional.across,
        control=run.control.status(),
        target=_target_row(run),
        books=books_of((run.messenger.books,), run.lobby.parts.network.network_traffic(), _shard_traffic_rows(run)),
        test=run.questions.scores(),
        privacy=None if private is None else private.status(),
    )


def _shard_traffic_rows(run: ActiveRun) -> tuple[ShardTrafficRow, ...]:
    return shard_rows(run.messenger.shards, FP32_BYTES * run.plan.numel / run.plan.n_shards)


def _target_row(run: ActiveRun) -> TargetStatus | None:
    target, left = run.target.watch.target, run.target.left()
    if target.is_open_ended:
        return None
    return TargetStatus(
        target.steps, target.tokens, target.loss, run.target.run_tokens(), run.target.watch.reason,
        None if left is None else left.least_s, None if left is None else left.most_s,
    )  # fmt: skip


def _state(run: ActiveRun) -> str:
    if run.presence.leaving:
        return "leaving"
    if not run.presence.ready:
        return "joining"
    if not run.role.trains:
        return "helping"
    if run.progress.done:
        return "done"
    if run.control.wish is Wish.PAUSE:
        return f"paused: {', '.join(run.control.status().reasons)}"
    if run.control.wish.ends:
        return "finishing"
    return run.progress.state or ("training" if run.progress.training else "waiting")


def _member_rows(run: ActiveRun) -> tuple[MemberStatus, ...]:
    owned: dict[PeerId, int] = {}
    owners = [run.shards.ownership(shard).owner for shard in run.shards.replicas]
    if run.units is not None:
        owners = [run.units.table.ownership(unit.index).owner for unit in run.units.table.units]
    for owner in owners:
        if owner is not None:
            owned[owner] = owned.get(owner, 0) + 1
    rows = [(describe(run), "ALIVE")]
    rows += [(m.announcement, m.liveness.value) for m in run.members.table.members()]
    return tuple(
        MemberStatus(
            peer_id=a.peer_id,
            region=a.region,
            liveness=liveness,
            step=a.step,
            tokens_per_s=a.tokens_per_s,
            tokens=a.tokens,
            loss=a.loss,
            training=a.training,
            ready=a.ready,
            done=a.done,
            shards_owned=owned.get(peer_of(a), 0),
            sent_bytes=a.sent_bytes,
            received_bytes=a.received_bytes,
            addresses=a.addresses,
            rtt_s=run.ctx.reachability.connection(peer_of(a)).rtt_s,
            role=a.role.value,
            reach=a.reach.value,
            paused=a.paused,
        )
        for a, liveness in sorted(rows, key=lambda row: row[0].peer_id)
    )


def _reach_row(own: OwnReach) -> ReachStatus:
    return ReachStatus(own.reach.value, own.nat.value, own.why, own.relays, own.circuits)


def _connection_row(reachability: Reachability, peer: PeerId) -> ConnectionStatus:
    connection = reachability.connection(peer)
    return ConnectionStatus(peer, connection.kind.value, connection.relay, connection.rtt_s, connection.rate_bps)


def _shard_rows(run: ActiveRun) -> tuple[ShardStatus, ...]:
    rows = [] if run.units is None else _unit_rows(run.units)
    for shard, replica in sorted(run.shards.replicas.items()):
        owners = run.shards.ownership(shard)
        rows.append(ShardStatus(shard, replica.chain.version, replica.chain.digest.hex(), owners.owner, owners.standby))
    return tuple(rows)


def _unit_rows(units: UnitService) -> list[ShardStatus]:
    """Of a sharded run: the units that this peer holds."""
    rows = []
    for index, held in sorted(units.table.held.items()):
        owners = units.table.ownership(index)
        rows.append(ShardStatus(index, held.version, held.digest.hex(), owners.owner, owners.standby))
    return rows
