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
from cyclopts import Parameter, Token

from legion_p2p.cli.common import given_by
from legion_p2p.cli.contacts import listed_contacts
from legion_p2p.cli.option_table import NEW, OPTIONS, OUTPUT, Option
from legion_p2p.config import Inner, Limits, Manners, NewRun, Peer, Rounds, RunChoice, Store, Training, read_new_run
from legion_p2p.config.fields import docs_of, field_value, hints_of
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.train.datasets.source_names import is_stream, stream_name

SPEC_SUFFIX = ".toml"


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
        if is_stream(data):
            data = stream_name(data)
        elif data:
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
