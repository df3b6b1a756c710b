"""The life of the shards at one peer: pushing, owning, following, catching up.

Two tasks per shard look at what there is to do, do it, and wait for the notify. One keeps the shard:

    ownership changed      -> take over (after asking the owner before us for its last word), or hand over
    somebody is ahead      -> fetch the updates in between, or the whole shard
    the round is complete  -> combine it, publish the update

The other brings this peer's own changes to the owner:

    a change was offered   -> compress it into a push; alone in the run: it simply becomes the next version
    a push is pending      -> send it, again whenever it may have been lost

The invariants of docs/ARCHITECTURE.md are kept here and tested in tests/sim.
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.wire import (
    AncestryQuery,
    GetShard,
    GetUpdates,
    Handover,
    Push,
    Reply,
    Request,
    Update,
)
from legion_p2p.errors import (
    DecodeError,
)
from legion_p2p.services.shards.pusher import Pushing

SETTLE_S = 0.05  # membership news of this long are looked at together


class ShardService(Pushing):
    """All shards of a run at one peer: the service that runs them."""

    async def on_request(self, peer: PeerId, message: Request) -> Reply | ThrottledReply:
        """Answer a request about a shard. Raises: LegionError, to be sent back."""
        if isinstance(message, Push):
            return await self._on_push(peer, message)
        if isinstance(message, Update):
            return await self._on_update(peer, message)
        if isinstance(message, GetUpdates):
            return await self._on_get_updates(peer, message)
        if isinstance(message, GetShard):
            return await self._on_get_shard(peer, message)
        if isinstance(message, AncestryQuery):
            return self._on_compare(message)
        if isinstance(message, Handover):
            return await self._on_handover(peer, message)
        raise DecodeError(f"{type(message).__name__} is not about a shard")

    def on_members_changed(self) -> None:
        """Somebody came, went, or announced news: owners may differ, and somebody may be ahead of us."""
        owners_may_differ = self._refresh_owners()
        self._look_for_news()
        for replica in self.replicas.values():
            if owners_may_differ or replica.round is not None:
                replica.notify.notify()

    async def run_forever(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.on_members_changed()
                for replica in self.replicas.values():
                    nursery.start_soon(self._keep, replica)
                    nursery.start_soon(self._push, replica)
                task_status.started()
                while True:
                    await self._members.changed.wait()
                    await trio.sleep(SETTLE_S)
                    self.on_members_changed()
            finally:
                self._nursery = None
