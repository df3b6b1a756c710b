"""Answering for the units that this peer holds: it gives weights of them, and takes gradients of those that it owns.

How their steps are made is in step_maker.py.
"""

import math
from collections.abc import Callable
from functools import partial

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import Busy
from legion_p2p.core.messages.sharding import (
    MAX_STEP_MEMBERS,
    AskUnit,
    PullUnit,
    PushGradient,
    UnitElsewhere,
    UnitHeld,
    UnitPart,
    UnitStepped,
    UnitWeights,
)
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.sharding.step import GradientVerdict
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.held import ArrivedGradient, HeldUnit
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor.codec import Codec

ANSWER_S = 50.0  # a question that waits for a step is answered within this time, so that askers that gave up leave nothing behind


class UnitKeeper:
    """Answers what members ask about units."""

    def __init__(self, ctx: PeerContext, table: UnitTable) -> None:
        self._table = table
        self._offload = ctx.offload
        self._upload_slots = ctx.upload_slots

    def answer(self, scope: Scope) -> None:
        scope.on(PullUnit, self.on_pull)
        scope.on(PushGradient, self.on_push)
        scope.on(AskUnit, self.on_ask)

    # what members ask

    async def on_ask(self, peer: PeerId, message: AskUnit) -> UnitHeld:
        return self._table.said_of(message.unit)

    async def on_pull(
        self, peer: PeerId, message: PullUnit
    ) -> UnitWeights | UnitElsewhere | ThrottledReply[UnitWeights | UnitElsewhere] | Busy:
        """Members of this region are answered at once, because they train with it; others get what there is, a few at a time."""
        held = self._table.unit_held(message.unit)
        if held is None:
            return self._elsewhere(message.unit, message.step)
        if message.step > held.version:
            self._table.must_be_here(peer)
        if self._table.is_here(peer):
            return await self._given(message)
        codec = self._table.codec_of(message.part, exact=message.exact)
        n_bytes = math.ceil(codec.bits_per_element * held.numel / 8)
        return await self._upload_slots.give(peer, n_bytes, partial(self._given, message))

    async def _given(self, message: PullUnit) -> UnitWeights | UnitElsewhere:
        found = await self.part(message.unit, message.step, message.part, exact=message.exact)
        return self._elsewhere(message.unit, message.step - 1) if found is None else found

    async def on_push(self, peer: PeerId, message: PushGradient) -> UnitStepped | UnitElsewhere:
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is None or held.role != "owner":
            return self._elsewhere(message.unit, message.step)
        decoded = partial(self._table.gradients_codec.decode, message.payload, held.unit.numel)
        await self._offload(decoded)  # its sender is told of what is wrong with it
        stepped = await self.submit(peer, message.unit, message.step, message.tokens, decoded)
        return self._elsewhere(message.unit, message.step) if stepped is None else stepped

    def _elsewhere(self, unit: int, n_steps: int) -> UnitElsewhere:
        """`n_steps`: that the unit has made, if what was asked for is still to come."""
        return UnitElsewhere(self._table.owner_hint(unit) or "", self._table.waits(unit, n_steps))

    async def part(self, unit: int, step: int, part: UnitPart = "weights", *, exact: bool = False) -> UnitWeights | None:
        """The weights with which `step` is computed, or a moment, encoded, once they are there; None, where this peer does not
        hold them."""
        held = self._table.unit_held(unit)
        if held is None:
            return None
        with trio.move_on_after(ANSWER_S):
            while held.role != "none" and held.version < step:
                await held.notify.wait()
        if held.role == "none" or held.version < step:
            return None
        codec = self._table.codec_of(part, exact=exact)
        async with held.lock:
            if part != "weights":
                return await self._moment(held, codec, part)
            if codec is not self._table.codec_of(part, exact=False):  # rarely asked for: it takes no place from what members pull
                return UnitWeights(held.version, await self._offload(codec.encode, held.weights))
            if held.packed is None:
                held.packed = await self._offload(codec.encode, held.weights)
            return UnitWeights(held.version, held.packed)

    async def _moment(self, held: HeldUnit, codec: Codec, part: UnitPart) -> UnitWeights:
        """It changes in place: the lock is held."""
        if held.moments is None:
            return UnitWeights(held.version, b"")
        payload = await self._offload(codec.encode, held.moments.first if part == "first" else held.moments.second)
        return UnitWeights(held.version, payload, held.moments.n_steps)

    async def submit(self, peer: PeerId, unit: int, step: int, tokens: int, decoded: Callable[[], Tensor]) -> UnitStepped | None:
        """A gradient of `peer`: what became of it, once the standby has it too; None, where this peer does not own the unit."""
        held = self._table.unit_held(unit)
        if held is None or held.role != "owner" or len(held.arrived) >= MAX_STEP_MEMBERS:
            return None
        verdict = held.steps.push(peer, step, tokens, trio.current_time())
        if verdict is GradientVerdict.AHEAD:
            self._table.contest(unit)
            return None
        if verdict is GradientVerdict.TAKEN:
            held.arrived[peer] = ArrivedGradient(tokens, decoded)
            held.notify.notify()
        with trio.move_on_after(ANSWER_S):
            while held.role == "owner" and held.version <= step and not held.is_closed_for(step):
                await held.notify.wait()
        if held.closed is not None and held.is_closed_for(step):
            return UnitStepped(held.version, peer in held.closed.included)
        return UnitStepped(held.version, held.steps.was_included(peer, step)) if held.version > step else None

    def expect(self) -> None:
        """The members that train have changed."""
        training, now = self._table.training_since(), trio.current_time()
        for held in self._table.held.values():
            if held.role == "owner":
                held.steps.expect(training, now)
                held.notify.notify()
