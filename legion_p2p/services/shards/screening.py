"""Says which members weigh nothing any more because their pushes went against the others', round after round.

What they weigh is decided in tensor/robust/standing.py, by owners; here it is read from the headers of updates.
"""

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.states import AcceptedUpdate, ShardStates
from legion_p2p.tensor.robust.standing import FULL, NONE

MAX_NAMED = 1024  # members of shards that were named; one beyond may be named twice


class ScreeningLog:
    """Names each once, until it counts in full again."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._events = ctx.events
        self._named: BoundedMap[tuple[int, PeerId], None] = BoundedMap(MAX_NAMED)
        states.updated.add(self._on_update)

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        shard = accepted.header.shard
        for one in accepted.header.included:
            key = shard, PeerId(one.peer)
            if one.standing is None or NONE < one.standing < FULL:
                continue
            if one.standing >= FULL:
                self._named.pop(key, None)
            elif key not in self._named:
                self._named[key] = None
                self._events.emit("member.discounted", peer=one.peer, shard=shard, version=accepted.header.version)
