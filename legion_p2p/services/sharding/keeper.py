"""Keeping units: their owner collects gradients and makes the steps, the standby makes the same ones, both give weights.

A step is made in this order, so that an owner may die at any moment:

    1. close: whose gradients are in it is settled            dies here -> the members push again, to the standby
    2. the standby has the mean gradient, and makes the step  dies here -> the standby has the step
    3. only now members are answered, and given new weights
"""

from collections.abc import Callable, Sequence
from functools import partial

import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import (
    MAX_STEP_MEMBERS,
    AskUnit,
    PullUnit,
    PushGradient,
    ReplicateMove,
    ReplicateStep,
    UnitElsewhere,
    UnitHeld,
    UnitStepped,
    UnitWeights,
)
from legion_p2p.core.priority import Priority
from legion_p2p.core.sharding.step import GradientVerdict
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.held import ArrivedGradient, HeldUnit, combine_gradients
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.codec import Codec

ANSWER_S = 50.0  # a question that waits for a step is answered within this time, so that askers that gave up leave nothing behind
REPLICATE_S = 10.0  # to get a step to the standby: after that the owner goes on without, and gives the unit to another one
AGAIN_S = 0.2


class UnitKeeper:
    """Answers for the units that this peer holds."""

    def __init__(self, ctx: PeerContext, table: UnitTable) -> None:
        self._ctx = ctx
        self._table = table
        self._offload = ctx.offload
        self.contested: set[int] = set()
        """Units that another peer may own as well."""

    def answer(self, scope: Scope) -> None:
        scope.on(PullUnit, self.on_pull)
        scope.on(PushGradient, self.on_push)
        scope.on(ReplicateMove, self.on_replicate_move)
        scope.on(ReplicateStep, self.on_replicate)
        scope.on(AskUnit, self.on_ask)

    # what members ask

    async def on_ask(self, peer: PeerId, message: AskUnit) -> UnitHeld:
        return self._table.said_of(message.unit)

    async def on_pull(self, peer: PeerId, message: PullUnit) -> UnitWeights | UnitElsewhere:
        if message.step > self._table.said_of(message.unit).version:  # others may only have what there is
            self._table.must_be_here(peer)
        found = await self.weights(message.unit, message.step, self._table.codec_of_weights(exact=message.exact))
        return self._elsewhere(message.unit) if found is None else UnitWeights(*found)

    async def on_push(self, peer: PeerId, message: PushGradient) -> UnitStepped | UnitElsewhere:
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is None or held.role != "owner":
            return self._elsewhere(message.unit)
        decoded = partial(self._table.gradients_codec.decode, message.payload, held.unit.numel)
        await self._offload(decoded)  # its sender is told of what is wrong with it
        stepped = await self.submit(peer, message.unit, message.step, message.tokens, decoded)
        return self._elsewhere(message.unit) if stepped is None else stepped

    def _elsewhere(self, unit: int) -> UnitElsewhere:
        return UnitElsewhere(self._table.owner_hint(unit) or "")

    async def weights(self, unit: int, step: int, codec: Codec) -> tuple[int, bytes] | None:
        """The weights with which `step` is computed, encoded, and their version, once they are there; None, where this peer does
        not hold them."""
        held = self._table.unit_held(unit)
        if held is None:
            return None
        with trio.move_on_after(ANSWER_S):
            while held.role != "none" and held.version < step:
                await held.notify.wait()
        if held.role == "none" or held.version < step:
            return None
        async with held.lock:
            packed = held.packed
            if packed is None or packed[0] is not codec:
                packed = held.packed = codec, await self._offload(codec.encode, held.weights)
            return held.version, packed[1]

    async def submit(self, peer: PeerId, unit: int, step: int, tokens: int, decoded: Callable[[], Tensor]) -> UnitStepped | None:
        """A gradient of `peer`: what became of it, once the step is made; None, where this peer does not own the unit."""
        held = self._table.unit_held(unit)
        if held is None or held.role != "owner" or len(held.arrived) >= MAX_STEP_MEMBERS:
            return None
        verdict = held.steps.push(peer, step, tokens, trio.current_time())
        if verdict is GradientVerdict.AHEAD:
            self.contested.add(unit)
            self._table.woken.notify()
            return None
        if verdict is GradientVerdict.TAKEN:
            held.arrived[peer] = ArrivedGradient(tokens, decoded)
            held.notify.notify()
        with trio.move_on_after(ANSWER_S):
            while held.role == "owner" and held.version <= step:
                await held.notify.wait()
        return UnitStepped(held.version, held.steps.was_included(peer, step)) if held.version > step else None

    # the owner

    def expect(self) -> None:
        """The members that train have changed."""
        training, now = self._table.training_since(), trio.current_time()
        for held in self._table.held.values():
            if held.role == "owner":
                held.steps.expect(training, now)
                held.notify.notify()

    async def own(self, held: HeldUnit) -> None:
        """Make the unit's steps for as long as this peer owns it."""
        held.steps.expect(self._table.training_since(), trio.current_time())
        while held.role == "owner":
            if held.steps.ready(trio.current_time()):
                async with held.lock:  # not while it moves
                    if held.role == "owner" and held.steps.ready(trio.current_time()):
                        await self._make_step(held)
                continue
            deadline = held.steps.next_deadline()
            with trio.move_on_at(trio.current_time() + ANSWER_S if deadline is None else deadline):
                await held.notify.wait()

    async def _make_step(self, held: HeldUnit) -> None:
        closed = held.steps.close(trio.current_time())
        arrived = {c.peer: held.arrived[c.peer] for c in closed}
        held.arrived = {}
        combined = await self._offload(combine_gradients, arrived, held.unit.numel)
        payload, mean = await self._offload(self._as_sent, combined)
        messages: list[ReplicateMove | ReplicateStep] = []
        move: Tensor | None = None
        if held.is_move_due:
            moves, move = await self._offload(self._as_sent, held.to_subtract)
            messages.append(ReplicateMove(self._table.run, held.index, held.term, held.version, moves))
        included, is_moved = tuple(sorted(arrived)), move is not None
        messages.append(ReplicateStep(self._table.run, held.index, held.term, held.version, included, payload, is_moved))
        async with open_flat_nursery() as nursery:
            told: list[UnitHeld] = []
            nursery.start_soon(self._replicate, held, messages, told)
            rates, matrices = self._table.rates(held.version), self._table.matrices(held.index)
            made = await self._offload(held.make_step, mean, rates, matrices, move)
        if held.to_subtract is not None and move is not None:
            held.to_subtract, held.is_move_due = held.to_subtract - move, False
        held.stepped(arrived, made)
        held.steps.expect(self._table.training_since(), trio.current_time())
        if told:
            self._compare(held, told[0])

    def _as_sent(self, x: Tensor) -> tuple[bytes, Tensor]:
        """A mean, or what a sync takes from the weights, as bytes, and what the standby reads from them."""
        payload = self._table.means_codec.encode(x)
        return payload, self._table.means_codec.decode(payload, x.numel())

    async def _replicate(self, held: HeldUnit, messages: Sequence[ReplicateMove | ReplicateStep], told: list[UnitHeld]) -> None:
        """Have the standby make the step; without one, or where it is gone, go on without."""
        standby, give_up_at = held.standby, trio.current_time() + REPLICATE_S
        while standby is not None:
            try:
                answers = [await self._table.ask(standby, message, Priority.ROUND, REPLICATE_S) for message in messages]
                told.append(answers[-1])
            except NetworkError as failed:
                if self._table.lives(standby) and trio.current_time() < give_up_at:
                    await trio.sleep(AGAIN_S)
                    continue
                self._lose_standby(held, str(failed))
            return

    def _compare(self, held: HeldUnit, theirs: UnitHeld) -> None:
        """What the standby holds after a step, and what this peer does."""
        if theirs.role == "owner":
            self.contested.add(held.index)
            self._table.woken.notify()
        elif theirs.role != "standby" or (theirs.version, theirs.digest) != (held.version, held.digest):
            self._lose_standby(held, f"it holds version {theirs.version} {theirs.digest.hex()[:16]} as {theirs.role}")

    def _lose_standby(self, held: HeldUnit, reason: str) -> None:
        assert held.standby is not None
        self._ctx.events.emit("unit.standby_lost", unit=held.index, version=held.version, peer=held.standby, reason=reason)
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
        """Make the step that the owner makes."""
        self._table.must_be_here(peer)
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
                        return held.as_said()  # its owner sees that it did not make the step
                    move = held.arrived_move[2]
                held.arrived_move = None
                held.owner, held.term = peer, message.term
                rates, matrices = self._table.rates(held.version), self._table.matrices(held.index)
                made = await self._offload(held.make_step, mean, rates, matrices, move)
                held.stepped(map(PeerId, message.included), made)
        return held.as_said()
