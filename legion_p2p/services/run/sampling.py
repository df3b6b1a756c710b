"""How a peer and its run stand, as an event every few seconds: what curves of a night are made of."""

from collections.abc import Sequence

import trio

from legion_p2p.core.announcement import Announcement
from legion_p2p.services.run.active_run import ActiveRun

SAMPLE_EVERY_S = 3.0  # a curve that somebody watches moves; a night is 10,000 lines, of 200 bytes each
MOST_OF_THE_TIME = 0.002  # that sampling may take: in a run of thousands of members samples become rarer


async def sample_forever(run: ActiveRun) -> None:
    """Emit the event `sample` until cancelled."""
    while True:
        began = trio.current_time()
        emit_sample(run)
        await trio.sleep(max(SAMPLE_EVERY_S, (trio.current_time() - began) / MOST_OF_THE_TIME))


def emit_sample(run: ActiveRun) -> None:
    """Say how all of it stands now, by what the members announce."""
    members = run.members.roster.everyone()
    traffic = run.messenger.traffic()
    run.events.emit(
        "sample",
        step=run.progress.step,
        tokens=run.progress.tokens,
        loss=run.progress.loss,
        tokens_per_s=round(run.progress.tokens_per_s, 1),
        swarm_loss=mean_loss(members),
        swarm_tokens_per_s=round(sum(member.tokens_per_s for member in members if member.training), 1),
        n_members=len(members),
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
    )


def mean_loss(members: Sequence[Announcement]) -> float | None:
    """Of the members that train, each counting the same; None where none says."""
    losses = [member.loss for member in members if member.training and member.loss is not None]
    return round(sum(losses) / len(losses), 5) if losses else None
