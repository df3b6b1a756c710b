"""Leaving a run in order.

    1. this peer is not ready any more, so it owns nothing; its neighbours hear of it at once
    2. what only an owner has goes to the next owners, for at most HAND_OVER_S; people are told where that takes long
    3. from here on requests are refused: a peer that pushes to this one tries the next owner
    4. what is queued for the disk is written, for at most FINISH_S
    5. goodbye to the members and to the DHT, for at most GOODBYE_S

A peer that never held the whole model hands over nothing.
"""

import trio

from legion_p2p.core.departure import HandOverNotices
from legion_p2p.observe.events import HANDING_OVER
from legion_p2p.services.run.active_run import ActiveRun

HAND_OVER_S = 60.0  # to give away what only this peer has: 7 MB at 1 Mbit/s. With a small model it takes a few round trips
FINISH_S = 0.5  # for the disk
GOODBYE_S = 0.75
LEAVE_S = HAND_OVER_S + FINISH_S + GOODBYE_S  # an orderly leave takes at most this long
MAX_TOLD = 16  # members that are told at once that this one leaves


async def leave(run: ActiveRun) -> None:
    """Leave in order; nothing, if this peer is leaving already. Not to be cancelled: each part has its time."""
    was_ready = run.presence.ready
    if not run.presence.leave():
        return
    run.mailbox.close("this peer has left the run")
    if was_ready and run.mailbox.cause is None:  # a peer that has failed may hand over for a minute, and give nothing
        with trio.move_on_after(HAND_OVER_S):
            await _hand_over(run)
    run.presence.gone()
    with trio.move_on_after(FINISH_S):
        await run.checkpoints.finish()
    with trio.move_on_after(GOODBYE_S):
        await run.members.leave(GOODBYE_S)
        await run.advertise.withdraw_all()
    run.events.emit("run.left", run=run.id)


async def _hand_over(run: ActiveRun) -> None:
    """Own nothing, and have all that only an owner has at the next ones."""
    run.members.announcer.announce_soon()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_give_notice, run)
        nursery.start_soon(run.members.announcer.announce_now)
        for member in run.members.roster.in_region()[:MAX_TOLD]:  # a next owner should not have to wait for gossip
            nursery.start_soon(run.members.exchange_with, member.peer_id)
        run.shards.on_members_changed()
        await run.shards.hand_over_all()
        if run.units is not None:
            await run.units.hand_over_all()
        await run.region_sync.relay.finish_all()
        nursery.cancel_scope.cancel()


async def _give_notice(run: ActiveRun) -> None:
    """Where it takes longer than a moment, say how long."""
    notices = HandOverNotices(trio.current_time())
    while True:
        await trio.sleep_until(notices.next_at)
        n_shards, left_bytes = run.shards.handover.to_hand_over
        bandwidth = run.messenger.bandwidth()
        upload_bps = bandwidth.upload_bps or bandwidth.upload_limit_bps
        remaining_s = notices.remaining_s(left_bytes, upload_bps, trio.current_time())
        rounded_s = None if remaining_s is None else round(remaining_s, 1)
        run.events.emit(HANDING_OVER, n_shards=n_shards, left_bytes=left_bytes, remaining_s=rounded_s)
