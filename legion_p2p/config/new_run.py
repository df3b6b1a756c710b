"""`NewRun`: a run to create, as in SPEC.toml; and what it comes to once everything that was left open is chosen."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from legion_p2p.config.fields import said, settle, struct_of
from legion_p2p.config.forms import Form, refusal, text_of
from legion_p2p.config.old_names import SPEC_KEYS
from legion_p2p.config.rounds import Inner, Rounds
from legion_p2p.config.toml import read_table
from legion_p2p.core.admission import Admits, check_admission
from legion_p2p.core.cids import MAX_CID_CHARS, Cid
from legion_p2p.core.presets import DEFAULT_LINKS, LINKS, Links
from legion_p2p.core.round_spec import COORDINATE_RULES, RoundSpec, is_sparse
from legion_p2p.core.run import MAX_RUN_NAME_CHARS, InnerSpec, Sharding, TargetCount, TargetLoss, looks_like_run_id
from legion_p2p.errors import ConfigError, DecodeError, UsageError
from legion_p2p.files.paths import shown

DEFAULT_PRESET = "s"
DEFAULT_DATA = "stdlib"

T = TypeVar("T", RoundSpec, InnerSpec)


def checkpoint_cid(given: Any) -> str:
    """The CID of a checkpoint, as people paste it. Raises: UsageError."""
    if not isinstance(given, str):
        raise refusal(given, "the CID of a checkpoint")
    if not given:
        return ""
    try:
        return str(Cid.parse(given.strip().removeprefix("ipfs://").removeprefix("/ipfs/")))
    except DecodeError as bad:
        raise UsageError(f"{bad}; legion-ctl checkpoint list shows those of checkpoints") from bad


_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,{MAX_RUN_NAME_CHARS - 1}}}")
_NAME_FORM = f"letters, digits, and . _ / - after the first character, at most {MAX_RUN_NAME_CHARS}"


def run_name(given: Any) -> str:
    """The name of a new run. Raises: UsageError, telling what is allowed."""
    if not isinstance(given, str):
        raise refusal(given, f"the name of a run: {_NAME_FORM}")
    if not _NAME.fullmatch(given):
        raise UsageError(f"run name {given[: 2 * MAX_RUN_NAME_CHARS]!r}: allowed are {_NAME_FORM}")
    if looks_like_run_id(given):
        raise UsageError(f"run name {given!r} looks like a run's id: choose another")
    return given


ARCHITECTURE_PREFIX = "hf:"
ARCHITECTURE_FORM = "hf:NAME, hf:CONFIG.json or hf:FOLDER; sizes of the built-in GPT are presets"


def architecture_text(given: Any) -> str:
    """What names a model of transformers. Raises: UsageError."""
    text = text_of(given, ARCHITECTURE_FORM)
    if text and (not text.startswith(ARCHITECTURE_PREFIX) or text == ARCHITECTURE_PREFIX):
        raise refusal(text, ARCHITECTURE_FORM)
    return text


class NewRun(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A run to create. Its creator decides how all members average; they find it by its name."""

    name: Annotated[str, Form(f"the name of a run: {_NAME_FORM}", run_name)]
    """By which others join it."""

    links: Links = DEFAULT_LINKS
    """What members' connections carry. It sets what is left open below to what was measured to be best there. auto: pushes as
    precise as the connections allow, which suits any optimizer. lan, fibre, cable or dsl: for connections that are known, and
    Muon inside."""

    rounds: Rounds = Rounds()
    """How the members average."""

    preset: str = ""
    """Size of the built-in GPT: xxs, s, m, l, gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-1b or llama-7b. [default: s]"""

    architecture: Annotated[str, Form(ARCHITECTURE_FORM, architecture_text)] = ""
    """A model of the library transformers instead: hf:NAME of a family (gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt-neo-125m,
    gpt-neo-1.3b, llama-1b, llama-7b), hf:CONFIG.json, or hf:FOLDER with a config.json, and safetensors to go on from. Members
    need pip install "legion_p2p[hf]"."""

    start_from: Annotated[str, Form("the CID of a checkpoint", checkpoint_cid)] = ""
    """CID of a checkpoint of another run in this peer's store: the run begins with its model and weights, and trains on its data
    unless others are named. How it is sharded and averaged is its own."""

    model: dict[str, int | float | str | bool] = {}
    """Fields of the model's configuration that differ from the preset's, or from those of the architecture."""

    inner: Inner = Inner()
    """How `legion-peer` trains the built-in GPT between two pushes."""

    data: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """What the run trains on: stdlib or tales (built in), or what people call it. [the built-in model: stdlib]"""

    dataset: Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)] = ""
    """Id of the prepared data that all members train on, as legion-ctl data prepare prints it. [default: that of --data]"""

    tokenizer: Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)] = ""
    """Id of the tokenizer of that data, as legion-ctl data show prints it."""

    sharding: Sharding = "none"
    """Whether every member holds the whole model (none), or the members are one group on a fast network that holds it together
    (full): each part at an owner and a standby, so that its training may take more memory than any member has."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    """Of the first weights of the built-in GPT, and of what is drawn at random from the run's specification."""

    admission: Admits = "open"
    """Who may take part: any peer; those that show a token of the creator or of an admin; or those on the list `admitted`."""

    admins: tuple[str, ...] = ()
    """Ids of the peers whose tokens count as the creator's do."""

    admitted: tuple[str, ...] = ()
    """The allow-list: ids of peers."""

    target_steps: TargetCount = 0
    """The run ends for all members when it reaches this step. 0: no such end."""

    target_tokens: TargetCount = 0
    """The run ends when its members have trained this many tokens together. 0: no such end."""

    target_loss: TargetLoss = 0.0
    """The run ends when the median of its members' training losses has stayed at or below this for 30 s. 0: no such end."""

    def __post_init__(self) -> None:
        settle(self)
        if self.start_from and (self.preset or self.architecture or self.model):
            raise UsageError(f"start_from {self.start_from}: its model is the run's, so name no preset, architecture or model")
        if self.preset and self.architecture:
            raise UsageError(f"preset {self.preset!r} is of the built-in GPT, {self.architecture!r} is another model: give one")
        check_admission(self.admission, self.admins, self.admitted)


def chosen_rounds(rounds: Rounds, links: Links | None) -> RoundSpec:
    """The rounds of a new run, with nothing left open.

    In a synchronous run, which is data parallelism, the mean of the pushes keeps its length unless it is set otherwise. Local
    steps that are given hold from the start; an outer step that is given is the only thing done to the mean. A push codec that
    is given is meant for updates as well, and leaves no others to choose from, unless more is said.

    Raises: UsageError, where choices do not fit together.
    """
    fields = said(rounds)
    if "push_codec" in fields:
        fields = {"push_codecs": (), "update_codec": fields["push_codec"], **fields}
    if "update_codec" in fields:
        fields = {"update_codecs": (), **fields}
    measured = LINKS[links]["round"] if links else {}
    if fields.get("synchronous") or "local_steps" in fields:
        measured = {name: value for name, value in measured.items() if name != "ramp_steps"}
    if fields.get("synchronous") or "outer" in fields or "outer_learning_rate" in fields:
        measured = {name: value for name, value in measured.items() if name != "restore_length"}
    if fields.get("aggregation") in COORDINATE_RULES and "push_codecs" in measured:
        measured = {**measured, "push_codecs": tuple(name for name in measured["push_codecs"] if not is_sparse(name))}
    chosen = _converted({**measured, **fields}, RoundSpec)
    chosen.check()
    return chosen


def sharded_rounds(rounds: Rounds) -> RoundSpec:
    """The same for a sharded run: weights and gradients travel as bf16 unless it is set otherwise."""
    codecs = {"push_codec": "bf16", "update_codec": "bf16", "push_codecs": (), "update_codecs": ()}
    chosen = _converted({**codecs, **said(rounds)}, RoundSpec)
    chosen.check()
    return chosen


def sharded_inner(inner: Inner) -> InnerSpec:
    """What the owners of a sharded run train with. Raises: ConfigError."""
    return _converted({"clip": 0.0, **said(inner)}, InnerSpec)


def chosen_inner(inner: Inner, links: Links) -> InnerSpec:
    """How `legion-peer` trains in a new run, with nothing left open. Raises: ConfigError."""
    fields = said(inner)
    measured = LINKS[links]["inner"]
    if fields.get("optimizer", measured.get("optimizer")) == measured.get("optimizer"):  # another one has other rates
        fields = {**measured, **fields}
    return _converted(fields, InnerSpec)


def new_run_of(data: Mapping[str, Any]) -> NewRun:
    """A run to create, from plain data such as a SPEC.toml. Raises: ConfigError, naming the field."""
    return struct_of(NewRun, data, SPEC_KEYS)


def read_new_run(path: str) -> NewRun:
    """A SPEC.toml. Raises: ConfigError, naming the file and the field."""
    data = read_table(path)
    try:
        return new_run_of(data)
    except UsageError as bad:
        raise ConfigError(f"{shown(path)}: {bad}") from bad


def _converted(fields: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as bad:
        raise ConfigError(str(bad)) from bad
