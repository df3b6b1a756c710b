"""Answers to members that catch up with this peer, and to peers that join: updates, or whole shards."""

from functools import partial

import trio

from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.shard import owner
from legion_p2p.core.wire import (
    OTHER,
    UNKNOWN,
    AncestryQuery,
    AncestryReply,
    Busy,
    CosignedHeader,
    GetShard,
    GetUpdates,
    GetVersion,
    Held,
    ShardState,
    State,
    Updates,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import ShardStates
from legion_p2p.tensor import codec


class ShardServer:
    """Serves what is held here, as far as upload slots allow."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._slots = ctx.upload_slots
        self._states = states

    async def on_get_updates(self, peer: PeerId, message: GetUpdates) -> ThrottledReply[Updates | ShardState] | Busy:
        """What leads from the asker's state to ours. Raises: LegionError, to be sent back."""
        replica, states = self._states.replica(message.shard), self._states

        async def answer() -> Updates | ShardState:
            async with replica.lock:  # a round that closes now should be in the answer
                updates = None if whole else replica.chain.since(message.version, message.digest)
                if states.trains_here(peer):
                    replica.life.owner.handle(owner.Served(peer, replica.chain.version), trio.current_time())
                if updates is not None:
                    return Updates(updates, message.version, replica.norms.known()[: -len(updates) or None])
                if message.log_only:
                    return Updates((), None)
            return await self._state(replica, replica.chain.passed(message.version, message.digest))

        n_bytes = replica.chain.bytes_since(message.version, message.digest)
        members = states.members.roster.ready(states.region)
        goes_first = peer == states.ownership(replica.shard).owner or peer in replica.chain.first(members)
        announced = states.members.roster.announced(peer)
        joins = announced is not None and not announced.ready
        may_wait = joins or (peer in members and not goes_first)  # left-over upload is for whatever is fewest bytes
        whole = not message.log_only and (n_bytes is None or (may_wait and n_bytes > 4 * replica.numel))
        if whole or n_bytes is None:
            n_bytes = 4 * replica.numel if whole else 0
        priority = Priority.ROUND if goes_first else self._priority_of(peer)
        return await self._slots.give(peer, n_bytes, answer, priority)

    async def on_get_version(self, peer: PeerId, message: GetVersion) -> Held:
        """What is held of a shard. Raises: LegionError, to be sent back."""
        chain = self._states.replica(message.shard).chain
        return Held(chain.version, chain.digest)

    async def on_get_shard(self, peer: PeerId, message: GetShard) -> ThrottledReply[ShardState] | Busy:
        """A shard whole. Raises: LegionError, to be sent back."""
        replica = self._states.replica(message.shard)
        make = partial(self._state, replica, ancestor=False)
        return await self._slots.give(peer, 4 * replica.numel, make, self._priority_of(peer))

    def _priority_of(self, peer: PeerId) -> Priority:
        return Priority.CATCH_UP if self._states.trains_here(peer) else Priority.DOWNLOAD

    async def on_ancestry_query(self, peer: PeerId, message: AncestryQuery) -> AncestryReply:
        """How many bytes of updates lead from each of these states to ours. Raises: LegionError, to be sent back."""
        return AncestryReply(tuple(self._bytes_since(state) for state in message.states))

    def _bytes_since(self, state: State) -> int:
        chain = self._states.replica(state.shard).chain
        n_bytes = chain.bytes_since(state.version, state.digest)
        if n_bytes is not None:
            return n_bytes
        return OTHER if chain.passed_otherwise(state.version, state.digest) else UNKNOWN

    async def _state(self, replica: Replica, ancestor: bool) -> ShardState:
        async with replica.lock:
            reference, chain = replica.reference, replica.chain
            version, digest, included = chain.version, chain.digest, chain.included()
            norms, salt, made_by = replica.norms.known(), chain.salt, self._shown(chain)
        payload = await self._states.compute(replica.numel, codec.get("fp32").encode, reference)
        return ShardState(replica.shard, version, digest, included, payload, ancestor, norms, salt, made_by)

    def _shown(self, chain: Chain) -> CosignedHeader | None:
        """The header of the last update, where others look for its co-signature."""
        last = chain.last() if self._states.spec.round.verify == "strict" else None
        if last is None or not last.update.cosigner:
            return None
        made = last.update
        return CosignedHeader(made.header, made.signature, made.cosigner, made.cosignature)
