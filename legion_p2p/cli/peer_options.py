"""What a person may set of `legion-peer`, and the job that it comes to."""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cyclopts import Group, Parameter

from legion_p2p.cli.common import addresses_of_peers, at_least, checked, listen_addresses
from legion_p2p.config import DEFAULT_LISTEN, DEFAULT_REGION, Job, NewRun, convert, new_run_of, read_new_run, read_toml
from legion_p2p.core.caps import parse_quiet_hours
from legion_p2p.core.placement import PlacementName
from legion_p2p.core.presets import Links
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.retention import parse_retention
from legion_p2p.core.run import InnerOptimizer
from legion_p2p.core.units import parse_rate
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.files.paths import Kind, kind_of, shown, user_path

EPHEMERAL = NOWHERE = "none"

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
    keep: Annotated[str, Parameter(metavar="WHAT", converter=checked(parse_retention))] = "last=3"
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
            path = user_path(training.data)
            data["data"] = training.data if kind_of(path) is Kind.MISSING else shown(path.resolve().name)
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
