"""Where a peer is put together: `open_peer`, the only place at which services meet libp2p, the disk and the status endpoint.

The same engine runs in virtual time over `sim`. Everything that faces torch stands above this (`train`).
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from legion_p2p.concurrency.nurseries import TaskStatus, open_flat_nursery
from legion_p2p.config import Peer, PeerConfig, Store
from legion_p2p.core.access_link import NO_LINK
from legion_p2p.core.addresses import parse_addresses, parse_endpoint
from legion_p2p.core.caps import parse_caps
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import Cid
from legion_p2p.core.control import parse_cpu
from legion_p2p.core.identity import Identity
from legion_p2p.core.manners import ConditionsConfig
from legion_p2p.core.privacy import parse_privacy
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.relay_ledger import parse_relay
from legion_p2p.core.retention import parse_retention
from legion_p2p.core.roles import Role
from legion_p2p.core.run import run_id
from legion_p2p.errors import (
    HOW_TO_CREATE,
    NetworkError,
    NoContactError,
    RunExistsError,
    StoreError,
    UnknownRunError,
    UsageError,
)
from legion_p2p.files.paths import user_data_folder, user_path
from legion_p2p.observe.clocks import running_clock
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.observe.machine import Machine
from legion_p2p.services.checkpoint.holders import CheckpointHolders
from legion_p2p.services.ports import FORGOTTEN
from legion_p2p.services.run.access_watch import watch_access
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.discovery import find_run
from legion_p2p.services.run.evidence_keeper import keep_evidence
from legion_p2p.services.run.joiner import SHORT_SEARCH_S, Params, RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.run.manners import MannersService
from legion_p2p.services.run.sampling import sample_forever
from legion_p2p.services.run.status import status_of
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.privacy import accountant
from legion_p2p.store.access_lists import AccessFiles, token_of
from legion_p2p.store.control_key import load_or_create_control_key
from legion_p2p.store.evidence_file import EvidenceFile
from legion_p2p.store.known_peers_file import KnownPeersFile
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.store.public_blocks import PublicBlocks
from legion_p2p.store.shelf import FileShelf
from legion_p2p.store.spent_file import SpentFile
from legion_p2p.store.volume_file import VolumeFile
from legion_p2p.web.checkpoint_desk import CheckpointDesk
from legion_p2p.web.checkpoint_jobs import CheckpointJobs, CheckpointTools
from legion_p2p.web.peer_hosting import host_peer_page
from legion_p2p.web.record import RunRecord

if TYPE_CHECKING:
    from torch import Tensor

    from legion_p2p.net.control_http import ControlDoor
    from legion_p2p.net.network import Libp2pNetwork
    from legion_p2p.store.archive import Archive

LAN_SEARCH_S = 8.0  # for a first neighbour: mDNS asks after 0, 1 and 3 s, and the neighbour is dialed


@asynccontextmanager
async def open_peer(
    run: str | RunCreation,
    peer: Peer = Peer(),
    *,
    initial_peers: Iterable[str] = (),
    create_or_join: bool = False,
    params: Params = None,
    start: "Tensor | None" = None,
    events: Events | None = None,
    tools: CheckpointTools | None = None,
) -> AsyncIterator[ActiveRun]:
    """A peer in a run, for as long as the block lasts. Under trio. Leaving the block leaves the run in order.

    `run`: the name or id of a run to join, or one to create. `create_or_join`: create it only if neither the peer's store nor
    anybody who answers has a run of its name; else go on with that, or join it. `params`: those of the model that shall train, or
    a function that makes them of the run's specification; a run that has others is refused. `start`: what the run's parameters
    were in the beginning; shards that still are like that are not fetched. `tools`: what the page can do with checkpoints.

    With a store, a run that nobody in reach has, but the store, goes on from there, and `initial_peers` may be empty or dead.

    Raises: NoContactError; UnknownRunError, AmbiguousRunError, RunExistsError; IncompatibleModelError; UsageError; StoreError.
    """
    from legion_p2p.net.host import open_network
    from legion_p2p.net.limits import NetConfig
    from legion_p2p.net.netem import Throttling
    from legion_p2p.net.offload import ThreadOffload
    from legion_p2p.net.parts import Tell
    from legion_p2p.net.status_http import serve_status

    events = events or Events()
    if peer.on_event is not None:
        events.add_sink(peer.on_event)
    record = RunRecord()
    if peer.dashboard != "no":
        events.add_sink(record, shows=False)
    contacts = parse_addresses(initial_peers)
    if peer.dp:
        accountant()  # before anything is pushed that nobody counts
    whoami, unlock = _identity_of(peer)
    disk = ThreadOffload(1)
    try:
        archive = open_archive(peer.store, whoami, events) if peer.store.path else None
    except BaseException:  # an interrupt as well: the identity must not stay locked
        unlock()
        raise
    blocks = None if archive is None else PublicBlocks(archive)
    opened = partial(
        open_network,
        whoami,
        listen=peer.listen,
        initial_peers=contacts,
        announce=peer.announce,
        throttling=Throttling(
            parse_link(peer.limits.netem) if peer.limits.netem else NO_LINK,
            parse_caps(peer.limits.upload, peer.limits.download, peer.limits.quiet_hours),
        ),
        config=NetConfig(
            relay=parse_relay(peer.relay),
            speed_tests=peer.speed_tests,
            lan=peer.lan,
            port_mapping=peer.port_mapping,
            network_key=load_network_key(peer.network_key),
        ),
        blocks=blocks,
        tell=Tell(warning=lambda text: events.error("network.scarce", text), events=events),
    )

    def remembering(network: "Libp2pNetwork") -> AbstractAsyncContextManager[None]:
        """A peer with a key file remembers whom it was connected with, for the next time."""
        if not (isinstance(peer.identity, str) and peer.identity):
            return nullcontext()
        file = KnownPeersFile.beside(peer.identity)
        return network.recall.kept(file, lambda text: events.error("network.not_remembered", text), introduce=False)

    async def host(task_status: TaskStatus[tuple["Libp2pNetwork", trio.CancelScope]]) -> None:
        # Shielded: a caller that is cancelled still has a network to leave the run over.
        with trio.CancelScope(shield=True) as scope:
            async with opened() as network, remembering(network):
                task_status.started((network, scope))
                await trio.sleep_forever()

    try:
        async with open_flat_nursery() as nursery:
            network, network_scope = await nursery.start(host)
            try:
                name = run if isinstance(run, str) else run.spec.name
                stored = await disk(_stored_id, archive, name) if archive is not None else ""
                if isinstance(run, RunCreation) and stored and not create_or_join:
                    raise RunExistsError(
                        f"the store {peer.store.path} holds a run named {name!r} already, with the id {stored}: "
                        f"--run {name} goes on with it, from Python join({name!r}); or choose another name, or another store"
                    )
                if network.dial_reports:
                    events.emit(PHASE, text=f"connecting to {len(network.dial_reports)} initial peers")
                is_alone = not (stored or network.dial_reports or isinstance(run, RunCreation))
                if is_alone and not await _meets_a_neighbour(network, events):
                    losses = await disk(archive.losses, name.partition("@")[0]) if archive is not None else ""
                    raise UsageError(_nobody_to_ask(name, peer.store, losses, peer.lan))
                await _connect(network, bool(stored), events)
                if isinstance(run, RunCreation) and create_or_join:
                    run = stored or await _living_id(network, name, events) or run
                is_new = isinstance(run, RunCreation)
                events.emit(PHASE, text="creating the run" if is_new else f"looking for run {run}, and fetching its model")
                parts = PeerParts(
                    network,
                    offload=ThreadOffload(),
                    mailbox=Mailbox(),
                    events=events,
                    config=_config_of(peer),
                    rng=random.Random(),
                    running_clock=running_clock,
                    archive=archive,
                    disk=disk,
                    shelf=FileShelf(user_path(peer.store.path) if peer.store.path else None),
                    spent=SpentFile.beside(peer.identity) if isinstance(peer.identity, str) and peer.identity else FORGOTTEN,
                )
                if isinstance(run, RunCreation):
                    entering = creating(parts, run)
                else:
                    entering = joining(parts, run, params, search_s=peer.search_s, start=start)
                async with entering as entered:
                    entered.control.caps_changed.add(network.limit)
                    conditions = entered.ctx.config.manners
                    if not conditions.asks_nothing:
                        nursery.start_soon(_manners(entered, network, conditions, peer.identity).run_forever)
                    if blocks is not None:
                        blocks.is_open = entered.members.access.admission.is_open
                    if isinstance(peer.identity, str) and peer.identity:
                        lists = AccessFiles(user_path(peer.identity))
                        nursery.start_soon(watch_access, entered.ctx, entered.members, lists)
                        proven = EvidenceFile.beside(user_path(peer.identity))
                        await nursery.start(keep_evidence, entered.ctx, entered.members, proven)
                    nursery.start_soon(sample_forever, entered)
                    status = partial(status_of, entered)
                    desk = None if archive is None or tools is None else _desk(entered, archive, tools, peer.store)
                    if desk is not None and peer.dashboard != "no":
                        nursery.start_soon(desk.run_forever)
                    entered.dashboard = await host_peer_page(
                        peer, entered.spec, status, entered.control.obey, record, events, desk, nursery
                    )
                    if peer.status:
                        try:
                            door = _door(entered, events)
                            where = await nursery.start(partial(serve_status, status, control=door))
                            events.emit("status.served", address=where)
                        except NetworkError as bad:  # a machine without 127.0.0.1; training needs no status
                            events.emit("status.not_served", text=f"{bad}; legion-ctl cannot look at this peer")
                    if peer.metrics:
                        await _serve_metrics(nursery, entered, *parse_endpoint(peer.metrics))
                    yield entered
            finally:
                network_scope.cancel()
                nursery.cancel_scope.cancel()
    finally:
        if archive is not None:
            archive.close()
        unlock()


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


def _desk(run: ActiveRun, archive: "Archive", tools: CheckpointTools, store: Store) -> CheckpointDesk:
    """The checkpoints on the page. What it does waits for nothing else, and nothing else for it."""
    from legion_p2p.net.offload import ThreadOffload

    exports = user_path(store.exports) if store.exports else None
    jobs = CheckpointJobs(tools, archive.store, ThreadOffload(1), exports)
    return CheckpointDesk(run.me, run.spec, archive, CheckpointHolders(run.ctx, run.members).look, jobs, ThreadOffload(1))


def _door(run: ActiveRun, events: Events) -> "ControlDoor | None":
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


def _config_of(peer: Peer) -> PeerConfig:
    checkpoints = CheckpointConfig(every_s=peer.store.checkpoint_every_s)
    return PeerConfig(
        region=peer.region,
        weight=peer.weight,
        role=Role(peer.role),
        volunteer_relay=peer.volunteer_relay,
        checkpoints=checkpoints,
        token=token_of(peer.token) if peer.token else b"",
        caps=parse_caps(peer.limits.upload, peer.limits.download, peer.limits.quiet_hours),
        offload=peer.offload == "disk",
        privacy=parse_privacy(peer.dp) if peer.dp else None,
        max_cpu=parse_cpu(peer.manners.max_cpu) if peer.manners.max_cpu else None,
        manners=peer.manners.conditions(),
    )


def _stored_id(archive: "Archive", run: str) -> str:
    """The id of the run of this name or id of which the store has the newest checkpoint; empty where it has none."""
    return next((run_id(stored.signed) for stored in archive.find(run.partition("@")[0])), "")


async def _living_id(network: "Libp2pNetwork", name: str, events: Events) -> str:
    """The id of the run of this name that somebody in reach has; empty where nobody has."""
    if not network.messenger.connected():
        return ""
    try:
        found = await find_run(name, network.messenger, network.discovery, events, search_s=SHORT_SEARCH_S)
    except UnknownRunError:
        return ""
    return found.id


async def _meets_a_neighbour(network: "Libp2pNetwork", events: Events) -> bool:
    """Whether there is a peer on this LAN through which a run may be found."""
    if network.lan is None:
        return False
    events.emit(PHASE, text="looking for peers on this LAN")
    with trio.move_on_after(LAN_SEARCH_S):
        await network.lan.met.wait()
    return network.lan.met.is_set()


def _nobody_to_ask(name: str, store: Store, losses: str, lan: bool) -> str:
    problem = f"no initial peers are given to find the run {name!r} through"
    if lan:
        problem += f", and no peer on this LAN was found in {LAN_SEARCH_S:.0f} s"
    if losses:
        return f"{problem}, and {losses}"
    where = f", and the store {store.path} holds no checkpoint of it" if store.path else ""
    return f"{problem}{where}; {HOW_TO_CREATE}"


async def _connect(network: "Libp2pNetwork", is_stored: bool, events: Events) -> None:
    """Connect to the initial peers; where none answers, a stored run is enough. Raises: NoContactError."""
    try:
        await network.join()
    except NoContactError as nobody:
        if not is_stored:
            raise
        events.emit("run.nobody_answers", text=str(nobody))


def open_archive(store: Store, identity: Identity, events: Events) -> "Archive":
    """The checkpoints in a folder, for one peer. Raises: StoreError."""
    from legion_p2p.store.archive import Archive
    from legion_p2p.store.blocks import BlockStore
    from legion_p2p.store.dataset_files import DatasetBlocks, keep_tokenizer

    def on_corrupt(cid: Cid, moved_to: Path) -> None:
        events.error("store.damaged", f"block {cid} was not whole and is now {moved_to}")

    quota_bytes = round(store.max_gb * 1e9) or None
    shared = [DatasetBlocks(user_path(folder)) for folder in store.shared]
    blocks = BlockStore(store.path, quota_bytes=quota_bytes, on_corrupt=on_corrupt)
    try:
        for folder in store.shared:
            keep_tokenizer(user_path(folder), blocks)
    except BaseException:  # an interrupt as well: the store must not stay locked
        blocks.close()
        raise
    return Archive(blocks, identity, parse_retention(store.keep), shared)


def _identity_of(peer: Peer) -> tuple[Identity, Callable[[], None]]:
    """Who the peer is, and how its key file becomes free again."""
    if isinstance(peer.identity, Identity):
        return peer.identity, lambda: None
    if not peer.identity:
        return Identity.generate(), lambda: None
    from legion_p2p.store.identity import load_or_create_identity

    stored = load_or_create_identity(peer.identity)
    return stored.identity, stored.release
