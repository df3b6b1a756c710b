"""A peer's part in a sharded run: the units that it keeps, where they move, and what its own training asks for."""

from collections.abc import Iterator

import torch
import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.core.observers import Observers
from legion_p2p.core.sharding.plan import Unit, UnitPlan
from legion_p2p.core.sharding.step import UnitSteps
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import CheckpointArchive
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.held import HeldUnit
from legion_p2p.services.sharding.keeper import UnitKeeper
from legion_p2p.services.sharding.mover import UnitMover
from legion_p2p.services.sharding.saver import FlatMoments, UnitSaver
from legion_p2p.services.sharding.step_maker import StepMaker
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.services.sharding.unit_client import UnitClient
from legion_p2p.tensor.adamw import Moments
from legion_p2p.tensor.flatten import digest


class UnitService:
    """All units of a sharded run at one peer."""

    def __init__(self, ctx: PeerContext, members: MemberService, archive: CheckpointArchive | None) -> None:
        """`archive`: where checkpoints are kept; None: nowhere."""
        self.table = UnitTable(ctx, members)
        self.keeper = UnitKeeper(ctx, self.table)
        self.steps = StepMaker(ctx, self.table)
        self.mover = UnitMover(ctx, self.table)
        self.client = UnitClient(ctx, self.table, self.keeper)
        self.saver = UnitSaver(ctx, archive, self.table, self.client)
        self.owning: Observers[HeldUnit] = Observers()
        """Told of each unit that this peer begins to own."""
        self._offload = ctx.offload
        self._members = members
        self._nursery: trio.Nursery | None = None
        self.mover.start_owning = self._start_owning
        members.roles_changed.add(lambda _: self._on_roles_changed())

    def answer(self, scope: Scope) -> None:
        """Answer all requests about units from now on."""
        self.keeper.answer(scope)
        self.steps.answer(scope)
        self.mover.answer(scope)

    async def found(self, parameters: Tensor, step: int = 0, moments: FlatMoments | None = None) -> None:
        """Own every unit, with these parameters after this many steps: 1-D fp32, the whole model. `moments`: what the optimizer
        remembers."""
        for unit, weights in zip(self.table.units, cut_flat(self.table.plan, parameters), strict=True):
            await self.hold(unit, weights)
        if moments is not None:
            both = zip(*(cut_flat(self.table.plan, flat) for flat in (moments.first, moments.second)), strict=True)
            for unit, (first, second) in zip(self.table.units, both, strict=True):
                self.table.held[unit.index].moments = Moments(first, second, moments.n_steps)
        self.table.begin_at(step)

    async def hold(self, unit: Unit, weights: Tensor) -> None:
        """Own this unit: before the service runs."""
        made = await self._offload(digest, weights)
        self.table.held[unit.index] = HeldUnit(unit, weights, "owner", 0, UnitSteps(self.table.round, 0), digest=made)

    async def run_forever(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for held in list(self.table.held.values()):
                    if held.role == "owner":
                        self._start_owning(held)
                nursery.start_soon(self.mover.run_forever)
                nursery.start_soon(self._return_forever)
                task_status.started(None)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def nursery(self) -> trio.Nursery:
        """Runs what the training asks for, while the service runs."""
        assert self._nursery is not None
        return self._nursery

    async def hand_over_all(self) -> None:
        """Until this peer, which is not ready any more, owns nothing, or nobody else can own."""
        while self.table.n_owned() and self._members.roster.eligible(self.table.region).weights:
            self.table.woken.notify()
            await trio.sleep(0.05)

    async def _return_forever(self) -> None:
        """After an absence others may own what this peer did. Those that took it for dead believe its next incarnation."""
        absence = self._members.absence
        while True:
            while not absence.was_away:
                await absence.noticed.wait()
            absence.was_away = False
            self._members.table.incarnation += 1
            self._members.announcer.announce_soon()
            self.mover.contest_all()

    def _start_owning(self, held: HeldUnit) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self.steps.own, held)
            self.owning.tell(held)

    def _on_roles_changed(self) -> None:
        self.keeper.expect()
        self.table.woken.notify()


def cut_flat(plan: UnitPlan, flat: Tensor) -> Iterator[Tensor]:
    """The flat parameters of a run, as the weights of one unit after the other: each with memory of its own."""
    for unit in plan.units:
        yield torch.cat(
            [flat[plan.starts[piece.param] + piece.start : plan.starts[piece.param] + piece.end] for piece in unit.pieces]
        )
