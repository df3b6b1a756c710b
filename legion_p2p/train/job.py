"""What the command `legion-peer` does, once its options are values: `run_job` trains, `plan_job` says what that would take."""

import threading
from collections.abc import Callable

import trio

from legion_p2p.config import Peer, RunChoice, Training
from legion_p2p.core.roles import Role
from legion_p2p.core.run import RunSpec
from legion_p2p.core.units import parse_rate
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import Status
from legion_p2p.services.run.run_discovery import find_run
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.train.control import Control
from legion_p2p.train.described import described
from legion_p2p.train.job_plan import Plan, plan_of
from legion_p2p.train.origin import origin_of
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.rank_work import RankWork
from legion_p2p.train.streamed_text import with_text
from legion_p2p.train.trainer import Trainer
from legion_p2p.visit import Visitor, visiting

PLANNED_CROWDS = (2, 10, 100)  # numbers of members that a plan looks at where nobody names one


def run_job(
    entry: RunChoice,
    peer: Peer,
    training: Training,
    *,
    events: Events,
    control: Control,
    on_status: Callable[[Status], None] | None = None,
    ranks: RankWork | None = None,
) -> Outcome:
    """Join or create the run, train, leave. Blocks; call `control.leave()` to end it in order.

    `ranks`: other processes that compute parts of the batches.

    Raises: LegionError of any kind: JoinError if the run or the network is to blame, IncompatibleModelError, UsageError,
    StoreError.
    """
    return Trainer(entry, peer, training, events, control, on_status, ranks).run()


def plan_job(entry: RunChoice, peer: Peer, training: Training) -> Plan:
    """What it would take. A run that exists is looked up, not joined. Raises: as `run_job`."""
    crowds = (training.wait_for_members,) if training.wait_for_members > 1 else PLANNED_CROWDS
    upload_bps = parse_rate(peer.limits.upload) if peer.limits.upload else None
    if entry.new_run is not None:
        origin = origin_of(entry.new_run, (peer.store.path,))
        spec = described(with_text(entry.new_run, training.data, training.tokenizer), origin.spec if origin else None)
        return plan_of(spec, crowds, upload_bps, Role(peer.role), training)
    return plan_of(look_up(entry, peer), crowds, upload_bps, Role(peer.role), training)


def look_up(entry: RunChoice, peer: Peer) -> RunSpec:
    """The specification of a run that exists, which is not joined. Raises: as `run_job`."""
    found: list[RunSpec | BaseException] = []

    def in_thread() -> None:
        try:
            found.append(trio.run(_look_up, entry, load_network_key(peer.network_key)))
        except BaseException as failed:  # whatever it is: it is raised again in the thread that waits for this one
            found.append(failed)

    # In a thread: the main one's signal handling belongs to the caller.
    thread = threading.Thread(target=in_thread, daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


async def _look_up(entry: RunChoice, network_key: bytes) -> RunSpec:
    async with visiting(entry.initial_peers, Visitor(network_key=network_key)) as network:
        found = await find_run(entry.run, network.messenger, network.discovery, Events())
        return found.spec
