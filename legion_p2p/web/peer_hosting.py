"""Serving the page of a peer beside the peer."""

import time
from collections.abc import Callable
from functools import partial

import trio

from legion_p2p.config import Peer
from legion_p2p.core.control import Command, decode_command
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import NetworkError
from legion_p2p.observe.events import DASHBOARD, Events
from legion_p2p.observe.status import Status
from legion_p2p.web.checkpoint_desk import CheckpointDesk
from legion_p2p.web.hosting import host_page, ports_of
from legion_p2p.web.page_blocks import WebPage
from legion_p2p.web.peer_page import PeerFacts, peer_page
from legion_p2p.web.record import RunRecord
from legion_p2p.web.settings import setting_rows


async def host_peer_page(
    peer: Peer, spec: RunSpec, status: Callable[[], Status], control: Callable[[Command], object], record: RunRecord,
    events: Events, desk: CheckpointDesk | None, nursery: trio.Nursery,
) -> str:  # fmt: skip
    """Serve the page in `nursery`, where this peer is to have one. Its address with its token; empty: there is none."""
    ports = ports_of(peer.dashboard)
    if not ports:
        return ""
    settings = (*setting_rows("", peer), *setting_rows("run", spec))
    facts = PeerFacts(spec.plan().numel, settings, peer.store.path)

    def make() -> WebPage:
        return peer_page(status(), record, facts, time.time(), None if desk is None else desk.table())

    def obey(body: bytes) -> None:
        if desk is None or not desk.obey(body):
            control(decode_command(body))

    key_file = peer.identity if isinstance(peer.identity, str) else ""
    try:
        where: str = await nursery.start(partial(host_page, make, ports=ports, key_file=key_file, obey=obey))
    except NetworkError as bad:  # a port that is taken, or a machine without 127.0.0.1; training needs no page
        events.emit("dashboard.not_served", text=str(bad))
        return ""
    events.emit_private(DASHBOARD, where, address=where.partition("#")[0])
    return where
