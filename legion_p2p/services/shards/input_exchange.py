"""The inputs of an update on their way from the peer that made it, or holds them as evidence, to one that computes it again."""

import trio
from torch import Tensor

from legion_p2p.core.account import header_digest, input_digest
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.evidence import FIRST_PUSH
from legion_p2p.core.messages.shards import UpdateAccount, UpdateHeader
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.wire import Busy, GetInput, InputPart
from legion_p2p.errors import CodecError, DecodeError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush, payload_digest, state_digest
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.services.upload_slots import UploadSlotService
from legion_p2p.tensor import codec
from legion_p2p.tensor.outer import OuterState

MAX_FETCHED_BYTES = 256 << 20  # of the inputs of one update: they are in memory together
MAX_PROOFS = 1  # whose inputs are kept for others: there is one at a time, and it may be that large
MAX_BUSY_ANSWERS = 30  # in a row

UPDATE_PART = FIRST_PUSH - 1


class InputExchange:
    """Gives and fetches inputs, part by part."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self.proofs: BoundedMap[bytes, RoundInputs] = BoundedMap(MAX_PROOFS)
        """Inputs that this peer holds as evidence, by `header_digest`."""
        # Slots of their own: the owner waits for a co-signer's answer while it holds the lock that other uploads wait for.
        self._slots = UploadSlotService(ctx.messenger)
        self._states = states
        self._has_outer = ctx.spec.round.outer != "average"

    # giving

    async def on_get_input(self, peer: PeerId, message: GetInput) -> ThrottledReply[InputPart] | Busy:
        """One part. Raises: LegionError, to be sent back."""
        states, replica = self._states, self._states.replica(message.shard)
        states.must_be_member(peer)
        inputs = replica.inputs.get(message.header) or self.proofs.get(message.header)
        if inputs is None or inputs.header.shard != message.shard:
            raise NetworkError(f"shard {message.shard}: the inputs of that update are not kept here")
        if message.part >= FIRST_PUSH + len(inputs.pushes):
            raise DecodeError(f"part {message.part} of an update of {len(inputs.pushes)} pushes")
        found = inputs

        async def answer() -> InputPart:
            return await states.compute(replica.numel, part_of, found, message.part)

        priority = Priority.ROUND if peer in states.cosigners(message.shard) else Priority.CATCH_UP
        return await self._slots.give(peer, _size_of(found, message.part), answer, priority)

    # fetching

    async def fetch(
        self, source: PeerId, raw: bytes, header: UpdateHeader, known: tuple[Tensor | None, OuterState] | None
    ) -> RoundInputs:
        """The inputs of an update from a peer that has them; each has the digest that the account names.

        `raw`: the bytes of the header. `known`: what only an owner has, before the update, where it need not be fetched.

        Raises: NetworkError.
        """
        assert header.account is not None
        numel = self._states.replica(header.shard).numel
        asked = GetInput(self._states.run, header.shard, header_digest(raw), 0)
        budget = _Budget(MAX_FETCHED_BYTES)
        before = known or await self._state(source, asked, header.account, numel, budget)
        update = (await self._part(source, asked, UPDATE_PART, budget)).payload
        with self._states.rpc.checking(source, "bad inputs"):
            _must_be(payload_digest(update) == header.account.payload, "another update")
        pushes = []
        for i, expected in enumerate(header.account.inputs):
            part = await self._part(source, asked, FIRST_PUSH + i, budget)
            with self._states.rpc.checking(source, "bad inputs"):
                if part.claim is None:
                    raise DecodeError("a push without its claim")
                _must_be(input_digest(part.claim, part.signature) == expected, "another push")
                digest = await self._states.compute(numel, payload_digest, part.payload)
                _must_be(digest == part.claim.payload, "another payload")
            pushes.append(SignedPush(part.claim, part.signature, part.payload))
        return RoundInputs(header, *before, pushes, update)

    async def _state(
        self, source: PeerId, asked: GetInput, account: UpdateAccount, numel: int, budget: "_Budget"
    ) -> tuple[Tensor | None, OuterState]:
        parts = [await self._part(source, asked, i, budget) for i in range(UPDATE_PART if self._has_outer else 1)]
        decode = codec.get("fp32").decode
        with self._states.rpc.checking(source, "bad inputs"):
            try:
                values = [
                    await self._states.compute(numel, decode, part.payload, numel) if part.payload else None for part in parts
                ]
            except CodecError as bad:
                raise DecodeError(str(bad)) from bad
            outer = OuterState(values[1], values[2], parts[2].n_recent) if self._has_outer else OuterState()
            digest = await self._states.compute(numel, state_digest, values[0], outer)
            _must_be(digest == account.before, "another state")
        return values[0], outer

    async def _part(self, source: PeerId, asked: GetInput, part: int, budget: "_Budget") -> InputPart:
        """Raises: NetworkError."""
        request = GetInput(asked.run, asked.shard, asked.header, part)
        for _ in range(MAX_BUSY_ANSWERS):
            async with self._states.transfers:
                reply = await self._states.rpc.ask(source, request, Priority.CATCH_UP, within_s=TRANSFER_DEADLINE_S)
            if isinstance(reply, InputPart):
                budget.take(len(reply.payload))
                return reply
            await trio.sleep(reply.retry_ms / 1000)
        raise NetworkError(f"{source} is too busy to account for an update")


class _Budget:
    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes

    def take(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise NetworkError(f"the inputs of an update are more than {MAX_FETCHED_BYTES} bytes")


def part_of(inputs: RoundInputs, part: int) -> InputPart:
    """One part as it travels."""
    if part >= FIRST_PUSH:
        push = inputs.pushes[part - FIRST_PUSH]
        return InputPart(push.payload, push.claim, push.signature)
    if part == UPDATE_PART:
        return InputPart(inputs.update)
    value = (inputs.residual, inputs.outer.momentum, inputs.outer.recent)[part]
    payload = codec.get("fp32").encode(value) if value is not None and bool(value.any()) else b""
    return InputPart(payload, n_recent=inputs.outer.n_recent)


def _size_of(inputs: RoundInputs, part: int) -> int:
    if part >= FIRST_PUSH:
        return len(inputs.pushes[part - FIRST_PUSH].payload)
    if part == UPDATE_PART:
        return len(inputs.update)
    value = (inputs.residual, inputs.outer.momentum, inputs.outer.recent)[part]
    return 0 if value is None else 4 * value.numel()


def _must_be(fits: bool, what: str) -> None:
    if not fits:
        raise DecodeError(f"{what} than the account names")
