"""What a peer tells of itself: to the others in announcements, to people in a status."""

import os

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId
from legion_p2p.observe.status import ErrorStatus, MemberStatus, RunStatus, ShardStatus, Status
from legion_p2p.services.run.participant import Participant


def describe(part: Participant) -> Announcement:
    """The announcement that this peer makes now, but for its order in time."""
    progress = part.progress
    traffic = part.messenger.traffic()
    bandwidth = part.messenger.bandwidth()
    ready = part.ready and not part.members.was_away  # who was away follows before it owns
    return Announcement(
        peer_id=part.me,
        run=part.run,
        addresses=part.messenger.addresses()[:16],
        region=part.region,
        coordinate=part.regions.coordinate,
        testimonies=part.regions.testimonies,
        weight=part.weight,
        ready=ready,
        training=progress.training and ready,
        done=progress.done and part.nothing_pending(),
        step=progress.step,
        run_step=part.own_run_step(),
        tokens=progress.tokens,
        tokens_per_s=progress.tokens_per_s,
        step_s=progress.step_s,
        loss=progress.loss,
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        upload_bps=_least(bandwidth.upload_bps, bandwidth.upload_limit_bps),
        download_bps=_least(bandwidth.download_bps, bandwidth.download_limit_bps),
        relay=part.config.volunteer_relay,
        marks=part.shards.marks(),
        epoch=progress.epoch,
        chunks=progress.chunks,
    )


def _least(*known: float | None) -> float:
    return min((bps for bps in known if bps is not None), default=0.0)


def status(part: Participant) -> Status:
    """What this peer knows now. Possible at any time, also before it is in a run."""
    traffic = part.messenger.traffic()
    bandwidth = part.messenger.bandwidth()
    progress = part.progress
    in_run = part.in_run
    return Status(
        peer_id=part.me,
        addresses=part.network.addresses(),
        run=RunStatus(part.run, part.spec.name) if in_run and part.spec else None,
        region=part.region,
        state=_state(part),
        step=progress.step,
        members=_member_rows(part) if in_run else (),
        shards=_shard_rows(part) if in_run else (),
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        last_round=part.shards.last_round if in_run else None,
        errors=tuple(ErrorStatus(e.at, e.name, str(e.fields.get("text", ""))) for e in list(part.events.errors)),
        rounds=part.shards.rounds if in_run else 0,
        loss=progress.loss,
        tokens=progress.tokens,
        tokens_per_s=progress.tokens_per_s,
        local_steps=part.local_steps,
        target_steps=progress.target_steps,
        remaining_s=progress.remaining_s,
        uptime_s=part.uptime_s(),
        common_digest=part.common_digest() if in_run else "",
        blocked_fraction=progress.blocked_fraction,
        push_codec=part.shards.push_codec if in_run else "",
        update_codec=part.shards.update_codec if in_run else "",
        upload_bps=bandwidth.upload_bps,
        download_bps=bandwidth.download_bps,
        upload_limit_bps=bandwidth.upload_limit_bps,
        download_limit_bps=bandwidth.download_limit_bps,
        bytes_in_region=part.messenger.regional.in_region,
        bytes_across=part.messenger.regional.across,
        pid=os.getpid(),
    )


def _state(part: Participant) -> str:
    if part.leaving:
        return "leaving"
    if not part.ready:
        return "joining"
    if part.progress.done:
        return "done"
    return part.progress.state or ("training" if part.progress.training else "waiting")


def _member_rows(part: Participant) -> tuple[MemberStatus, ...]:
    owned: dict[PeerId, int] = {}
    for shard in part.shards.replicas:
        owner = part.shards.ownership(shard).owner
        if owner is not None:
            owned[owner] = owned.get(owner, 0) + 1
    rows = [(describe(part), "ALIVE")]
    rows += [(m.announcement, m.liveness.value) for m in part.members.table.members()]
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
            rtt_s=part.messenger.rtt_s(peer_of(a)),
        )
        for a, liveness in sorted(rows, key=lambda row: row[0].peer_id)
    )


def _shard_rows(part: Participant) -> tuple[ShardStatus, ...]:
    rows = []
    for shard, replica in sorted(part.shards.replicas.items()):
        owners = part.shards.ownership(shard)
        rows.append(ShardStatus(shard, replica.chain.version, replica.chain.digest.hex(), owners.owner, owners.standby))
    return tuple(rows)
