"""A visit to a network: asking its peers for something without taking part in a run.

A private run gives nothing to strangers. A visitor that it admits shows what admits it in an announcement of a peer that leaves:
members remember the token, and take it for no member.
"""

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from legion_p2p.config import Peer
from legion_p2p.core.announcement import Announcement, sign
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.messages.members import Exchange
from legion_p2p.errors import NetworkError
from legion_p2p.observe.events import Events
from legion_p2p.services.ports import Messenger
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.run.run_discovery import find_run, search_key
from legion_p2p.store.access_lists import token_of
from legion_p2p.store.identity import identity_of
from legion_p2p.store.network_key_file import load_network_key

if TYPE_CHECKING:
    from legion_p2p.net.network import Libp2pNetwork

SHOW_DEADLINE_S = 5.0


class Visitor(msgspec.Struct, frozen=True):
    """As whom a network is visited."""

    identity: Identity | None = None
    """That of a peer that a private run admits; None: a new one, forgotten at the end."""
    token: bytes = b""
    """What admits it, where the run admits peers by token."""
    network_key: bytes = b""
    """Of a network that answers no others."""


STRANGER = Visitor()


@contextmanager
def visitor_of(peer: Peer, *, as_itself: bool) -> Iterator[Visitor]:
    """The visitor that a peer would be. `as_itself`: with its identity, whose file is locked meanwhile, and its token.

    Raises: StoreError; DecodeError.
    """
    network_key = load_network_key(peer.network_key)
    if not as_itself:
        yield Visitor(network_key=network_key)
        return
    token = token_of(peer.token) if peer.token else b""
    identity, release = identity_of(peer.identity)
    try:
        yield Visitor(identity, token, network_key)
    finally:
        release()


@asynccontextmanager
async def visiting(contacts: Collection[str], visitor: Visitor = STRANGER) -> AsyncIterator["Libp2pNetwork"]:
    """A network that is entered, and listens nowhere. Raises: NoContactError; UsageError."""
    from legion_p2p.net.host import open_network
    from legion_p2p.net.limits import NetConfig

    whoami = visitor.identity or Identity.generate()
    config = NetConfig(network_key=visitor.network_key)
    async with open_network(whoami, listen=(), initial_peers=tuple(contacts), config=config) as network:
        await network.join()
        yield network


async def members_of(network: "Libp2pNetwork", run: str, visitor: Visitor) -> set[PeerId]:
    """Members of a run, by its name, NAME@CREATOR or id, that can be asked for what they hold.

    A visitor with an identity of its own looks the run up first, and shows its token where the run is private.

    Raises: UnknownRunError, AmbiguousRunError, where it does.
    """
    found = {contact.peer_id: contact.addresses for contact in await network.discovery.find(search_key(run))}
    for peer, addresses in found.items():
        network.messenger.add_addresses(peer, addresses)
    members = set(found)
    if visitor.identity is not None:
        known = await find_run(run, network.messenger, network.discovery, Events())
        members.update(known.contacts)
        if known.spec.admission != "open":
            return await show_token(network.messenger, known.id, visitor.identity, visitor.token, members)
    return members


async def show_token(
    messenger: Messenger, run: str, identity: Identity, token: bytes, members: Collection[PeerId]
) -> set[PeerId]:
    """Those of the members that admit this peer to what they hold of the run. It becomes no member."""
    signed = sign(Announcement(identity.peer_id, run, leaving=True, token=token), identity)
    admitting: set[PeerId] = set()
    rpc = Rpc(messenger)

    async def show(member: PeerId) -> None:
        try:
            await rpc.ask(member, Exchange(run, (signed,)), within_s=SHOW_DEADLINE_S)
        except NetworkError:  # it refuses, or is gone
            return
        admitting.add(member)

    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(show, member)
    return admitting
