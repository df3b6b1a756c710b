"""Taking versions back that only their owner has computed: see core/shard/provisional.py.

    one is proven to be wrong                       -> return to the version before it
    the shard is taken over from an owner that got
    no co-signatures                                -> return to the last final version
    another owner goes on from an earlier version   -> return to that, and follow

What this peer pushed into the versions that are gone goes with its next push.
"""

from collections.abc import Sequence

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard import push_events
from legion_p2p.core.wire import MAX_COUNT, UpdateHeader, decode_header
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.replica import Body, Replica
from legion_p2p.services.shards.states import ShardStates

WRONG = "it is not what it was made of"
HELD_UP = "nobody has co-signed it"
REPLACED = "its shard's next owner goes on from the one before"


class TakeBackService:
    """Returns to earlier versions of shards."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._events = ctx.events
        self._states = states

    def on_proven_wrong(self, header: UpdateHeader) -> None:
        """This peer has computed the update again: its owner is wrong."""
        replica, nursery = self._states.replicas.get(header.shard), self._states.nursery
        if replica is None or not self._states.keeps_provisional:
            return
        replica.provisional.refuse(header.version, header.digest, proven=True)
        if nursery is not None:
            nursery.start_soon(self._return_before, replica, header)

    async def _return_before(self, replica: Replica, header: UpdateHeader) -> None:
        async with replica.lock:
            base = header.version - 1
            if replica.chain.passed(header.version, header.digest) and replica.provisional.can_return_to(base):
                self._refuse_after(replica, base, proven=True)
                await self.return_to(replica, base, WRONG)

    async def before_taking_over(self, replica: Replica, former: PeerId, *, was_held_up: bool) -> None:
        """This peer owns the shard from now on: return to where it goes on from."""
        async with replica.lock:
            final = replica.provisional.final
            if replica.provisional.successor_returns(former, was_held_up=was_held_up):
                self._refuse_after(replica, final, proven=False)
                await self.return_to(replica, final, HELD_UP)

    def _refuse_after(self, replica: Replica, version: int, *, proven: bool) -> None:
        """Other members hold these still, and would bring them."""
        for shown in replica.provisional.headers_after(version):
            header = decode_header(shown.header)
            replica.provisional.refuse(header.version, header.digest, proven=proven)

    async def return_to(self, replica: Replica, version: int, reason: str) -> None:
        """Take back all versions after this one. The caller holds the lock, and knows that they may be taken back."""
        states = self._states
        headers = [decode_header(shown.header) for shown in replica.provisional.headers_after(version)]
        own = [replica.own_pushes[h.version] for h in headers if h.version in replica.own_pushes]
        if own:
            replica.residual = await states.compute(
                replica.numel * len(own), _with, replica.residual, [packed.body for packed in own]
            )
            for packed in own:
                replica.given_back[packed.seq] = packed
            tokens = replica.life.push.extra_tokens + sum(packed.tokens for packed in own)
            replica.life.push.handle(push_events.Merged(min(tokens, MAX_COUNT)), trio.current_time())
        earlier = replica.earlier[version]
        replica.common = earlier.common
        replica.norms.replace(earlier.norms)
        owner = replica.provisional.maker
        if owner == states.me:
            made = replica.life.owner.made_tokens - sum(header.tokens for header in headers)
            replica.life.owner.made_tokens = max(0, made)
        replica.provisional.take_back(version)
        replica.forget_final()
        states.round_log.take_back(headers)
        self._events.emit("shard.taken_back", shard=replica.shard, version=version, owner=owner, reason=reason,
                          n_versions=len(headers), n_own=len(own))  # fmt: skip
        states.taken_back(replica)

    async def included_again(self, replica: Replica, header: UpdateHeader) -> None:
        """An update is about to be applied. If it was before, and was taken back, this peer's contribution to it must not count
        twice. The caller holds the lock."""
        seq = next((one.seq for one in header.included if one.peer == self._states.me), None)
        packed = None if seq is None else replica.given_back.pop(seq, None)
        if packed is not None:
            replica.residual = await self._states.compute(replica.numel, _with, replica.residual, [packed.body], -1.0)
            tokens = max(0, replica.life.push.extra_tokens - packed.tokens)
            replica.life.push.handle(push_events.Merged(tokens), trio.current_time())


def _with(residual: Tensor | None, bodies: Sequence[Body], sign: float = 1.0) -> Tensor | None:
    """What compression left over, with contributions that no version contains any more, or without."""
    for body in bodies:
        value = sign * body.value()
        residual = value if residual is None else residual + value
    return residual
