"""legion-peer: join a run, or found one, and train.

This module reads what the user wants into a `Job` and shows how it goes; `legion_p2p.peer.run_job` does it. Neither torch nor
libp2p is imported before the job is known to make sense.
"""

import contextlib
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import msgspec
from cyclopts import Group, Parameter

from legion_p2p.cli.common import (
    DONE,
    SOURCES_HELP,
    Signals,
    addresses_of_peers,
    at_least,
    checked,
    listen_addresses,
    make_app,
    run_and_exit,
)
from legion_p2p.config import DEFAULT_LISTEN, DEFAULT_REGION, Job, NewRun, convert, new_run_of, read_new_run, read_toml
from legion_p2p.core.caps import parse_quiet_hours
from legion_p2p.core.keep import parse_keep
from legion_p2p.core.placement import PlacementName
from legion_p2p.core.presets import Links
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.run import InnerOptimizer
from legion_p2p.core.units import parse_rate
from legion_p2p.errors import ConfigError, LegionError, StoreError, UsageError
from legion_p2p.observe import human
from legion_p2p.observe.events import HANDING_OVER, Events
from legion_p2p.observe.metrics import JsonSink, PlainSink, handing_over_text
from legion_p2p.observe.status import Status

if TYPE_CHECKING:
    from legion_p2p.dashboard import LiveView

EPHEMERAL = NOWHERE = "none"
MAX_IDENTITY_SLOTS = 64  # peers of one user on one machine; more is a loop that leaks processes

HELP = """Join a run and train in it, or found one.

  legion-peer --run NAME --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...
  legion-peer --run NAME --initial-peers @bootstrap_peers.txt --minutes 60
  legion-peer --new-run SPEC.toml
  legion-peer --new-run NAME --preset s --local-steps 20"""

app = make_app("legion-peer", HELP, help_epilogue=SOURCES_HELP)

_MANY = Parameter(consume_multiple=True, negative=())


@Parameter(name="*", group=Group.create_ordered("Which run"))
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    run: Annotated[str, Parameter(metavar="NAME")] = ""
    """Name or id of the run to join."""
    initial_peers: Annotated[tuple[str, ...], _MANY, Parameter(converter=addresses_of_peers, metavar="ADDR...")] = ()
    """Addresses of peers or bootstrap nodes to enter through; @FILE reads them from a file."""
    new_run: Annotated[str, Parameter(metavar="SPEC|NAME")] = ""
    """Found a run instead: the SPEC.toml that describes it, or a name, with the options below."""


@Parameter(name="*", group=Group.create_ordered("A new run (they win over SPEC.toml)"))
@dataclass(frozen=True, kw_only=True)
class NewRunOptions:
    preset: Annotated[str | None, Parameter(metavar="SIZE")] = None
    """Size of the built-in GPT: xxs, s, m, ... gpt2. [default: s]"""
    links: Annotated[Links | None, Parameter()] = None
    """What members' connections carry; chooses what is not said below: see --dry-run. [default: cable]"""
    local_steps: Annotated[int | None, Parameter(validator=at_least(1))] = None
    """Steps between two averaging rounds for a peer of median speed."""
    codec: Annotated[str | None, Parameter(metavar="NAME")] = None
    """How changes are compressed on their way: fp32, fp16, bf16; int8, int4, int3, int2; gauss4, gauss3, gauss2, sign; or, far
    smaller, the largest few, as topk64-2bit or any other topk<k>-<bits>bit."""
    update_codec: Annotated[str | None, Parameter(metavar="NAME")] = None
    """The same for what comes back from owners to all members. [default: that of --codec]"""
    placement: Annotated[PlacementName | None, Parameter()] = None
    """Who owns which shards: the strongest claim by weight, only the heaviest members, or a stable matching."""
    optimizer: Annotated[InnerOptimizer | None, Parameter()] = None
    """What makes the local steps."""
    learning_rate: Annotated[float | None, Parameter(alias="--lr", validator=at_least(0))] = None
    """Of the local optimizer."""
    batch: Annotated[int | None, Parameter(validator=at_least(1))] = None
    """Windows per step. [default: 4]"""


@Parameter(name="*", group=Group.create_ordered("Training"))
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    data: Annotated[str, Parameter(metavar="WHAT")] = ""
    """stdlib (built in), a folder or file of text, or a .bin of token ids. [default: what the run says]"""
    steps: Annotated[int, Parameter(validator=at_least(0))] = 0
    """Leave after this many steps; 0: no limit."""
    minutes: Annotated[float, Parameter(validator=at_least(0))] = 0.0
    """Leave after this many minutes; 0: no limit."""
    wait_for_members: Annotated[int, Parameter(validator=at_least(0))] = 0
    """Begin only when the run has this many members, this one included."""
    finish_together: bool = False
    """After the last step, go on serving until every member is done: all end with the same model."""
    eval_every: Annotated[float, Parameter(validator=at_least(0))] = 0.0
    """Seconds between evaluations on held-out text; 0: only at the end."""
    seed: Annotated[int, Parameter(validator=at_least(0))] = 0
    """Of this peer's random numbers; for a new run also of its first weights."""
    device: Annotated[str, Parameter(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    threads: Annotated[int, Parameter(validator=at_least(0))] = 0
    """CPU threads; 0: as many as torch likes."""


@Parameter(name="*", group=Group.create_ordered("This peer on the network"))
@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    identity: Annotated[str, Parameter(metavar="FILE")] = ""
    """Key file that says who this peer is; none: a new identity each time. [default: a free one of the user's data folder]"""
    listen: Annotated[tuple[str, ...], _MANY, Parameter(converter=listen_addresses, metavar="ADDR...")] = DEFAULT_LISTEN
    """Addresses to listen on."""
    announce: Annotated[tuple[str, ...], _MANY, Parameter(converter=listen_addresses, metavar="ADDR...")] = ()
    """Addresses that others should dial, where a router forwards a port to this machine."""
    weight: Annotated[float | Literal["auto"], Parameter(validator=at_least(0))] = 1.0
    """Share of the model's shards to take care of, relative to others; 0: none; auto: 1 for each 10 Mbit/s of upload."""
    region: Annotated[str, Parameter(metavar="LABEL")] = DEFAULT_REGION
    """Average with the members of this label, and only now and then with other regions; auto: with those that are near."""
    volunteer_relay: Annotated[bool, Parameter(negative=())] = False
    """Carry the exchange with other regions for members of this one that have little upload. For a peer that has much."""
    upload: Annotated[str, Parameter(converter=checked(parse_rate), metavar="RATE")] = ""
    """Limit on all that this peer sends, such as 10mbit."""
    download: Annotated[str, Parameter(converter=checked(parse_rate), metavar="RATE")] = ""
    """Limit on all that it receives."""
    quiet_hours: Annotated[str, Parameter(converter=checked(parse_quiet_hours), metavar="HOURS")] = ""
    """Time of day with a lower limit both ways: 22:00-07:00, or 22:00-07:00=2mbit. [without a rate: 256kbit]"""
    netem: Annotated[str, Parameter(converter=checked(parse_link), metavar="LINK")] = ""
    """Link to emulate, for experiments: cable, satellite, ..., or up=20mbit,down=100mbit,rtt=50ms,jitter=5ms,loss=0.5%."""


@Parameter(name="*", group=Group.create_ordered("Checkpoints"))
@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    store: Annotated[str, Parameter(metavar="FOLDER")] = ""
    """Where checkpoints are kept, to go on from and for others to fetch; none: nowhere. [default: beside the identity]"""
    store_limit: Annotated[float, Parameter(metavar="GB", validator=at_least(0))] = 20.0
    """Most that they may take of the disk, in GB; 0: no limit."""
    keep: Annotated[str, Parameter(metavar="WHAT", converter=checked(parse_keep))] = "last=3"
    """Which checkpoints stay: last=3 the newest three, every=100 also one for every 100 steps."""
    checkpoint_every: Annotated[float, Parameter(metavar="SECONDS", validator=at_least(1))] = 60.0
    """Seconds between two checkpoints. What comes in between is kept too, in a journal."""


@Parameter(name="*", group=Group.create_ordered("Output"))
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    out: Annotated[str, Parameter(metavar="FOLDER")] = ""
    """Folder for metrics.jsonl and the model; without it nothing is written."""
    status: bool = True
    """Serve the status on this machine, for legion-ctl."""
    json: bool = False
    """Print every event as a line of JSON on stdout."""
    quiet: bool = False
    """Print errors only."""
    dry_run: bool = False
    """Print what the job would take (parameters, memory, bytes per round and token) and exit."""
    config: Annotated[str, Parameter(metavar="FILE")] = ""
    """TOML file with any of these options."""


@app.default
def peer(
    which: RunOptions = RunOptions(),
    new: NewRunOptions = NewRunOptions(),
    training: TrainOptions = TrainOptions(),
    node: NodeOptions = NodeOptions(),
    output: OutputOptions = OutputOptions(),
    store: StoreOptions = StoreOptions(),
) -> int:
    job = make_job(which, new, training, node, output, store)
    if output.dry_run:
        return _dry_run(job, output.json)
    return _train(job, output, picks_identity=not node.identity, picks_store=not store.store)


def make_job(
    which: RunOptions, new: NewRunOptions, training: TrainOptions, node: NodeOptions, output: OutputOptions,
    store: StoreOptions = StoreOptions(),
) -> Job:  # fmt: skip
    """The job that the options describe. Touches no network, and of the disk only SPEC.toml.

    Raises: UsageError, if they do not make sense together; ConfigError, naming the file or option that is wrong.
    """
    founded = _new_run(which, new, training) if which.new_run else None
    if founded is None:
        _check_joining(which, new, may_resume=store.store not in ("", NOWHERE))
    return convert(
        {
            "run": "" if founded else which.run,
            "new_run": msgspec.to_builtins(founded) if founded else None,
            "initial_peers": which.initial_peers,
            "data": training.data,
            "steps": training.steps,
            "minutes": training.minutes,
            "finish_together": training.finish_together,
            "wait_for_members": training.wait_for_members,
            "eval_every_s": training.eval_every,
            "out": output.out,
            "seed": training.seed,
            "device": training.device,
            "threads": training.threads,
            "identity": "" if node.identity == EPHEMERAL else node.identity,
            "listen": node.listen,
            "announce": node.announce,
            "weight": node.weight,
            "region": node.region,
            "volunteer_relay": node.volunteer_relay,
            "status": output.status,
            "upload": node.upload,
            "download": node.download,
            "quiet_hours": node.quiet_hours,
            "netem": node.netem,
            "store": "" if store.store == NOWHERE else store.store,
            "store_limit_gb": store.store_limit,
            "keep": store.keep,
            "checkpoint_every_s": store.checkpoint_every,
        },
        Job,
    )


def _check_joining(which: RunOptions, new: NewRunOptions, *, may_resume: bool) -> None:
    if not which.run:
        raise UsageError("no run is given: --run NAME joins one, --new-run SPEC.toml (or --new-run NAME) founds one")
    given = [name for name in new.__dataclass_fields__ if getattr(new, name) is not None]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags}: only for a new run; the run that --run joins has settled this already")
    if not which.initial_peers and not may_resume:
        raise UsageError(
            f"--run {which.run} needs --initial-peers ADDR: the address of any peer or bootstrap node to enter through; "
            f"or --store FOLDER, where a checkpoint of it is"
        )


def _new_run(which: RunOptions, new: NewRunOptions, training: TrainOptions) -> NewRun:
    if which.new_run.endswith(".toml"):
        read_new_run(which.new_run)  # complaints about the file should name the file
        data = {"round": {}, "inner": {}} | read_toml(which.new_run, dict)
    else:
        data = {"name": which.new_run, "seed": training.seed, "round": {}, "inner": {}}
        if training.data:
            # a path means nothing to others: they learn its name, and bring their own
            data["data"] = Path(training.data).resolve().name if Path(training.data).exists() else training.data
    if which.run and which.run != data["name"]:
        raise UsageError(f"--run {which.run} joins a run, --new-run founds one named {data['name']}: give one of them")
    only = None if new.codec is None else ()
    settings = (
        (data, "preset", new.preset),
        (data, "links", new.links),
        (data["round"], "local_steps", new.local_steps),
        (data["round"], "push_codec", new.codec),
        (data["round"], "update_codec", new.codec),
        (data["round"], "update_codec", new.update_codec),
        (data["round"], "push_codecs", only),
        (data["round"], "update_codecs", () if new.update_codec else only),
        (data["round"], "placement", new.placement),
        (data["inner"], "optimizer", new.optimizer),
        (data["inner"], "learning_rate", new.learning_rate),
        (data["inner"], "batch", new.batch),
    )
    for where, key, value in settings:
        if value is not None:
            where[key] = value
    try:
        return new_run_of(data)
    except ConfigError as bad:
        raise ConfigError(f"--new-run {which.new_run}: {bad}") from bad


def pick_identity_slot(folder: Path | None = None) -> Path:
    """The first of peer.key, peer-2.key, ... that no other process uses: several peers of one user keep one identity each.

    Raises: UsageError, when all are in use.
    """
    from legion_p2p.store.identity import is_identity_free

    if folder is None:
        import platformdirs

        folder = Path(platformdirs.user_data_dir("legion_p2p"))
    for slot in range(1, MAX_IDENTITY_SLOTS + 1):
        path = folder / ("peer.key" if slot == 1 else f"peer-{slot}.key")
        if is_identity_free(path):
            return path
    raise UsageError(f"none of {MAX_IDENTITY_SLOTS} identities in {folder} is free: give one with --identity FILE, or none")


def store_beside(identity: str) -> str:
    """Where a peer of this key file keeps checkpoints if nothing else is said; nowhere where it has none.

    The first peer of a user has the folder in which legion-ctl looks.
    """
    if not identity:
        return ""
    key = Path(identity).expanduser()
    return str(key.with_name("store" if key.stem == "peer" else f"store-{key.stem}"))


def _dry_run(job: Job, as_json: bool) -> int:
    with Signals():
        from legion_p2p.peer import plan_job

        plan = plan_job(job)
    if as_json:
        print(msgspec.json.encode(plan).decode())
        return DONE
    print("\n".join(plan_lines(plan)))
    return DONE


def plan_lines(plan: Any) -> list[str]:
    """What a job would take."""
    bytes_text, whole_text = human.bytes_text, human.whole_text
    facts = [
        ("run", human.clean(plan.run)),
        ("parameters", whole_text(plan.n_params)),
        ("shards", f"{plan.n_shards} of {whole_text(plan.shard_elements)} elements"),
        ("memory", bytes_text(plan.memory_bytes)),
        ("local steps per round", whole_text(plan.local_steps)),
        ("tokens per step", whole_text(plan.tokens_per_step)),
        ("pushes", f"{bytes_text(plan.push_bytes_per_round)} for all shards, as {human.clean(plan.push_codec, 64)}"),
        ("updates", f"{bytes_text(plan.update_bytes_per_round)} for all shards, as {human.clean(plan.update_codec, 64)}"),
    ]
    columns = [
        ("members", [whole_text(row.n_members) for row in plan.traffic]),
        ("sent each round", [bytes_text(row.sent_bytes) for row in plan.traffic]),
        ("at most", [bytes_text(row.most_sent_bytes) for row in plan.traffic]),
        ("received", [bytes_text(row.received_bytes) for row in plan.traffic]),
        ("sent per token", [bytes_text(row.sent_bytes_per_token) for row in plan.traffic]),
        ("sending takes", [human.duration_text(row.send_s) for row in plan.traffic if row.send_s is not None]),
    ]
    rows = zip(*([title, *cells] for title, cells in columns if cells), strict=True)
    return [
        *(f"{name:<22}  {value}" for name, value in facts),
        "",
        *("  ".join(f"{cell:>{width}}" for cell, width in zip(row, (7, 15, 8, 8, 14, 13), strict=False)) for row in rows),
        "",
        "each of one peer in the mean; at most: of the one that owns most shards",
        "nothing was started (--dry-run)",
    ]


def _train(job: Job, output: OutputOptions, *, picks_identity: bool, picks_store: bool) -> int:
    events = Events()
    shown = _Shown(job, output, sys.stdout)
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(shown)
        signals = open_things.enter_context(Signals(before_exit=shown.restore_terminal))
        events.add_sink(shown.on_event)
        began = time.monotonic()
        try:
            job, outcome = _run(job, picks_identity, picks_store, events, shown, signals)
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
    return 128 + signals.caught if signals.caught and outcome.reason == "stopped" else DONE


def _run(job: Job, picks_identity: bool, picks_store: bool, events: Events, shown: "_Shown", signals: Signals) -> tuple[Job, Any]:
    """The job as it was done, its identity and store chosen, and what came of it."""
    from legion_p2p.peer import run_job
    from legion_p2p.train.trainer import Stop

    stop = Stop()

    def leave(_number: int) -> None:
        stop.request()
        shown.note("leaving the run; Ctrl+C again leaves at once")

    signals.orderly(leave)
    while True:
        if picks_identity:
            job = msgspec.structs.replace(job, identity=str(pick_identity_slot()))
        if picks_store:
            job = msgspec.structs.replace(job, store=store_beside(job.identity))
        try:
            return job, run_job(job, events=events, stop=stop, on_status=shown.on_status)
        except StoreError as bad:
            # another peer, started in the same moment, was faster: the next slot is ours
            if picks_identity and not stop.requested and "in use" in str(bad):
                continue
            raise


def run_name(job: Job, status: Status | None) -> str:
    if status is not None and status.run is not None:
        return status.run.name
    return job.new_run.name if job.new_run else job.run


def farewell_lines(job: Job, outcome: Any, status: Status | None, wall_s: float) -> list[str]:
    """What came of it, and how to come back."""
    run = human.clean(run_name(job, status))
    verb = {"steps": "did its steps in", "minutes": "used its minutes in"}.get(outcome.reason, "left")
    lines = [
        f"{verb} run {run}: {human.whole_text(outcome.steps)} steps, {human.count_text(outcome.tokens)} tokens "
        f"in {human.seconds_text(wall_s)}"
    ]
    if outcome.val_loss is not None:
        lines.append(f"validation loss of the common model: {human.loss_text(outcome.val_loss)}")
    if outcome.digest:
        lines.append(f"common model {outcome.digest}")
    lines.append(f"sent {human.bytes_text(outcome.sent_bytes)}, received {human.bytes_text(outcome.received_bytes)}")
    if job.out:
        lines.append(f"written to {job.out}")
    contacts = job.initial_peers[:2] or _addresses_of_others(status)
    if contacts:
        command = ["legion-peer", "--run", run, "--initial-peers", *contacts]
        lines.append(f"to come back: {shlex.join(command)}")
    elif job.store:
        lines.append(f"to go on with it: {shlex.join(['legion-peer', '--run', run, '--store', job.store])}")
    else:
        lines.append("nobody else was in the run: it has ended with this peer")
    return lines


def _addresses_of_others(status: Status | None) -> tuple[str, ...]:
    if status is None:
        return ()
    others = [m for m in status.members if m.peer_id != status.peer_id and m.liveness.upper() == "ALIVE" and m.addresses]
    # the last address is the least local one where a peer has several
    return tuple(human.clean(member.addresses[-1]) for member in others[:2])


class _Shown:
    """What the user sees while the peer works: a live view on a terminal, lines elsewhere, JSON where asked for, or nothing."""

    def __init__(self, job: Job, output: OutputOptions, stream: TextIO) -> None:
        self.status: Status | None = None
        self._view: LiveView | None = None
        self._json = JsonSink(stream) if output.json else None
        self._plain: PlainSink | None = None
        if not output.json and not output.quiet and can_draw(stream):
            from rich.console import Console

            from legion_p2p import dashboard

            self._view = dashboard.LiveView(Console(file=stream, highlight=False))
        elif not output.json:
            self._plain = PlainSink(sys.stderr if output.quiet else stream, quiet=output.quiet)

    def on_event(self, event: Any) -> None:
        if event.name == HANDING_OVER and self._view is not None:
            self._view.note(handing_over_text(event))
        for sink in (self._json, self._plain, self._view.event if self._view else None):
            if sink is not None:
                sink(event)

    def on_status(self, status: Status) -> None:
        self.status = status
        if self._view is not None:
            self._view.update(status)
        elif self._plain is not None:
            try:
                self._plain.progress(status)
            except OSError:  # the reader of the pipe has gone; training goes on
                self._plain = None

    def note(self, text: str) -> None:
        if self._view is not None:
            self._view.note(text)
        else:
            with contextlib.suppress(OSError):
                print(f"legion-peer: {text}", file=sys.stderr, flush=True)

    def restore_terminal(self) -> None:
        if self._view is not None:
            self._view.restore_terminal()

    def __enter__(self) -> "_Shown":
        if self._view is not None:
            self._view.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._view is not None:
            self._view.note("")
            with contextlib.suppress(OSError):  # a terminal that was closed takes no last frame
                self._view.__exit__(*raised)


def can_draw(stream: TextIO) -> bool:
    """True where a view can be drawn in place: a terminal that moves its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def main() -> None:
    """The console script."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
