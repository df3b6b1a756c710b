"""A line in the log where this machine's clock was set: noticed by core/clock_watch.py."""

import trio

from legion_p2p.core.clock_watch import ClockWatch
from legion_p2p.observe.human import duration_text
from legion_p2p.services.context import PeerContext

LOOK_EVERY_S = 5.0


async def log_clock(ctx: PeerContext) -> None:
    """Look again and again, until cancelled."""
    watch = ClockWatch(ctx.wall_time(), ctx.running_clock())
    while True:
        await trio.sleep(LOOK_EVERY_S)
        set_by_s = watch.look(ctx.wall_time(), ctx.running_clock())
        if set_by_s is not None:
            way = "forward" if set_by_s > 0 else "back"
            text = f"this machine's clock was set {way} by {duration_text(float(round(abs(set_by_s))))}; training goes on"
            ctx.events.emit("clock.set", text=text, set_by_s=round(set_by_s, 1))
