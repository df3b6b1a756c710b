"""What the user asks of this peer while it runs: decided in core/control.py, told to the training side and to the network here.

The training side reads `wish` and `max_cpu` from its own thread, between two steps.
"""

import math

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.caps import Caps, parse_caps
from legion_p2p.core.control import NO_LIMIT, Command, SetLimits, TrainingControl, Wish, parse_cpu
from legion_p2p.core.manners import SPENT_BPS
from legion_p2p.core.observers import Observers
from legion_p2p.observe.status import ControlStatus
from legion_p2p.services.context import PeerContext


class ControlService:
    """Carries out what the user asks. Under trio; `wish` and `max_cpu` may be read from any thread."""

    def __init__(self, ctx: PeerContext) -> None:
        self._events = ctx.events
        self._wall_time = ctx.wall_time
        self._machine = TrainingControl()
        self._notify = Notify()
        self._is_spent = False
        self._reasons: tuple[str, ...] = ()
        self.wish = Wish.TRAIN
        """What the training side is to do now."""
        self.max_cpu = ctx.config.max_cpu
        """Share of the processors that this process may take; None: no limit."""
        self.caps = ctx.config.caps
        self.caps_changed: Observers[Caps] = Observers()
        """Told of the limits on traffic that hold from now on."""

    def obey(self, command: Command) -> ControlStatus:
        """Do what the user says; what holds then. Raises: UsageError, where a limit has no allowed form."""
        if isinstance(command, SetLimits):
            self._set_limits(command)
        else:
            self._machine.handle(command, trio.current_time())
            self._take_over()
            self._notify.notify()
        return self.status()

    def hold(self, conditions: tuple[str, ...]) -> None:
        """These conditions of the user's do not hold now; empty: all hold."""
        self._machine.hold(conditions)
        self._take_over()

    def squeeze(self, is_spent: bool) -> None:
        """Keep all traffic below SPENT_BPS, or no longer: the user's volume of this month is used up."""
        if is_spent != self._is_spent:
            self._is_spent = is_spent
            self.caps_changed.tell(self._caps_now())

    def _caps_now(self) -> Caps:
        if not self._is_spent:
            return self.caps
        return Caps(min(self.caps.upload_bps, SPENT_BPS), min(self.caps.download_bps, SPENT_BPS), self.caps.quiet)

    def status(self) -> ControlStatus:
        """What holds now."""
        remaining_s = self._machine.remaining_s(trio.current_time())
        return ControlStatus(
            wish=self._machine.wish.value,
            reasons=self._machine.reasons,
            until=None if remaining_s is None else self._wall_time() + remaining_s,
            upload_bps=_finite(self.caps.upload_bps),
            download_bps=_finite(self.caps.download_bps),
            max_cpu=self.max_cpu,
        )

    async def run_forever(self) -> None:
        """End pauses whose time is over."""
        while True:
            deadline = self._machine.next_deadline()
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._notify.wait()
            self._machine.handle_timeout(trio.current_time())
            self._take_over()

    def _take_over(self) -> None:
        if (self.wish, self._reasons) == (self._machine.wish, self._machine.reasons):
            return
        self.wish, self._reasons = self._machine.wish, self._machine.reasons
        self._events.emit("control.changed", wish=self.wish.value, reason=", ".join(self._reasons))

    def _set_limits(self, limits: SetLimits) -> None:
        limits.check()
        if limits.max_cpu is not None:
            self.max_cpu = None if limits.max_cpu == NO_LIMIT else parse_cpu(limits.max_cpu)
        if limits.upload is not None or limits.download is not None:
            chosen = parse_caps(*(_rate(given) for given in (limits.upload, limits.download)))
            self.caps = Caps(
                self.caps.upload_bps if limits.upload is None else chosen.upload_bps,
                self.caps.download_bps if limits.download is None else chosen.download_bps,
                self.caps.quiet,
            )
            self.caps_changed.tell(self._caps_now())
        status = self.status()
        self._events.emit(
            "control.limits", upload_bps=status.upload_bps, download_bps=status.download_bps, max_cpu=status.max_cpu
        )


def _rate(given: str | None) -> str:
    return "" if given in (None, NO_LIMIT) else str(given)


def _finite(bps: float) -> float | None:
    return None if math.isinf(bps) else bps
