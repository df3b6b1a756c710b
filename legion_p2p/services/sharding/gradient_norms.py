"""The norm of the whole gradient of a step, where a run clips by it: owners tell each other the squares of their units.

    a unit is closed -> its standby has the mean gradient; then both know its square, and tell it to owners that ask
    all are closed   -> each owner has the same squares, and so the same factor, which it sends to its standby

So no unit makes a step before all are closed. One whose owner dies in between is closed at its standby with the same mean.
"""

import math
from collections.abc import Mapping

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import AskNorms, UnitNorms
from legion_p2p.core.priority import Priority
from legion_p2p.errors import NetworkError
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.table import UnitTable

REMEMBERED = 4  # steps: an owner may ask about the one that others have just made
ANSWER_S = 50.0
LOOK_S = 1.0
AGAIN_S = 0.5
TINY = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class GradientNorms:
    """The squares of the norms of units, by step, as far as this peer knows them."""

    def __init__(self, table: UnitTable, clip: float) -> None:
        """`clip`: the longest gradient; 0: any."""
        self.clip = clip
        self._table = table
        self._squares: BoundedMap[int, dict[int, float]] = BoundedMap(REMEMBERED)
        self._changed = Notify()
        self._gathering = QuickLock()

    def answer(self, scope: Scope) -> None:
        scope.on(AskNorms, self.on_ask)

    def note(self, step: int, squares: Mapping[int, float]) -> None:
        """The squares of units that are closed for this step."""
        known = self._squares.get(step)
        if known is None:
            known = self._squares[step] = {}
        known.update(squares)
        self._changed.notify()

    async def factor(self, step: int) -> float:
        """By what every gradient of the step is multiplied, once all units are closed for it: as clip_grad_norm_ does."""
        async with self._gathering:
            if self._missing(step):
                await self._gather(step)
        squares = self._squares[step]
        total = sum(squares[unit] for unit in sorted(squares))  # in one order, so that all owners have the same bits
        return min(1.0, self.clip / (math.sqrt(total) + TINY))

    async def on_ask(self, peer: PeerId, message: AskNorms) -> UnitNorms:
        """Answered once those of them that this peer owns are closed."""
        self._table.must_be_here(peer)
        with trio.move_on_after(ANSWER_S):
            while any(self._is_open(unit, message.step) for unit in message.units):
                with trio.move_on_after(LOOK_S):  # a unit may go to another owner meanwhile
                    await self._changed.wait()
        known = self._squares.get(message.step, {})
        return UnitNorms(tuple(known.get(unit) for unit in message.units))

    def _is_open(self, unit: int, step: int) -> bool:
        held = self._table.held.get(unit)
        return held is not None and held.is_owned and unit not in self._squares.get(step, {}) and held.version <= step

    def _missing(self, step: int) -> list[int]:
        known = self._squares.get(step, {})
        return [unit.index for unit in self._table.units if unit.index not in known]

    async def _gather(self, step: int) -> None:
        """Ask all members until every unit is known. Not only the owners: these may change meanwhile, and standbys know too."""
        async with trio.open_nursery() as nursery:
            for peer in self._table.living_others():
                nursery.start_soon(self._keep_asking, peer, step)
            while self._missing(step):
                await self._changed.wait()
            nursery.cancel_scope.cancel()

    async def _keep_asking(self, peer: PeerId, step: int) -> None:
        while missing := self._missing(step):
            try:
                request = AskNorms(self._table.run, step, tuple(missing))
                reply = await self._table.ask(peer, request, Priority.ROUND, ANSWER_S + AGAIN_S)
            except NetworkError:
                await trio.sleep(AGAIN_S)
                continue
            found = zip(missing, reply.squares, strict=False)
            self.note(step, {unit: square for unit, square in found if square is not None})
            if self._missing(step):
                await trio.sleep(AGAIN_S)
