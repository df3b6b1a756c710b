"""A bootstrap node from Python: introduces peers to each other, and never loads torch. The command is `legion-bootstrap`."""

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from legion_p2p.config import DEFAULT_BOOTSTRAP_PORT
from legion_p2p.config.fields import argument
from legion_p2p.config.forms import ListenAddresses, PeerAddresses
from legion_p2p.config.peer import IdentityOrFile
from legion_p2p.core.identity import Identity
from legion_p2p.core.relay_ledger import DEFAULT_RELAY, parse_relay

if TYPE_CHECKING:
    from legion_p2p.net.network import Libp2pNetwork

log = logging.getLogger("legion_p2p")

DEFAULT_LISTEN = (f"/ip4/0.0.0.0/tcp/{DEFAULT_BOOTSTRAP_PORT}", f"/ip6/::/tcp/{DEFAULT_BOOTSTRAP_PORT}")


@asynccontextmanager
async def open_bootstrap(
    *,
    listen: Sequence[str] = DEFAULT_LISTEN,
    identity: str | Identity | None = None,
    initial_peers: Iterable[str] = (),
    announce: Sequence[str] = (),
    relay: str = DEFAULT_RELAY,
    network_key: str = "",
) -> "AsyncIterator[Libp2pNetwork]":
    """A bootstrap node for as long as the block lasts. Under trio.

    Its `addresses()` are what peers give as `initial_peers`. With a key file as `identity` they survive a restart. Other nodes
    in `initial_peers` are connected to in the background, for ever; whether they answer or not does not matter to this one.
    `relay`: what passes through it for peers that nobody can dial, in bits per second; "no": it does not relay.
    `network_key`: file with a key that all peers of a network share.
    Beside the key file it keeps the peers that it knows, so that it introduces them again after a restart.

    Raises: UsageError, for an address that cannot be one; NetworkError, if it cannot be listened on; StoreError, for its key.
    """
    from legion_p2p.net.host import open_network
    from legion_p2p.net.limits import NetConfig
    from legion_p2p.store.identity import load_or_create_identity
    from legion_p2p.store.known_peers_file import KnownPeersFile
    from legion_p2p.store.network_key_file import load_network_key

    listen = argument("open_bootstrap(listen=...)", ListenAddresses, listen)
    announce = argument("open_bootstrap(announce=...)", ListenAddresses, announce)
    contacts = argument("open_bootstrap(initial_peers=...)", PeerAddresses, initial_peers)
    limits = parse_relay(relay)
    who = argument("open_bootstrap(identity=...)", IdentityOrFile, identity)
    stored = load_or_create_identity(who) if isinstance(who, str) and who else None
    whoami = stored.identity if stored else (who if isinstance(who, Identity) else Identity.generate())
    try:
        async with open_network(
            whoami,
            listen=listen,
            initial_peers=contacts,
            announce=announce,
            config=NetConfig(relay=limits, relay_unproven=True, network_key=load_network_key(network_key)),
        ) as network:
            network.keep_contacts()
            if stored is None:
                yield network
                return
            async with network.recall.kept(KnownPeersFile.beside(str(who)), log.warning, introduce=True):
                yield network
    finally:
        if stored is not None:
            stored.release()
