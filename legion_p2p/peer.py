"""Where everything is put together: `open_peer` for async code, `Optimizer` for an ordinary training loop.

Only here do services meet libp2p. The same engine runs in virtual time over `sim`.
"""

import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import trio
from torch import Tensor, nn

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.config import DEFAULT_LISTEN, Job, PeerConfig, convert
from legion_p2p.core.access_link import NO_LINK
from legion_p2p.core.addresses import parse_addresses
from legion_p2p.core.caps import parse_caps
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.presets import LINKS, Links
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.retention import Retention, parse_retention
from legion_p2p.core.run import RoundSpec, RunName, RunSpec
from legion_p2p.core.units import parse_rate
from legion_p2p.errors import IncompatibleModelError, NetworkError, NoContactError, NonFiniteError, UsageError
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.observe.status import Status
from legion_p2p.services.ports import Offload
from legion_p2p.services.run.discovery import SEARCH_S, find_run
from legion_p2p.services.run.joiner import Params, RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.run.run import Run
from legion_p2p.services.run.status import status_of
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.averaging import AverageResult, average_once
from legion_p2p.train.bridge import Opener, PeerThread
from legion_p2p.train.described import Plan, described, plan_of
from legion_p2p.train.inner_list import as_one
from legion_p2p.train.optimizer import SwarmOptimizer, check_wrappable
from legion_p2p.train.parameters import ModelView, param_specs
from legion_p2p.train.trainer import Outcome, Stop, Trainer

PLANNED_CROWDS = (2, 10, 100)  # numbers of members that a plan looks at where the job names none

if TYPE_CHECKING:
    from legion_p2p.store.archive import Archive


@asynccontextmanager
async def open_peer(
    run: str = "",
    *,
    founding: RunCreation | None = None,
    params: Params = None,
    initial_peers: Iterable[str] = (),
    listen: Sequence[str] = DEFAULT_LISTEN,
    announce: Sequence[str] = (),
    identity: str | Identity | None = None,
    config: PeerConfig | None = None,
    netem: str = "",
    upload_limit: str = "",
    download_limit: str = "",
    quiet_hours: str = "",
    events: Events | None = None,
    status: bool = True,
    search_s: float = SEARCH_S,
    start: Tensor | None = None,
    store: str | Path = "",
    store_limit_bytes: int | None = None,
    keep: str = "last=3",
    volunteer_relay: bool = False,
) -> AsyncIterator[Run]:
    """A peer in a run, for as long as the block lasts. Under trio.

    `run` is the name or id of a run to join; or `founding` describes one to found. `params` are those of the model that shall
    train, or a function that makes them of the run's specification: where they differ from the run's, it is refused.
    `identity` is a key file or an Identity; None: a new one. `status`: serve the status on loopback for `legion-ctl`. `netem`: a
    link to emulate ("cable", "up=20mbit,rtt=50ms"). `upload_limit`, `download_limit` ("10mbit") and `quiet_hours`
    ("22:00-07:00=2mbit"): limits on all traffic of this peer. Leaving the block leaves the run in order.

    `store`: folder for checkpoints, made on first use; empty: none are kept. With one, a run that nobody in reach has, but the
    store, goes on from there, and `initial_peers` may be empty or dead. `store_limit_bytes`: of its blocks; None: no limit.
    `keep`: which checkpoints stay ("last=3,every=100"). `volunteer_relay`: meet other regions for owners with little upload.

    Raises: NoContactError; UnknownRunError, AmbiguousRunError, RunExistsError; IncompatibleModelError; UsageError.
    """
    from legion_p2p.net.host import open_network
    from legion_p2p.net.offload import ThreadOffload
    from legion_p2p.net.status_http import serve_status

    if bool(run) == (founding is not None):
        raise UsageError("give either the run to join or the one to found")
    events = events or Events()
    config = config or PeerConfig()
    if volunteer_relay:
        config = msgspec.structs.replace(config, volunteer_relay=True)
    initial_peers = tuple(initial_peers)
    contacts = parse_addresses(initial_peers)
    if initial_peers and not contacts:
        raise UsageError(f"{' '.join(initial_peers)} holds no address; a line as legion-bootstrap prints it would do")
    link = parse_link(netem) if netem else NO_LINK
    caps = parse_caps(upload_limit, download_limit, quiet_hours)
    keeping = parse_retention(keep)
    whoami, unlock = _identity(identity)
    disk = ThreadOffload(1)
    try:
        archive = open_archive(store, store_limit_bytes, whoami, keeping, events) if store else None
    except BaseException:  # an interrupt as well: the identity must not stay locked
        unlock()
        raise
    network_options = {"listen": listen, "initial_peers": contacts, "announce": announce, "link": link, "caps": caps}
    network_options |= {"blocks": archive, "warn": lambda text: events.error("network.scarce", text)}

    async def host(task_status: trio.TaskStatus[tuple[Any, trio.CancelScope]]) -> None:
        # Shielded: a caller that is cancelled still has a network to leave the run over.
        with trio.CancelScope(shield=True) as scope:
            async with open_network(whoami, **network_options) as network:
                task_status.started((network, scope))
                await trio.sleep_forever()

    try:
        async with open_flat_nursery() as nursery:
            network, network_scope = await nursery.start(host)
            try:
                if network.dial_reports:
                    events.emit(PHASE, text=f"connecting to {len(network.dial_reports)} initial peers")
                await _join(network, run, archive, disk, events)
                events.emit(PHASE, text=f"looking for run {run}, and fetching its model" if run else "creating the run")
                parts = PeerParts(
                    network,
                    offload=ThreadOffload(),
                    mailbox=Mailbox(),
                    events=events,
                    config=config,
                    rng=random.Random(),
                    archive=archive,
                    disk=disk,
                )
                entering = creating(parts, founding) if founding else joining(parts, run, params, search_s=search_s, start=start)
                async with entering as engine:
                    if status:
                        try:
                            where = await nursery.start(partial(serve_status, partial(status_of, engine)))
                            events.emit("status.served", address=where)
                        except NetworkError as bad:  # a machine without 127.0.0.1; training needs no status
                            events.emit("status.not_served", text=f"{bad}; legion-ctl cannot look at this peer")
                    yield engine
            finally:
                network_scope.cancel()
                nursery.cancel_scope.cancel()
    finally:
        if archive is not None:
            archive.close()
        unlock()


async def _join(network: Any, run: str, archive: Any, disk: Offload, events: Events) -> None:
    """Connect to the initial peers; where none answers, a stored run is enough. Raises: NoContactError; UsageError."""
    stored = run and archive is not None and bool(await disk(archive.find, run))
    if run and not network.dial_reports and not stored:
        where = "" if archive is None else f", and {archive.store.path} holds no checkpoint of it"
        raise UsageError(f"no initial peers are given to find the run {run!r} through{where}")
    try:
        await network.join()
    except NoContactError as nobody:
        if not stored:
            raise
        events.emit("run.nobody_answers", text=str(nobody))


def open_archive(path: str | Path, limit_bytes: int | None, identity: Identity, keep: Retention, events: Events) -> "Archive":
    """The checkpoints in a folder, for one peer. Raises: StoreError."""
    from legion_p2p.store.archive import Archive
    from legion_p2p.store.blocks import BlockStore

    def on_corrupt(cid: Cid, moved_to: Path) -> None:
        events.error("store.damaged", f"block {cid} was not whole and is now {moved_to}")

    return Archive(BlockStore(path, quota_bytes=limit_bytes, on_corrupt=on_corrupt), identity, keep)


def _identity(identity: str | Identity | None) -> "tuple[Identity, Any]":
    if isinstance(identity, Identity):
        return identity, lambda: None
    if not identity:
        return Identity.generate(), lambda: None
    from legion_p2p.store.identity import load_or_create_identity

    loaded = load_or_create_identity(identity)
    return loaded, getattr(loaded, "release", lambda: None)


class Optimizer(SwarmOptimizer):
    """A torch optimizer that trains `model` together with everybody else in a run.

        opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])

    It is used like the optimizer inside it: step(), zero_grad(), closures, state_dict(), lr schedulers. Joining replaces the
    model's parameters by the run's. With `new_run=True` it founds the run instead, with this model's parameters as the start.

    Args:
        inner: the optimizer that makes the local steps, or a list of several. It holds all trainable parameters of `model`.
        model: a module, or its (name, parameter) pairs. The parameters that require gradients are the run's.
        run: name or id of the run.
        initial_peers: addresses of any peers or bootstrap nodes, or "@file".
        new_run: found the run. An existing one of that name is an error.
        links: what the connections of a new run's members carry ("lan", "fibre", "cable", "dsl"): chooses local_steps, codecs and
            the rest as was measured to be best there, with Muon inside (`MuonAdamW.of(model)`). None: int8, which suits any.
        tokens_per_step: weight of one local step relative to those of other members, such as tokens in a batch.
        upload_limit, download_limit, quiet_hours, netem: limits on this peer's traffic, and a link to emulate; see `open_peer`.
        store, store_limit_bytes, keep: where checkpoints are kept, and which; see `open_peer`. Off without `store`.
        volunteer_relay: meet other regions for owners of this one that have little upload. For a peer that has much.
        local_steps, synchronous, push_codec, update_codec, ...: fields of RoundSpec. Who founds a run chooses them; for who
            joins they are what it expects, and a run that has others is refused.

    Raises: NoContactError, if no initial peer answers; UnknownRunError; IncompatibleModelError, naming the first
    parameter that differs;
    UsageError.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        run: str,
        initial_peers: Iterable[str] = (),
        new_run: bool | None = None,
        links: Links | None = None,
        tokens_per_step: Any = 1,
        identity: str | Identity | None = None,
        listen: Sequence[str] = DEFAULT_LISTEN,
        announce: Sequence[str] = (),
        config: PeerConfig | None = None,
        netem: str = "",
        upload_limit: str = "",
        download_limit: str = "",
        quiet_hours: str = "",
        events: Events | None = None,
        status: bool = True,
        search_s: float = SEARCH_S,
        store: str | Path = "",
        store_limit_bytes: int | None = None,
        keep: str = "last=3",
        volunteer_relay: bool = False,
        seed: int = 0,
        **round_fields: Any,
    ) -> None:
        inner = as_one(inner)
        own = ModelView(model)
        check_wrappable(inner, FlatView(own.trained))
        initial_peers = (initial_peers,) if isinstance(initial_peers, str) else tuple(initial_peers)
        if not initial_peers and not new_run and not store:
            raise UsageError("no initial_peers to find the run through; new_run=True founds it")
        wanted = convert({**(LINKS[_known_links(links)]["round"] if links else {}), **round_fields}, RoundSpec)
        founding = None
        if new_run:
            view = FlatView(own.in_run(wanted.untrained))
            fixed = () if wanted.untrained == "own" else own.fixed()
            spec = RunSpec(name=convert_name(run), founder="", params=param_specs(view), round=wanted, seed=seed, fixed=fixed)
            spec.plan()
            founding = RunCreation(spec, view.snapshot())

        def opener() -> AbstractAsyncContextManager[Run]:
            return open_peer(
                "" if founding else run,
                founding=founding,
                params=own.fit,
                initial_peers=initial_peers,
                listen=listen,
                announce=announce,
                identity=identity,
                config=config,
                netem=netem,
                upload_limit=upload_limit,
                download_limit=download_limit,
                quiet_hours=quiet_hours,
                events=events,
                status=status,
                search_s=search_s,
                store=store,
                store_limit_bytes=store_limit_bytes,
                keep=keep,
                volunteer_relay=volunteer_relay,
            )

        thread = PeerThread(opener)
        try:
            _check_rounds(thread.engine, round_fields)
            view = FlatView(own.in_run(thread.engine.spec.round.untrained))
            super().__init__(inner, view, thread, tokens_per_step=tokens_per_step, name_of=own.name_of)
        except BaseException:  # Ctrl+C as well: the peer would stay in the run
            thread.close()
            raise


def _known_links(links: str) -> str:
    if links not in LINKS:
        raise UsageError(f"links {links!r}, known are {', '.join(LINKS)}")
    return links


def average(
    tensors: Sequence[Tensor],
    *,
    run: str,
    n_peers: int,
    initial_peers: Iterable[str] = (),
    new_run: bool = False,
    codec: str = "fp32",
    gather_s: float = 60.0,
    identity: str | Identity | None = None,
    listen: Sequence[str] = DEFAULT_LISTEN,
    announce: Sequence[str] = (),
    config: PeerConfig | None = None,
    netem: str = "",
    upload_limit: str = "",
    download_limit: str = "",
    quiet_hours: str = "",
    events: Events | None = None,
) -> AverageResult:
    """The mean of these tensors over `n_peers` peers, each of which calls this with tensors of the same shapes. Blocks.

        result = legion.average([grad], run="grads/17", initial_peers=[...], n_peers=4)

    Every peer ends with the same bits. One of them founds the run, with `new_run=True`. A peer that
    dies on the way is missing in the result and named in `failed`; one that is merely slow is waited for.

    Args:
        codec: how the bytes travel; every peer must name the same one. With fp32 the mean is exact.
        gather_s: seconds until all must have found each other.
        upload_limit, download_limit, quiet_hours, netem: as in `open_peer`.

    Raises: JoinError, if fewer came; NonFiniteError; IncompatibleModelError, naming the first tensor that differs; otherwise as
    `Optimizer`.
    """
    named = [(str(i), tensor.detach()) for i, tensor in enumerate(tensors)]
    view = FlatView(named)
    values = view.snapshot()
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("the tensors to average contain NaN or infinity")
    params = param_specs(view)
    initial_peers = (initial_peers,) if isinstance(initial_peers, str) else tuple(initial_peers)
    founding = None
    if not initial_peers and not new_run:
        raise UsageError("no initial_peers to find the run through; new_run=True founds it")
    if new_run:
        rounds = RoundSpec(local_steps=1, push_codec=codec, update_codec=codec, norm_cap=0.0, quorum=1.0, synchronous=True)
        spec = RunSpec(name=convert_name(run), founder="", params=params, round=rounds)
        founding = RunCreation(spec, torch.zeros_like(values))

    def fit(spec: RunSpec) -> Sequence[ParamSpec]:
        if spec.round.push_codec != codec or spec.round.quorum < 1:
            raise IncompatibleModelError(f"run {run!r} averages with codec {spec.round.push_codec!r}, asked for was {codec!r}")
        return params

    def opener() -> AbstractAsyncContextManager[Run]:
        return open_peer(
            "" if founding else run,
            founding=founding,
            params=fit,
            initial_peers=initial_peers,
            listen=listen,
            announce=announce,
            identity=identity,
            config=config,
            netem=netem,
            upload_limit=upload_limit,
            download_limit=download_limit,
            quiet_hours=quiet_hours,
            events=events,
            status=False,
            search_s=gather_s,
            start=torch.zeros_like(values),
        )

    thread = PeerThread(opener)
    try:
        mean = thread.wait(average_once, thread.engine, values, n_peers, gather_s)
    finally:
        thread.close()
    results = tuple(torch.empty_like(tensor) for _, tensor in named)
    FlatView([(name, result) for (name, _), result in zip(named, results, strict=True)]).assign_slice(0, mean.flat)
    return AverageResult(results, mean.averaged_fraction, mean.failed, mean.digest, mean.sent_bytes, mean.received_bytes)


def convert_name(name: str) -> str:
    """Check a run's name. Raises: UsageError, telling what is allowed."""
    try:
        return msgspec.convert(name, RunName)
    except msgspec.ValidationError:
        allowed = "letters, digits, and . _ / - after the first character, at most 100"
        raise UsageError(f"run name {name!r}: allowed are {allowed}") from None


def _check_rounds(engine: Run, expected: dict[str, Any]) -> None:
    """Check that a run averages as the caller expects. Raises: IncompatibleModelError, naming what differs."""
    assert engine.spec is not None
    for name, value in expected.items():
        actual = getattr(engine.spec.round, name)
        if actual != value:
            raise IncompatibleModelError(f"run {engine.spec.name!r} has {name} {actual!r}, expected was {value!r}")


def run_job(
    job: Job,
    *,
    events: Events,
    stop: Stop,
    on_status: Callable[[Status], None] | None = None,
    status_every_s: float = 0.5,
) -> Outcome:
    """Do what `legion-peer` does: join or found the job's run, train, leave. Blocks; call `stop.request()` to end it in order.

    Raises: LegionError of any kind: JoinError if the run or the network is to blame, IncompatibleModelError, UsageError,
    StoreError.
    """
    return Trainer(job, partial(_opener_of, job), events, stop, on_status, status_every_s).run()


def plan_job(job: Job) -> Plan:
    """What a job would take. A run that exists is looked up, not joined. Raises: as `run_job`."""
    crowds = (job.wait_for_members,) if job.wait_for_members > 1 else PLANNED_CROWDS
    upload_bps = parse_rate(job.upload) if job.upload else None
    if job.new_run is not None:
        return plan_of(described(job.new_run), crowds, upload_bps)
    found: list[RunSpec | BaseException] = []

    def look_up() -> None:
        try:
            found.append(trio.run(_look_up, job))
        except BaseException as failed:  # whatever it is: it is raised again in the thread that waits for this one
            found.append(failed)

    # In a thread: the main one's signal handling belongs to the caller.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return plan_of(found[0], crowds, upload_bps)


async def _look_up(job: Job) -> RunSpec:
    from legion_p2p.net.host import open_network

    contacts = parse_addresses(job.initial_peers)
    async with open_network(Identity.generate(), listen=(), initial_peers=contacts) as network:
        await network.join()
        found = await find_run(job.run, network.messenger, network.discovery, Events())
        return found.spec


def _opener_of(job: Job, *, founding: RunCreation | None, params: Params, events: Events) -> Opener:
    def opener() -> AbstractAsyncContextManager[Run]:
        return open_peer(
            "" if founding else job.run,
            founding=founding,
            params=params,
            initial_peers=job.initial_peers,
            listen=job.listen,
            announce=job.announce,
            identity=job.identity,
            config=PeerConfig(region=job.region, weight=job.weight, checkpoints=CheckpointConfig(every_s=job.checkpoint_every_s)),
            netem=job.netem,
            upload_limit=job.upload,
            download_limit=job.download,
            quiet_hours=job.quiet_hours,
            events=events,
            status=job.status,
            store=job.store,
            store_limit_bytes=round(job.store_limit_gb * 1e9) or None,
            keep=job.keep,
            volunteer_relay=job.volunteer_relay,
        )

    return opener
