"""legion-peer: join a run, or create one, and train.

The user's options come as a `Job` (peer_options.py), this module shows progress, and `run_job` (train/job.py) does it, or
`run_helper` (train/helper.py).
Neither torch nor libp2p is imported before the job is known to make sense.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from legion_p2p.cli.common import SOURCES_HELP, make_app
from legion_p2p.cli.contacts import entering_text, remembered_contacts
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.farewell import farewell_lines, run_name
from legion_p2p.cli.peer_options import Job, Output, job_of, nobody_to_enter_through, signature
from legion_p2p.cli.peer_view import PeerView
from legion_p2p.cli.plan_text import disk_text, plan_lines
from legion_p2p.cli.running import run_and_exit
from legion_p2p.cli.signals import Signals, pausing_signals
from legion_p2p.cli.torchrun import follow, rank_here, worker_of
from legion_p2p.errors import LegionError, NotSavedError, StoreError, TooLargeError, UsageError
from legion_p2p.files.paths import user_data_folder, user_path
from legion_p2p.observe.events import Events
from legion_p2p.observe.memory import give_back_freed_memory
from legion_p2p.reporting.reports import DEFAULT_FOLDER, Reports
from legion_p2p.reporting.trackers import usable
from legion_p2p.train.control import Control

if TYPE_CHECKING:
    from legion_p2p.train.outcome import Outcome

MAX_IDENTITY_SLOTS = 64  # peers of one user on one machine; more is a loop that leaks processes

HELP = """Join a run and train in it, or create one.

  legion-peer --run NAME --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...
  legion-peer --run NAME --minutes 60
  legion-peer --new-run SPEC.toml
  legion-peer --new-run NAME --preset s --local-steps 20
  legion-peer --run NAME --initial-peers ADDR --role helper"""

app = make_app("legion-peer", HELP, help_epilogue=SOURCES_HELP)


def peer(**values: Any) -> int:
    """Its parameters are those of `peer_options.signature`: a keyword for each option."""
    output: Output = values.pop("output", Output())
    job = job_of(values)
    if rank_here():
        return DONE if output.dry_run else follow(job)
    return _dry_run(with_contacts(job), output.json) if output.dry_run else _train(job, output)


peer.__signature__ = signature()  # type: ignore[attr-defined]
app.default(peer)


def pick_identity_slot(folder: Path | None = None) -> Path:
    """The first of peer.key, peer-2.key, ... that no other process uses: several peers of one user keep one identity each.

    Raises: UsageError, when all are in use.
    """
    from legion_p2p.store.identity import is_identity_free

    if folder is None:
        folder = user_data_folder()
    for slot in range(1, MAX_IDENTITY_SLOTS + 1):
        path = folder / ("peer.key" if slot == 1 else f"peer-{slot}.key")
        if is_identity_free(path):
            return path
    raise UsageError(f"none of {MAX_IDENTITY_SLOTS} identities in {folder} is free: give one with --identity FILE, or none")


def store_beside(identity: str) -> str:
    """Where a peer with this key file keeps checkpoints by default; nowhere if it has no key file.

    The first peer of a user has the folder in which legion-ctl looks.
    """
    if not identity:
        return ""
    key = user_path(identity)
    return str(key.with_name("store" if key.stem == "peer" else f"store-{key.stem}"))


def _dry_run(job: Job, as_json: bool) -> int:
    with Signals():
        from legion_p2p.train.job import plan_job

        plan = plan_job(job.entry, job.peer, job.training)
    if as_json:
        print(msgspec.json.encode(plan).decode())
        return DONE
    lines = plan_lines(plan, disk_text(job.peer.store if job.picks_store or job.peer.store.path else None))
    print("\n".join([*lines, "nothing was started (--dry-run)"]))
    return DONE


def _train(job: Job, output: Output) -> int:
    events = Events()
    shown = PeerView(output, sys.stdout)
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(shown)
        control = Control()
        signals = open_things.enter_context(Signals(before_exit=shown.restore_terminal, others=pausing_signals(control)))
        shown.listen(open_things, control)
        events.add_sink(shown.on_event)
        if trackers := usable(job.training.report_to):
            folder = user_path(job.training.out or DEFAULT_FOLDER)
            reports = Reports(
                trackers, lambda: shown.status, tell=lambda text: events.error("reports.ended", text), folder=folder
            )
            events.add_sink(reports.on_event)
            open_things.callback(reports.close)
        began = time.monotonic()
        try:
            job, outcome = _run(job, events, shown, signals, control)
        except LegionError as bad:
            if signals.caught:  # what fails because it was told to stop has not failed
                return 128 + signals.caught
            events.error("peer.failed", str(bad), kind=type(bad).__name__)
            raise
        wall_s = time.monotonic() - began
        events.emit("peer.left", run=run_name(job, shown.status), **msgspec.to_builtins(outcome), wall_s=round(wall_s, 3))
    if not output.json and not output.quiet:
        with contextlib.suppress(OSError):
            print("\n".join(farewell_lines(job, outcome, shown.status, wall_s)), flush=True)
    if outcome.text_problem:
        raise StoreError(outcome.text_problem)
    if outcome.memory_problem:
        raise TooLargeError(outcome.memory_problem)
    if outcome.save_problem:
        raise NotSavedError(outcome.save_problem)
    return 128 + signals.caught if signals.caught and outcome.reason == "stopped" else DONE


def _run(job: Job, events: Events, shown: "PeerView", signals: Signals, control: Control) -> "tuple[Job, Outcome]":
    """The job as it was done, its identity and store chosen, and what came of it."""
    give_back_freed_memory()
    shown.begin("loading torch and libp2p")

    def leave(_number: int) -> None:
        control.leave()
        shown.note("leaving the run; Ctrl+C again leaves at once")

    n_listed = len(job.entry.initial_peers)
    with contextlib.ExitStack() as others:
        run = worker_of(job, others)
        signals.orderly(leave)
        while True:
            job = with_contacts(_with_own_places(job))
            if job.picks_contacts and job.entry.initial_peers:
                shown.note(entering_text(n_listed, len(job.entry.initial_peers) - n_listed))
            try:
                return job, run(job.entry, job.peer, job.training, events=events, control=control, on_status=shown.on_status)
            except StoreError as bad:
                # another peer, started in the same moment, was faster: the next slot is ours
                if job.picks_identity and not control.leaving and "in use" in str(bad):
                    continue
                raise
    raise AssertionError  # the loop ends by returning, or raising


def _with_own_places(job: Job) -> Job:
    """The job with a free identity of the user's, and the store beside it, where nobody has chosen others."""
    peer = job.peer
    if job.picks_identity:
        peer = msgspec.structs.replace(peer, identity=str(pick_identity_slot()))
    if job.picks_store:
        store = msgspec.structs.replace(peer.store, path=store_beside(str(peer.identity)))
        peer = msgspec.structs.replace(peer, store=store)
    return dataclasses.replace(job, peer=peer)


def with_contacts(job: Job) -> Job:
    """The job with peers of the last time as initial peers besides those of bootstrap_peers.txt, where nobody has named any.

    Raises: UsageError, where there is nobody to find the run through, and no store to go on from.
    """
    if not job.picks_contacts or job.entry.new_run is not None:
        return job
    contacts = tuple(dict.fromkeys((*job.entry.initial_peers, *remembered_contacts(str(job.peer.identity or "")))))
    if not (contacts or job.peer.store.path or job.picks_store or job.peer.lan):
        raise UsageError(nobody_to_enter_through(job.entry.run))
    return dataclasses.replace(job, entry=msgspec.structs.replace(job.entry, initial_peers=contacts))


def main() -> None:
    """The console script."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
