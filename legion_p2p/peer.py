"""Where a peer is put together: `open_peer`, the only place at which services meet libp2p, the disk and the status endpoint.

The same engine runs in virtual time over `sim`. Everything that faces torch stands above this (`train`).
"""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from legion_p2p.beside_run import start_beside
from legion_p2p.concurrency.nurseries import TaskStatus, open_flat_nursery
from legion_p2p.config import Peer, PeerConfig, Store
from legion_p2p.core.access_link import NO_LINK
from legion_p2p.core.addresses import parse_addresses
from legion_p2p.core.caps import parse_caps
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import Cid
from legion_p2p.core.control import parse_cpu
from legion_p2p.core.identity import Identity
from legion_p2p.core.privacy import parse_privacy
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.relay_ledger import parse_relay
from legion_p2p.core.retention import parse_retention
from legion_p2p.core.roles import Role
from legion_p2p.files.paths import user_path
from legion_p2p.observe.clocks import running_clock
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.run_search import choose_run
from legion_p2p.services.checkpoint.holders import CheckpointHolders
from legion_p2p.services.ports import FORGOTTEN
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.fitting import Params
from legion_p2p.services.run.joiner import RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.privacy import accountant
from legion_p2p.store.access_lists import token_of
from legion_p2p.store.identity import identity_of
from legion_p2p.store.known_peers_file import KnownPeersFile
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.store.public_blocks import PublicBlocks
from legion_p2p.store.shelf import FileShelf
from legion_p2p.store.spent_file import SpentFile
from legion_p2p.web.checkpoint_desk import CheckpointDesk
from legion_p2p.web.checkpoint_jobs import CheckpointJobs, CheckpointTools
from legion_p2p.web.record import RunRecord

if TYPE_CHECKING:
    from torch import Tensor

    from legion_p2p.net.network import Libp2pNetwork
    from legion_p2p.store.archive import Archive


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

    events = events or Events()
    if peer.on_event is not None:
        events.add_sink(peer.on_event)
    record = RunRecord()
    if peer.dashboard != "no":
        events.add_sink(record, shows=False)
    contacts = parse_addresses(initial_peers)
    if peer.dp:
        accountant()  # before anything is pushed that nobody counts
    whoami, unlock = identity_of(peer.identity)
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
                run = await choose_run(run, network, peer, archive, disk, events, create_or_join=create_or_join)
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
                    if blocks is not None:
                        blocks.is_open = entered.members.access.admission.is_open
                    desk = None if archive is None or tools is None else _desk(entered, archive, tools, peer.store)
                    await start_beside(nursery, entered, network, peer, record, desk)
                    yield entered
            finally:
                network_scope.cancel()
                nursery.cancel_scope.cancel()
    finally:
        if archive is not None:
            archive.close()
        unlock()


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


def _desk(run: ActiveRun, archive: "Archive", tools: CheckpointTools, store: Store) -> CheckpointDesk:
    """The checkpoints on the page. What it does waits for nothing else, and nothing else for it."""
    from legion_p2p.net.offload import ThreadOffload

    exports = user_path(store.exports) if store.exports else None
    jobs = CheckpointJobs(tools, archive.store, ThreadOffload(1), exports)
    return CheckpointDesk(run.me, run.spec, archive, CheckpointHolders(run.ctx, run.members).look, jobs, ThreadOffload(1))


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
