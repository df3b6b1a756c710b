"""`legion-peer --role helper`: a member that trains nothing.

It owns shards where others can reach it, stands by, stores checkpoints, serves newcomers and relays: all that is the services'
business, which run as in any other member. So there is no model, no text and no optimizer here, and none of their modules is
imported: a helper needs a CPU and memory for the parameters, and no GPU.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from legion_p2p.config import Peer, RunChoice, Training
from legion_p2p.core.control import Wish
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.files.paths import user_path
from legion_p2p.files.writing import make_folder
from legion_p2p.observe.event_text import JOIN_WITH
from legion_p2p.observe.events import Events
from legion_p2p.observe.metrics import JsonlSink
from legion_p2p.observe.status import Status
from legion_p2p.observe.words import join_command
from legion_p2p.peer import open_peer
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.status import status_of
from legion_p2p.train.bridge import AT_EXIT_S, PeerThread
from legion_p2p.train.checkpoint_tools import CHECKPOINT_TOOLS
from legion_p2p.train.control import Control
from legion_p2p.train.outcome import Outcome

LOOK_EVERY_S = 0.5

OF_TRAINING = ("data", "tokenizer", "steps", "eval_every_s", "average", "eval_tasks", "seed", "device", "wait_for_members")
"""Fields of Training that mean nothing to a helper."""


def check_helper(entry: RunChoice, training: Training) -> None:
    """Raises: UsageError, naming what a helper has no use for."""
    if entry.new_run is not None:
        raise UsageError("a helper joins a run that is there: a peer that trains creates it, with --new-run")
    useless = [f"--{field.replace('_', '-')}" for field in OF_TRAINING if getattr(training, field) != getattr(Training(), field)]
    if useless:
        raise UsageError(f"{', '.join(useless)}: a helper trains nothing (--role helper)")


def run_helper(
    entry: RunChoice,
    peer: Peer,
    training: Training,
    *,
    events: Events,
    control: Control,
    on_status: Callable[[Status], None] | None = None,
) -> Outcome:
    """Join the run, help until it is asked to leave, or as long as the job says, and leave. Blocks.

    Raises: LegionError of any kind, as `train.job.run_job`.
    """
    check_helper(entry, training)
    if training.out:
        events.add_sink(JsonlSink(make_folder(user_path(training.out)) / "metrics.jsonl"))

    def opener() -> AbstractAsyncContextManager[ActiveRun]:
        return open_peer(entry.run, peer, initial_peers=entry.initial_peers, events=events, tools=CHECKPOINT_TOOLS)

    try:
        thread = PeerThread(opener, lambda: control.leaving)
    except ClosedError:
        if not control.leaving:
            raise
        return Outcome(0, 0, None, "", "stopped")
    try:
        return _help(thread, training, events, control, on_status)
    finally:
        thread.close(AT_EXIT_S)


def _help(
    thread: PeerThread, training: Training, events: Events, control: Control, on_status: Callable[[Status], None] | None
) -> Outcome:
    run = thread.engine
    control.attach(thread)
    addresses = thread.call(run.network.addresses)
    if addresses:
        events.emit(JOIN_WITH, command=join_command(run.spec.name, addresses))
    deadline = time.monotonic() + 60 * training.minutes if training.minutes else math.inf
    reason = ""
    while not reason:
        if control.wait(LOOK_EVERY_S):
            reason = "stopped"
        elif run.target.reached:
            reason = "target" if thread.call(run.all_done) else ""
        elif run.control.wish.ends:
            reason = "finished" if run.control.wish is Wish.FINISH else "stopped"
        elif time.monotonic() >= deadline:
            reason = "minutes"
        elif training.finish_together and thread.call(run.all_done):
            reason = "together"
        run.mailbox.drain()  # nobody trains here on what it brings
        status = thread.call(status_of, run)
        if on_status is not None:
            on_status(status)
    connected = tuple(sorted(thread.call(run.messenger.connected)))
    events.emit(
        "run.finished", reason=reason, step=0, tokens=0, val_loss=None, digest=status.common_digest, sent_bytes=status.sent_bytes,
        received_bytes=status.received_bytes, region=status.region, bytes_in_region=status.bytes_in_region,
        bytes_across=status.bytes_across, rounds=status.rounds, blocked_fraction=0.0,
    )  # fmt: skip
    return Outcome(
        0, 0, None, status.common_digest, reason, status.sent_bytes, status.received_bytes, connected=connected
    )  # fmt: skip
