"""What a person may set of `legion-peer`: the fields of the public values, as options.

Each option is a field of a struct in `legion_p2p.config`: its name, its docs and what it allows are said there, once. This module
adds what only a command line has: the groups of `--help`, placeholders, short names, and defaults that depend on the machine.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Group, Parameter, Token

from legion_p2p.cli.common import given_by
from legion_p2p.cli.contacts import listed_contacts
from legion_p2p.config import Inner, Limits, Manners, NewRun, Peer, Rounds, RunChoice, Store, Training, read_new_run
from legion_p2p.config.fields import docs_of, field_value, hints_of
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path

SPEC_SUFFIX = ".toml"

WHICH = Group.create_ordered("Which run")
NEW = Group.create_ordered("A new run (these options win over SPEC.toml)")
TRAINING = Group.create_ordered("Training")
NETWORK = Group.create_ordered("This peer on the network")
MANNERS = Group.create_ordered("What it may take of this machine")
CHECKPOINTS = Group.create_ordered("Checkpoints")
OUTPUT = Group.create_ordered("Output")


@dataclass(frozen=True)
class Option:
    """A field of a struct as an option."""

    kind: type[msgspec.Struct]
    field: str
    group: Group
    metavar: str = ""
    flag: str = ""
    """Where it is not called like the field."""
    alias: str = ""
    help: str = ""
    """Instead of the field's docs, where a flag means more than the field."""
    default: str = ""
    """What happens where it is not given, in words, if the field's default does not say it."""
    is_told: bool = True
    """Shown by --help; what few people need is in docs/commands/legion-peer.md."""

    @property
    def name(self) -> str:
        """Of the flag."""
        return self.flag or "--" + self.field.replace("_", "-")

    @property
    def key(self) -> str:
        """Of the value among those that the command receives."""
        return self.name[2:].replace("-", "_")


USUAL_ROUNDS = ("local_steps", "push_codec", "update_codec", "placement")
USUAL_INNER = ("optimizer", "learning_rate", "batch", "context")

OPTIONS = (
    Option(RunChoice, "run", WHICH, "NAME"),
    Option(
        RunChoice, "initial_peers", WHICH, "ADDR...",
        default="those in bootstrap_peers.txt of this folder or the package, and peers of the last time",
    ),
    Option(
        RunChoice, "new_run", WHICH, "SPEC|NAME",
        help="Create a run instead: the SPEC.toml that describes it, or a name, with the options below. A run of that name that "
        "others or the store have is an error.",
    ),
    Option(RunChoice, "create_or_join", WHICH),
    Option(NewRun, "preset", NEW, "SIZE"),
    Option(NewRun, "architecture", NEW, "hf:WHAT", flag="--model"),
    Option(NewRun, "links", NEW, help="What members' connections carry; chooses what is not said below: see --dry-run."),
    Option(NewRun, "sharding", NEW),
    Option(NewRun, "admission", NEW),
    Option(NewRun, "target_steps", NEW),
    Option(NewRun, "target_tokens", NEW),
    Option(NewRun, "target_loss", NEW),
    Option(Rounds, "local_steps", NEW),
    Option(Rounds, "push_codec", NEW, "NAME", alias="--codec"),
    Option(Rounds, "update_codec", NEW, "NAME", default="that of --push-codec"),
    Option(Rounds, "placement", NEW),
    Option(Inner, "optimizer", NEW),
    Option(Inner, "learning_rate", NEW, alias="--lr"),
    Option(Inner, "batch", NEW, default="4"),
    Option(Inner, "context", NEW),
    *(Option(Rounds, field, NEW, is_told=False) for field in Rounds.__struct_fields__ if field not in USUAL_ROUNDS),
    *(Option(Inner, field, NEW, is_told=False) for field in Inner.__struct_fields__ if field not in USUAL_INNER),
    Option(Training, "data", TRAINING, "WHAT"),
    Option(Training, "steps", TRAINING),
    Option(Training, "minutes", TRAINING),
    Option(Training, "wait_for_members", TRAINING),
    Option(Training, "finish_together", TRAINING),
    Option(Training, "eval_every_s", TRAINING, "SECONDS"),
    Option(Training, "seed", TRAINING),
    Option(Training, "device", TRAINING, "NAME"),
    Option(Training, "threads", TRAINING),
    Option(Training, "precision", TRAINING),
    Option(Training, "accumulate", TRAINING),
    Option(Training, "compile", TRAINING),
    Option(Training, "activation_checkpointing", TRAINING),
    Option(Training, "peak_tflops", TRAINING),
    Option(Peer, "identity", NETWORK, "FILE", default="a free one of the user's data folder"),
    Option(Peer, "listen", NETWORK, "ADDR..."),
    Option(Peer, "announce", NETWORK, "ADDR..."),
    Option(Peer, "port_mapping", NETWORK, "YES|NO", default="yes"),
    Option(Peer, "lan", NETWORK, "YES|NO", default="yes"),
    Option(Peer, "network_key", NETWORK, "FILE"),
    Option(Peer, "role", NETWORK),
    Option(Peer, "weight", NETWORK),
    Option(Peer, "region", NETWORK, "LABEL"),
    Option(Peer, "relay", NETWORK, "RATE"),
    Option(Peer, "speed_tests", NETWORK, "N"),
    Option(Peer, "volunteer_relay", NETWORK),
    Option(Peer, "token", NETWORK, "FILE"),
    Option(Peer, "dp", NETWORK, "SETTINGS"),
    Option(Limits, "upload", NETWORK, "RATE"),
    Option(Limits, "download", NETWORK, "RATE"),
    Option(Limits, "quiet_hours", NETWORK, "HOURS"),
    Option(Peer, "search_s", NETWORK, "SECONDS"),
    Option(Peer, "offload", TRAINING),
    Option(Limits, "netem", NETWORK, "LINK"),
    Option(Manners, "when", MANNERS),
    Option(Manners, "on_battery", MANNERS, "YES|NO", default="yes"),
    Option(Manners, "max_cpu", MANNERS, "SHARE"),
    Option(Manners, "max_temperature", MANNERS, "DEGREES"),
    Option(Manners, "max_memory", MANNERS, "SIZE"),
    Option(Manners, "monthly", MANNERS, "SIZE"),
    Option(Manners, "priority", MANNERS),
    Option(Store, "path", CHECKPOINTS, "FOLDER", flag="--store", default="beside the identity"),
    Option(Store, "max_gb", CHECKPOINTS, "GB", flag="--store-max-gb"),
    Option(Store, "keep", CHECKPOINTS, "WHAT"),
    Option(Store, "exports", CHECKPOINTS, "FOLDER"),
    Option(Store, "shared", CHECKPOINTS, "FOLDER...", flag="--share"),
    Option(Store, "checkpoint_every_s", CHECKPOINTS, "SECONDS"),
    Option(Training, "out", OUTPUT, "FOLDER"),
    Option(Peer, "dashboard", OUTPUT, "YES|NO|PORT", default="yes"),
    Option(Training, "report_to", OUTPUT, "WHAT"),
    Option(Peer, "status", OUTPUT),
    Option(Peer, "metrics", OUTPUT, "[HOST:]PORT"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of the command alone: what it prints."""

    json: bool = False
    """Print every event as a line of JSON on stdout."""
    quiet: bool = False
    """Print errors only."""
    dry_run: bool = False
    """Print what the job would take (parameters, memory, bytes per round and token) and exit."""
    config: Annotated[str, Parameter(metavar="FILE")] = ""
    """TOML file with any of these options."""


@dataclass(frozen=True)
class Job:
    """What the options of one command come to."""

    entry: RunChoice
    peer: Peer
    training: Training
    picks_identity: bool
    """Nobody has chosen an identity: a free one of the user's is taken."""
    picks_store: bool
    """Nobody has chosen a store: the one beside the identity is taken."""
    picks_contacts: bool
    """Nobody has named initial peers: those of bootstrap_peers.txt are taken, and to join a run also peers of the last time."""


def signature() -> inspect.Signature:
    """The parameters of the command: one for each option, and the `Output`."""
    output = Annotated[Output, Parameter(name="*", group=OUTPUT)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([
        *(inspect.Parameter(option.key, keyword, default=_default(option), annotation=_annotation(option)) for option in OPTIONS),
        inspect.Parameter("output", keyword, default=Output(), annotation=output),
    ])  # fmt: skip


def _default(option: Option) -> Any:
    """What the command receives where the option is not given: None where that has to be known."""
    (field,) = (f for f in msgspec.structs.fields(option.kind) if f.name == option.field)
    return None if option.default or field.required or option.field == "new_run" else field.default


def _annotation(option: Option) -> Any:
    hint = _plain_type(hints_of(option.kind)[option.field])
    is_word = hint is bool and bool(option.metavar)  # said in a word, because it is on where nothing is said
    if is_word:
        hint = str | bool
    is_many = typing.get_origin(hint) is tuple
    text = option.help or docs_of(option.kind)[option.field]
    look = Parameter(
        name=(option.name, *([option.alias] if option.alias else [])),
        group=option.group,
        show=option.is_told,
        metavar=option.metavar or None,
        help=_as_flags(" ".join(text.split())) + (f" [default: {option.default}]" if option.default else ""),
        consume_multiple=is_many,
        negative=() if is_many or is_word or option.field in ("volunteer_relay", "create_or_join") else None,
        converter=None if hint is bool else _text_of if option.field == "new_run" else _reader(option, is_many),
    )
    if _default(option) is None:
        hint |= None  # or cyclopts refuses the default, in a process that has imported pydantic
    return Annotated[hint, look]


def _plain_type(hint: Any) -> Any:
    """The type behind a field's hint, as the help shows it."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [_plain_type(member) for member in typing.get_args(hint) if member is not type(None)]
        plain = (bool, int, float, str)
        known = [member for member in members if member in plain or typing.get_origin(member) in (tuple, Literal)]
        return typing.Union[tuple(known or [str])]  # noqa: UP007 (of types that are known only now)
    return hint


def _as_flags(text: str) -> str:
    """The docs of a field, whose neighbours are options here."""
    for option in OPTIONS:
        if "_" in option.field:
            text = re.sub(rf"\b{option.field}\b", option.name, text)
    return text


def _text_of(_type: Any, tokens: Sequence[Token]) -> str:
    return tokens[-1].value


def _reader(option: Option, is_many: bool) -> Callable[[Any, Sequence[Token]], Any]:
    """Makes the field's value of what was written. Raises: UsageError, naming the flag, the variable, or the file and its key."""

    def read(_type: Any, tokens: Sequence[Token]) -> Any:
        given = tuple(token.value for token in tokens) if is_many else tokens[-1].value
        try:
            return field_value(option.kind, option.field, given, is_text=True)
        except UsageError as bad:
            raise UsageError(f"{given_by(tokens[-1])}: {bad}") from bad

    return read


def job_of(values: Mapping[str, Any]) -> Job:
    """What the options come to. Touches no network, and of the disk only SPEC.toml and bootstrap_peers.txt.

    Raises: UsageError, if they do not make sense together; ConfigError, naming the file or option that is wrong.
    """
    given: dict[type[msgspec.Struct], dict[str, Any]] = {option.kind: {} for option in OPTIONS}
    for option in OPTIONS:
        value = values.get(option.key)
        if value is not None:
            given[option.kind][option.field] = value
    which, spec = given[RunChoice], given[RunChoice].pop("new_run", "")
    training = Training(**given[Training])
    if spec:
        new_run = _new_run(spec, given, training)
        if which.pop("run", "") not in ("", new_run.name):
            raise UsageError(f"--run joins a run, --new-run creates one named {new_run.name}: give one of them")
        which["new_run"] = new_run
    else:
        _check_joining(which, given)
    picks_identity = "identity" not in given[Peer]
    picks_store = "path" not in given[Store]
    picks_contacts = "initial_peers" not in which
    if picks_contacts:
        which["initial_peers"] = listed_contacts()
    if not spec and not which["initial_peers"] and not given[Store].get("path"):
        may_resume = picks_store and (picks_identity or given[Peer]["identity"])
        may_remember = picks_contacts and (picks_identity or given[Peer]["identity"])
        if not (may_resume or may_remember or given[Peer].get("lan", True)):
            raise UsageError(nobody_to_enter_through(which["run"]))
    peer = Peer(**given[Peer], limits=Limits(**given[Limits]), manners=Manners(**given[Manners]), store=Store(**given[Store]))
    return Job(RunChoice(**which), peer, training, picks_identity, picks_store, picks_contacts)


def nobody_to_enter_through(run: str) -> str:
    """What is said where no initial peer is named, listed or remembered, and no store is there to go on from."""
    return (
        f"--run {run} needs --initial-peers ADDR: the address of any peer or bootstrap node to enter through; "
        f"or --store FOLDER, where a checkpoint of it is; or --lan yes, if a member is on this LAN"
    )


def _check_joining(which: Mapping[str, Any], given: Mapping[type[msgspec.Struct], Mapping[str, Any]]) -> None:
    if not which.get("run"):
        raise UsageError("no run is given: --run NAME joins one, --new-run SPEC.toml (or --new-run NAME) creates one")
    chosen = [option for option in OPTIONS if option.group is NEW and given[option.kind].get(option.field) not in (None, "")]
    if chosen:
        flags = ", ".join(option.name for option in chosen)
        raise UsageError(f"{flags}: only for a new run; the run that --run joins has settled this already")
    if which.get("create_or_join"):
        raise UsageError("--create-or-join: only with --new-run, which says what to create")


def _new_run(text: str, given: Mapping[type[msgspec.Struct], Mapping[str, Any]], training: Training) -> NewRun:
    """The run to create: a SPEC.toml or a name, and the options that win over it."""
    if text.endswith(SPEC_SUFFIX):
        spec = read_new_run(text)
    else:
        data = training.data
        if data:
            # a path means nothing to others: they learn its name, and bring their own
            path = user_path(data)
            data = data if kind_of(path) is FileKind.MISSING else shown(path.resolve().name)
        try:
            spec = NewRun(text, data=data, seed=training.seed)
        except UsageError as bad:
            raise ConfigError(f"--new-run {text}: {bad}") from None
    chosen = {field: value for field, value in given[NewRun].items() if value}
    return msgspec.structs.replace(
        spec,
        **chosen,
        rounds=msgspec.structs.replace(_without_codecs(spec.rounds, given[Rounds]), **given[Rounds]),
        inner=msgspec.structs.replace(spec.inner, **given[Inner]),
    )


def _without_codecs(rounds: Rounds, flags: Mapping[str, Any]) -> Rounds:
    """What a file says of codecs, as far as no flag replaces it: a codec that is given as a flag is the only one."""
    if "push_codec" in flags:
        return msgspec.structs.replace(rounds, push_codecs=None, update_codec=None, update_codecs=None)
    return msgspec.structs.replace(rounds, update_codecs=None) if "update_codec" in flags else rounds
