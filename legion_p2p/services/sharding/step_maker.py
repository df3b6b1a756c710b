"""Making the steps of units: their owner makes them of the gradients that have arrived, and the standby makes the same ones.

A step is made in this order, so that an owner may die at any moment:

    1. close: whose gradients are in it is settled            dies here -> the members push again, to the standby
    2. the standby has the mean gradient, and makes the step  dies here -> the standby has the step
    3. only now members are answered, and given new weights

Where the run clips gradients, the step waits between 2 and 3 until all units are closed (gradient_norms.py):

    2. the standby has the mean gradient                      dies here -> the standby goes on from it
    3. members are answered; owners tell each other the norms of their units
    4. owner and standby make the step, with the same factor  dies here -> the standby has the step, or asks for the norms itself
    5. only now members are given new weights
"""

from collections.abc import Sequence

import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import MakeStep, ReplicateMove, ReplicateStep, UnitHeld
from legion_p2p.core.priority import Priority
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.gradient_norms import GradientNorms
from legion_p2p.services.sharding.held import ClosedStep, HeldUnit, combine_gradients
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.sync_step import norm

IDLE_S = 50.0  # between two looks at a unit about which nothing happens
REPLICATE_S = 10.0  # to get a step to the standby: after that the owner goes on without, and gives the unit to another one
AGAIN_S = 0.2
ROLE_S = 5.0  # an owner that waits for norms looks that often whether it still owns the unit

ToStandby = ReplicateMove | ReplicateStep | MakeStep


class StepMaker:
    """Makes the steps of the units that this peer owns, and of those that it stands by for."""

    def __init__(self, ctx: PeerContext, table: UnitTable) -> None:
        self._events = ctx.events
        self._offload = ctx.offload
        self._table = table
        self._clips = ctx.spec.inner.clip > 0
        self._norms = GradientNorms(table, ctx.spec.inner.clip)

    def answer(self, scope: Scope) -> None:
        scope.on(ReplicateMove, self.on_replicate_move)
        scope.on(ReplicateStep, self.on_replicate)
        scope.on(MakeStep, self.on_make_step)
        self._norms.answer(scope)

    # the owner

    async def own(self, held: HeldUnit) -> None:
        """Make the unit's steps for as long as this peer owns it."""
        held.steps.expect(self._table.training_since(), trio.current_time())
        while held.role == "owner":
            if held.closed is not None:
                await self._finish(held, held.closed)
                continue
            if held.steps.ready(trio.current_time()):
                async with held.lock:  # not while it moves
                    if held.role == "owner" and held.steps.ready(trio.current_time()):
                        await self._close(held)
                continue
            deadline = held.steps.next_deadline()
            with trio.move_on_at(trio.current_time() + IDLE_S if deadline is None else deadline):
                await held.notify.wait()

    async def _close(self, held: HeldUnit) -> None:
        closed = held.steps.close(trio.current_time())
        arrived = {c.peer: held.arrived[c.peer] for c in closed}
        held.arrived = {}
        combined = await self._offload(combine_gradients, arrived, held.unit.numel)
        payload, mean = await self._offload(self._as_sent, combined)
        messages: list[ToStandby] = []
        move: Tensor | None = None
        if held.is_move_due and held.to_subtract is not None:
            moves, move = await self._offload(self._as_sent, held.to_subtract)
            messages.append(ReplicateMove(self._table.run, held.index, held.term, held.version, moves))
            held.is_move_due = False
        messages.append(
            ReplicateStep(
                self._table.run, held.index, held.term, held.version, tuple(sorted(arrived)), payload,
                is_moved=move is not None, waits=self._clips,
            )
        )  # fmt: skip
        step = ClosedStep(held.version, frozenset(arrived), mean, move)
        if not self._clips:
            await self._make(held, step, messages)
            return
        if (theirs := await self._replicate(held, messages)) is not None:
            self._compare(held, theirs)
        held.closed = step
        self._norms.note(step.step, {held.index: await self._offload(_square, mean)})
        held.notify.notify()

    async def _finish(self, held: HeldUnit, step: ClosedStep) -> None:
        """Make the closed step, once all units are closed."""
        factor: float | None = None
        with trio.move_on_after(ROLE_S):
            factor = await self._norms.factor(step.step)
        async with held.lock:
            if factor is not None and held.role == "owner" and held.closed is step:
                message = MakeStep(self._table.run, held.index, held.term, step.step, factor)
                await self._make(held, step, [message], factor)

    async def _make(self, held: HeldUnit, step: ClosedStep, messages: Sequence[ToStandby], factor: float = 1.0) -> None:
        """Make the step while the standby does. The lock is held."""
        theirs: list[UnitHeld] = []

        async def replicate() -> None:
            if (answer := await self._replicate(held, messages)) is not None:
                theirs.append(answer)

        async with open_flat_nursery() as nursery:
            nursery.start_soon(replicate)
            made = await self._made(held, step, factor)
        if held.to_subtract is not None and step.move is not None:
            held.to_subtract = held.to_subtract - step.move
        held.stepped(step.included, made)
        held.steps.expect(self._table.training_since(), trio.current_time())
        if theirs:
            self._compare(held, theirs[0])

    async def _made(self, held: HeldUnit, step: ClosedStep, factor: float) -> bytes:
        """The digest of the weights after the step: the same bits at owner and standby."""
        mean = step.mean if factor == 1.0 else step.mean * factor
        rates, matrices = self._table.rates(held.version), self._table.matrices(held.index)
        return await self._offload(held.make_step, mean, rates, matrices, step.move)

    def _as_sent(self, x: Tensor) -> tuple[bytes, Tensor]:
        """A mean, or what a sync takes from the weights, as bytes, and what the standby reads from them."""
        payload = self._table.means_codec.encode(x)
        return payload, self._table.means_codec.decode(payload, x.numel())

    async def _replicate(self, held: HeldUnit, messages: Sequence[ToStandby]) -> UnitHeld | None:
        """What the standby holds after these; without one, or where it is gone, None: the owner goes on without."""
        standby, give_up_at = held.standby, trio.current_time() + REPLICATE_S
        while standby is not None:
            try:
                answers = [await self._table.ask(standby, message, Priority.ROUND, REPLICATE_S) for message in messages]
            except NetworkError as failed:
                if self._table.lives(standby) and trio.current_time() < give_up_at:
                    await trio.sleep(AGAIN_S)
                    continue
                self._lose_standby(held, str(failed))
                return None
            return answers[-1]
        return None

    def _compare(self, held: HeldUnit, theirs: UnitHeld) -> None:
        """What the standby holds after a step, and what this peer does."""
        if theirs.role == "owner":
            self._table.contest(held.index)
        elif theirs.role != "standby" or (theirs.version, theirs.digest) != (held.version, held.digest):
            self._lose_standby(held, f"it holds version {theirs.version} {theirs.digest.hex()[:16]} as {theirs.role}")

    def _lose_standby(self, held: HeldUnit, reason: str) -> None:
        assert held.standby is not None
        self._events.emit("unit.standby_lost", unit=held.index, version=held.version, peer=held.standby, reason=reason)
        held.standby = None
        self._table.woken.notify()

    # the standby

    async def on_replicate_move(self, peer: PeerId, message: ReplicateMove) -> UnitHeld:
        """Keep what the owner subtracts with its next step."""
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is not None and held.role == "standby" and message.step == held.version:
            move = await self._offload(self._table.means_codec.decode, message.payload, held.unit.numel)
            require_finite(move)
            held.arrived_move = message.term, message.step, move
        return self._table.said_of(message.unit)

    async def on_replicate(self, peer: PeerId, message: ReplicateStep) -> UnitHeld:
        """Make the step that the owner makes, or keep what it is to be made of. Raises: NetworkError, where the owner is to send
        it again; DecodeError."""
        self._table.must_be_here(peer)
        if message.waits != self._clips:
            raise DecodeError(f"a step that waits: {message.waits}; that this run clips gradients: {self._clips}")
        held = self._table.unit_held(message.unit)
        if held is None:
            return self._table.said_of(message.unit)
        mean = await self._offload(self._table.means_codec.decode, message.payload, held.unit.numel)
        require_finite(mean)
        async with held.lock:
            if held.role == "standby" and message.term >= held.term and message.step == held.version:
                move = None
                if message.is_moved:
                    if held.arrived_move is None or held.arrived_move[:2] != (message.term, message.step):
                        raise NetworkError(f"unit {message.unit}: what step {message.step} is to move it by has not come")
                    move = held.arrived_move[2]
                held.owner, held.term = peer, message.term
                step = ClosedStep(message.step, frozenset(map(PeerId, message.included)), mean, move)
                if message.waits:
                    held.closed = step
                    self._norms.note(step.step, {held.index: await self._offload(_square, mean)})
                else:
                    held.stepped(step.included, await self._made(held, step, 1.0))
        return held.as_said()

    async def on_make_step(self, peer: PeerId, message: MakeStep) -> UnitHeld:
        """Make the step that was closed."""
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is None:
            return self._table.said_of(message.unit)
        async with held.lock:
            step = held.closed
            is_next = step is not None and step.step == message.step == held.version
            if step is not None and is_next and held.role == "standby" and message.term >= held.term:
                held.stepped(step.included, await self._made(held, step, message.factor))
        return held.as_said()


def _square(mean: Tensor) -> float:
    length: float = norm(mean)
    return length * length
