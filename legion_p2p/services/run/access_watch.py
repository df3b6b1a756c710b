"""Applies the user's bans and revocations while the peer runs, also those that are written down meanwhile."""

from collections.abc import Collection
from typing import Protocol

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService

LOOK_EVERY_S = 2.0  # a ban should work at once, for a person; a look costs two system calls


class AccessLists(Protocol):
    """What the user wrote down: see `legion_p2p.store.access_lists`. All of it waits for the disk."""

    def stamp(self) -> object:
        """Another one whenever something changed."""

    def banned(self) -> Collection[PeerId]:
        """Raises: StoreError."""

    def revocations(self) -> Collection[bytes]:
        """Raises: StoreError."""


async def watch_access(ctx: PeerContext, members: MemberService, lists: AccessLists) -> None:
    """Read the lists now, and whenever they change."""
    seen: object = None
    while True:
        stamp = await ctx.disk(lists.stamp)
        if stamp != seen:
            seen = stamp
            await _read(ctx, members, lists)
        await trio.sleep(LOOK_EVERY_S)


async def _read(ctx: PeerContext, members: MemberService, lists: AccessLists) -> None:
    try:
        banned, revocations = await ctx.disk(lists.banned), await ctx.disk(lists.revocations)
    except StoreError as bad:  # what was read before holds on
        ctx.events.error("access.unreadable", str(bad))
        return
    members.access.ban(banned)
    for revocation in revocations:
        try:
            members.revoke(revocation)
        except DecodeError:  # of another run: one key may take part in several
            continue
    if banned or revocations:
        ctx.events.emit("access.read", n_banned=len(banned), n_revoked=len(revocations))
