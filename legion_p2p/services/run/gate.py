"""Letting this peer own shards or not, and telling the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from legion_p2p.core.presence import Presence
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.shards.service import ShardService


class OwnershipGate:
    """Open while this peer may own shards."""

    def __init__(self, members: MemberService, shards: ShardService) -> None:
        self.presence = Presence()
        self._members = members
        self._shards = shards
        self._suspending = trio.Lock()

    @asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """Own nothing within the block, and own again after it, unless this peer leaves meanwhile. One block at a time."""
        async with self._suspending:
            self.presence.suspend()
            self.tell()
            await self._shards.own_nothing()
            yield
            self.presence.resume()
            self.tell()

    def tell(self) -> None:
        """The presence has changed: the others hear of it, and the shards act on it."""
        self._members.announcer.announce_soon()
        self._shards.on_members_changed()
