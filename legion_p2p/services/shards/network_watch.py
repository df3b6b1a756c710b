"""The networks that pushes come from: what this peer says of them as an owner, and whether others say what it sees.

Decided in core/same_network.py.
"""

from collections.abc import Sequence

from legion_p2p.core.account import Breaks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.same_network import contradicted, included_numbers, numbered
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.states import AcceptedUpdate, ShardStates


class NetworkWatch:
    """Only in a run whose networks are bounded."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self.broken: Observers[PeerId] = Observers()
        """Told of an owner that puts this peer together with others, again and again, which it sees in different networks."""
        self._events = ctx.events
        self._connection = ctx.reachability.connection
        self._breaks = Breaks()
        self._me = ctx.me
        self.is_on = ctx.spec.round.same_network == "bounded"
        if self.is_on:
            states.updated.add(self._on_update)

    def numbers(self, peers: Sequence[PeerId]) -> tuple[int, ...]:
        """Of the networks that these pushed from, as this peer sees them. See `core.same_network.numbered`."""
        return numbered(peers, self._connection) if self.is_on else (0,) * len(peers)

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        header = accepted.header
        if header.account is None or not any(header.account.networks) or header.owner == self._me:
            return
        numbers = included_numbers((one.peer for one in header.included), header.account.networks)
        wrong = contradicted(self._me, numbers, self._connection)
        if wrong is None:
            return
        owner = PeerId(header.owner)
        self._events.emit(
            "owner.misplaced", shard=header.shard, version=header.version, owner=owner, peer=wrong[0], second=wrong[1]
        )
        if self._breaks.add(owner):
            self.broken.tell(owner)
