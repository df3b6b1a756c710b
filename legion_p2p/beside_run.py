"""What runs beside a peer's part in a run: its user's conditions and lists, its status, its page and its metrics."""

import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from legion_p2p.config import Peer
from legion_p2p.core.addresses import parse_endpoint
from legion_p2p.core.identity import Identity
from legion_p2p.core.manners import ConditionsConfig
from legion_p2p.errors import (
    NetworkError,
    StoreError,
    UsageError,
)
from legion_p2p.files.paths import user_data_folder, user_path
from legion_p2p.observe.events import Events
from legion_p2p.observe.machine import Machine
from legion_p2p.services.run.access_watch import watch_access
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.evidence_keeper import keep_evidence
from legion_p2p.services.run.manners import MannersService
from legion_p2p.services.run.sampling import sample_forever
from legion_p2p.services.run.status import status_of
from legion_p2p.store.access_lists import AccessFiles
from legion_p2p.store.control_key import load_or_create_control_key
from legion_p2p.store.evidence_file import EvidenceFile
from legion_p2p.store.volume_file import VolumeFile
from legion_p2p.web.checkpoint_desk import CheckpointDesk
from legion_p2p.web.peer_hosting import host_peer_page
from legion_p2p.web.record import RunRecord

if TYPE_CHECKING:
    from legion_p2p.net.control_http import ControlDoor
    from legion_p2p.net.network import Libp2pNetwork


def _manners(run: ActiveRun, network: "Libp2pNetwork", conditions: ConditionsConfig, identity: str | Identity) -> MannersService:
    is_file = isinstance(identity, str) and bool(identity)
    return MannersService(
        run.ctx,
        run.control,
        look=Machine(conditions).look,
        counted=lambda: network.volume.wide_bytes,
        month=lambda: time.strftime("%Y-%m"),
        store=VolumeFile.beside(str(identity)) if is_file else None,
    )


def _control_door(run: ActiveRun, events: Events) -> "ControlDoor | None":
    """Where the user's commands go; None where their key cannot be had, so that nobody could show to be the user."""
    from legion_p2p.net.control_http import ControlDoor

    try:
        return ControlDoor(load_or_create_control_key(user_data_folder()), run.control.obey)
    except (StoreError, UsageError) as bad:
        events.emit("control.closed", text=f"{bad}; legion-ctl cannot pause or limit this peer")
        return None


async def _serve_metrics(nursery: trio.Nursery, run: ActiveRun, host: str, port: int) -> None:
    """Where they cannot be served, training goes on."""
    from legion_p2p.net.metrics_http import serve_metrics

    try:
        address = await nursery.start(serve_metrics, partial(status_of, run), host, port)
        run.events.emit("metrics.served", address=f"http://{address}/metrics")
    except NetworkError as bad:
        run.events.error("metrics.not_served", str(bad))


async def start_beside(
    nursery: trio.Nursery, run: ActiveRun, network: "Libp2pNetwork", peer: Peer, record: RunRecord, desk: CheckpointDesk | None
) -> None:
    """Start all of it in `nursery`. `desk`: what the page shows of checkpoints; None: nothing."""
    from legion_p2p.net.status_http import serve_status

    events = run.events
    run.control.caps_changed.add(network.limit)
    conditions = run.ctx.config.manners
    if not conditions.asks_nothing:
        nursery.start_soon(_manners(run, network, conditions, peer.identity).run_forever)
    if isinstance(peer.identity, str) and peer.identity:
        lists = AccessFiles(user_path(peer.identity))
        nursery.start_soon(watch_access, run.ctx, run.members, lists)
        proven = EvidenceFile.beside(user_path(peer.identity))
        await nursery.start(keep_evidence, run.ctx, run.members, proven)
    nursery.start_soon(sample_forever, run)
    status = partial(status_of, run)
    if desk is not None and peer.dashboard != "no":
        nursery.start_soon(desk.run_forever)
    run.dashboard = await host_peer_page(peer, run.spec, status, run.control.obey, record, events, desk, nursery)
    if peer.status:
        try:
            door = _control_door(run, events)
            where = await nursery.start(partial(serve_status, status, control=door))
            events.emit("status.served", address=where)
        except NetworkError as bad:  # a machine without 127.0.0.1; training needs no status
            events.emit("status.not_served", text=f"{bad}; legion-ctl cannot look at this peer")
    if peer.metrics:
        await _serve_metrics(nursery, run, *parse_endpoint(peer.metrics))
