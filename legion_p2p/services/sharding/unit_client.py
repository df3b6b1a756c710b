"""What a member's training needs of the units: weights before a step, and an owner that takes the gradients.

The owner is asked. One that is gone, or owns the unit no longer -> the one that it names, the one that should own it, the one
that should stand by, then every member, again and again, until one answers: a unit whose owner died has a new one within seconds.
"""

from collections.abc import Iterator

import torch
import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import Busy
from legion_p2p.core.messages.sharding import (
    AskUnit,
    PullUnit,
    PushGradient,
    UnitElsewhere,
    UnitPart,
    UnitStepped,
    UnitWeights,
)
from legion_p2p.core.priority import Priority
from legion_p2p.core.sharding.cost import MAX_STEP_S, step_network_s
from legion_p2p.core.wire import Encoded
from legion_p2p.errors import CodecError, JoinError, NetworkError
from legion_p2p.observe import human
from legion_p2p.services.context import PeerContext
from legion_p2p.services.sharding.keeper import UnitKeeper
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.compact import Compact, compacted, expanded
from legion_p2p.tensor.feedback import compress

AGAIN_S = 0.2  # after every member was asked in vain
ASK_S = 2.0
TIME_S = 30.0  # for the unit by which the network is measured
N_TIMED = 3  # pulls from each: one may meet a busy moment
MAX_TIMED = 8  # members: each takes as long as a unit travels
HELPS = "join over a faster one, begin a region of your own with another --region, or train in a run that is not sharded"
LOST_S = 120.0  # a unit that nobody owns for so long has gone with its owner and its standby
MAX_STEPS_SEEN = 1 << 32  # by a moment: no run makes as many


class UnitClient:
    """Pulls and pushes for this peer."""

    def __init__(self, ctx: PeerContext, table: UnitTable, keeper: UnitKeeper) -> None:
        self._run = ctx.run
        self._offload = ctx.offload
        self._table = table
        self._keeper = keeper
        self._known: dict[int, PeerId] = {}
        """Who answered for a unit last, where it is another one than should own it."""
        self._left_out: dict[int, Tensor | Compact | None] = {}
        """What compression left out of this peer's gradients of a unit so far."""

    async def pull(self, unit: int, step: int, *, exact: bool = False) -> Tensor:
        """The weights with which `step` is computed, 1-D fp32, once the unit has made the steps before. Where the others are
        further already, newer ones. `exact`: not rounded to what the run sends. Raises: NetworkError, if nobody has the unit."""
        return (await self._pull(PullUnit(self._run, unit, step, exact)))[1]

    async def pull_moment(self, unit: int, step: int, part: UnitPart) -> tuple[int, Tensor]:
        """A moment as it is before `step`, and how many steps it has seen. Raises: as `pull`."""
        return await self._pull(PullUnit(self._run, unit, step, exact=True, part=part))

    async def _pull(self, request: PullUnit) -> tuple[int, Tensor]:
        unit = request.unit
        give_up_at = trio.current_time() + LOST_S
        while True:
            own = await self._keeper.part(unit, request.step, request.part, exact=request.exact)
            if own is not None:
                return own.n_steps, await self._offload(self.read, request, own)
            waits = self._table.waits(unit, request.step - 1)
            for peer in self._whom(unit):
                try:
                    reply = await self._table.ask(peer, request, Priority.ROUND)
                    if isinstance(reply, Busy):  # it does not know yet that this peer is of its region
                        waits = True
                        continue
                    if isinstance(reply, UnitElsewhere):
                        waits |= reply.waits
                        self._note_elsewhere(unit, reply)
                        continue
                    pulled = await self._offload(self.read, request, reply)
                except (NetworkError, CodecError):
                    self._known.pop(unit, None)
                    continue
                self._known[unit] = peer
                return reply.n_steps, pulled
            if waits:
                give_up_at = trio.current_time() + LOST_S
            await self._pause(unit, give_up_at)

    def read(self, request: PullUnit, reply: UnitWeights) -> Tensor:
        """What was asked for, 1-D fp32. Raises: CodecError."""
        numel = self._table.units[request.unit].numel
        if request.part != "weights" and not reply.n_steps:
            return torch.zeros(numel, dtype=torch.float32, device="cpu")
        read = self._table.codec_of(request.part, exact=request.exact).decode(reply.payload, numel)
        if reply.n_steps >= MAX_STEPS_SEEN or (request.part == "second" and bool((read < 0).any())):
            raise CodecError(
                f"{request.part} moment of unit {request.unit} after {reply.n_steps} steps: no optimizer has such a one"
            )
        return read

    async def push(self, unit: int, step: int, tokens: int, gradient: Tensor) -> UnitStepped:
        """What became of the gradient, 1-D fp32; the unit's step is made when this returns. Where gradients are compressed so
        much that it matters, what is left out of one that is in its step is added to the next.

        Raises: NonFiniteError; NetworkError, if nobody has the unit.
        """
        require_finite(gradient)
        give_up_at = trio.current_time() + LOST_S
        encoded: Encoded[UnitStepped | UnitElsewhere] | None = None
        left_out: Tensor | Compact | None = None
        while True:
            stepped = await self._keeper.submit(self._table.me, unit, step, tokens, lambda: gradient)
            if stepped is not None:
                self._left_out.pop(unit, None)  # nothing is left out here, and this would be old when the unit has moved on
                return stepped
            waits = self._table.waits(unit, step)
            for peer in self._whom(unit):
                if encoded is None:
                    payload, left_out = await self._offload(self._packed, unit, gradient)
                    encoded = Encoded(PushGradient(self._run, unit, step, tokens, payload))
                try:
                    reply = await self._table.ask(peer, encoded, Priority.CATCH_UP)
                except NetworkError:
                    self._known.pop(unit, None)
                    continue
                if isinstance(reply, UnitElsewhere):
                    waits |= reply.waits
                    self._note_elsewhere(unit, reply)
                    continue
                self._known[unit] = peer
                if self._table.has_feedback and reply.included:
                    self._left_out[unit] = left_out
                return reply
            if waits:  # for the gradients of other members, which may take longer than this one's
                give_up_at = trio.current_time() + LOST_S
            await self._pause(unit, give_up_at)

    def _packed(self, unit: int, gradient: Tensor) -> tuple[bytes | memoryview, Tensor | Compact | None]:
        """The gradient as it is sent, and what that leaves out."""
        codec = self._table.gradients_codec
        if not self._table.has_feedback:
            return codec.encode(gradient), None
        packed = compress(codec, expanded(self._left_out.get(unit)), gradient)
        return packed.data, compacted(packed.residual)

    async def newest_step(self) -> int:
        """The step that the run has come to: that of the unit that is furthest."""
        versions = [held.version for held in self._table.held.values()]

        async def ask(unit: int) -> None:
            replies = await self._table.ask_all(AskUnit(self._run, unit), ASK_S)
            versions.extend(held.version for held in replies.values())

        async with trio.open_nursery() as nursery:
            for unit in range(len(self._table.units)):
                nursery.start_soon(ask, unit)
        return max(versions, default=0)

    async def check_network(self) -> None:
        """Time one unit from each of a few members: whether the slowest of them carries a step in good time. A machine that is
        busy for a moment looks like a slow network, so of each member the best of a few times counts.

        Raises: JoinError, with the figures.
        """
        sizes = {unit.index: unit.numel for unit in self._table.units}
        largest = max(sizes, key=lambda unit: sizes[unit])
        members = self._table.living_others()
        bits = self._table.sent_bits
        for peer in members[:MAX_TIMED]:
            fastest, step_s = 0.0, 0.0
            for _ in range(N_TIMED):
                bps = await self._rate_from(peer, largest, bits.weights * sizes[largest])
                if bps is None:
                    break
                fastest = max(fastest, bps)
                step_s = step_network_s(sum(sizes.values()), len(members) + 1, bits, fastest)
                if step_s <= MAX_STEP_S:
                    break
            if step_s > MAX_STEP_S:
                told = f"{human.rate_text(fastest)} came from {peer}, at which the bytes of one step take {step_s:.1f} s"
                raise JoinError(f"the network is too slow for this sharded run: {told}, {MAX_STEP_S:.0f} s are allowed; {HELPS}")

    async def _rate_from(self, peer: PeerId, unit: int, n_bits: float) -> float | None:
        """The rate in bit/s at which a unit of `n_bits` comes from a member; None, where it does not come."""
        began = trio.current_time()
        try:
            reply = await self._table.ask(peer, PullUnit(self._run, unit, 0), Priority.ROUND, TIME_S)
        except NetworkError:
            return None
        return None if isinstance(reply, UnitElsewhere | Busy) else n_bits / max(trio.current_time() - began, 1e-6)

    def _whom(self, unit: int) -> Iterator[PeerId]:
        """Others that may have it, the likeliest first. Looks at what was learnt each time it is asked for the next one."""
        tried = {self._table.me}
        while True:
            should = self._table.ownership(unit)
            likely = (self._known.get(unit), should.owner, should.standby, *self._table.living_others())
            peer = next((peer for peer in likely if peer is not None and peer not in tried), None)
            if peer is None:
                return
            tried.add(peer)
            yield peer

    def _note_elsewhere(self, unit: int, reply: UnitElsewhere) -> None:
        if reply.owner and reply.owner != self._table.me and self._table.lives(PeerId(reply.owner)):
            self._known[unit] = PeerId(reply.owner)
        else:
            self._known.pop(unit, None)

    async def _pause(self, unit: int, give_up_at: float) -> None:
        if trio.current_time() >= give_up_at:
            raise NetworkError(
                f"unit {unit} of the run is lost: for {LOST_S:.0f} s no member owned it. Its owner and its standby are gone; go "
                "on from a checkpoint"
            )
        await trio.sleep(AGAIN_S)
