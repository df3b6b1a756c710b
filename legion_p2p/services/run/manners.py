"""Looking at the machine, and pausing the peer while its user's conditions do not hold: decided in core/manners.py."""

from collections.abc import Callable
from typing import Protocol

import trio

from legion_p2p.core.manners import MachineFacts, TrainingConditions
from legion_p2p.core.volume import MonthlyVolume, VolumeMeter
from legion_p2p.errors import StoreError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.run.control import ControlService

LOOK_EVERY_S = 2.0  # a user who comes back should not wait; a look costs about a millisecond
SAVE_EVERY_S = 60.0  # what a kill loses of a month's count


class VolumeStore(Protocol):
    """Where the volume of a month is kept: store/volume_file.py. All of it waits for the disk."""

    def load(self) -> MonthlyVolume:
        """Raises: StoreError."""

    def save(self, volume: MonthlyVolume) -> None:
        """Raises: StoreError."""


class MannersService:
    """Looks every LOOK_EVERY_S, as long as it runs."""

    def __init__(
        self,
        ctx: PeerContext,
        control: ControlService,
        look: Callable[[], MachineFacts],
        counted: Callable[[], int],
        month: Callable[[], str],
        store: VolumeStore | None = None,
    ) -> None:
        """`look`: asks the machine, and may wait for it; `counted`: bytes to and from other networks so far."""
        self._ctx = ctx
        self._control = control
        self._look = look
        self._counted = counted
        self._month = month
        self._store = store
        self._manners = TrainingConditions(ctx.config.manners)
        self._meter = VolumeMeter(MonthlyVolume())
        self._is_unsaved = False

    async def run_forever(self) -> None:
        if self._manners.config.monthly_bytes is not None and self._store is not None:
            try:
                self._meter = VolumeMeter(await self._ctx.disk(self._store.load))
            except StoreError as bad:
                self._report(bad)
        save_at = trio.current_time() + SAVE_EVERY_S
        try:
            while True:
                await self.look_once()
                if trio.current_time() >= save_at:
                    save_at = trio.current_time() + SAVE_EVERY_S
                    await self.save()
                await trio.sleep(LOOK_EVERY_S)
        finally:
            with trio.CancelScope(shield=True):
                await self.save()

    async def look_once(self) -> None:
        """Ask the machine now, and pause or go on."""
        facts = await self._ctx.disk(self._look)
        volume = self._meter.look(self._counted(), self._month())
        self._is_unsaved = True
        facts = _with_volume(facts, volume)
        self._control.hold(self._manners.look(facts, trio.current_time()))
        self._control.squeeze(self._manners.is_spent(facts))

    async def save(self) -> None:
        """Write the month's volume down."""
        if self._store is None or self._manners.config.monthly_bytes is None or not self._is_unsaved:
            return
        self._is_unsaved = False
        try:
            await self._ctx.disk(self._store.save, self._meter.volume)
        except StoreError as bad:
            self._report(bad)

    def _report(self, bad: StoreError) -> None:
        self._ctx.events.error("control.volume_lost", str(bad))


def _with_volume(facts: MachineFacts, volume: MonthlyVolume) -> MachineFacts:
    return MachineFacts(
        facts.others_share, facts.input_age_s, facts.on_battery, facts.temperature_c, facts.memory_bytes, float(volume.n_bytes)
    )
