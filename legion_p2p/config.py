"""What a user may set, composed from the configs of the parts; units are in the names.

`Job` is all that `legion-peer` needs to know; `NewRun` is the SPEC.toml that founds a run. Both are plain data: they come from
flags, a TOML file or LEGION_* variables, and the command line wins.
"""

import re
import tomllib
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from legion_p2p.core.admission import Admits, check_admission
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.presets import DEFAULT_LINKS, LINKS, Links
from legion_p2p.core.round import RoundConfig
from legion_p2p.core.run import InnerSpec, RoundSpec, RunName
from legion_p2p.errors import ConfigError, StoreError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_text

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
DEFAULT_BOOTSTRAP_PORT = 4710
STATUS_PORTS = range(47110, 47174)
"""Loopback ports on which peers serve their status: the first free one. `legion-ctl` looks there; no file has to tell."""

AUTO_REGION = "auto"
DEFAULT_REGION = "home"
RegionLabel = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]

AUTO_WEIGHT = "auto"
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e9)] | Literal["auto"]

MAX_CONFIG_BYTES = 1 << 20

T = TypeVar("T")


class NewRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run to found, as in SPEC.toml."""

    name: RunName
    preset: str = "s"
    """Preset of the built-in GPT: xxs, s, m, ... gpt2."""
    model: dict[str, int | float | str | bool] = {}
    """Fields of the GPT's configuration that differ from the preset's."""
    links: Links = DEFAULT_LINKS
    """What members' connections carry: chooses what [round] and [inner] do not say. See core.presets."""
    data: str = "stdlib"
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    admission: Admits = "open"
    """Who may take part: everybody, whoever shows a token, or those on the list `admitted`. See core.admission."""
    admins: tuple[str, ...] = ()
    """Peers whose tokens count as the founder's do."""
    admitted: tuple[str, ...] = ()
    """The allow-list: peer ids."""
    round: RoundSpec = RoundSpec()
    inner: InnerSpec = InnerSpec()


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one `legion-peer` does."""

    run: str = ""
    """Name or id of the run to join; empty where `new_run` founds one."""
    new_run: NewRun | None = None
    initial_peers: tuple[str, ...] = ()
    data: str = ""
    """Built-in corpus, folder or file of text, or .bin of token ids; empty: what the run says."""
    steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Local steps to train; 0: no limit."""
    minutes: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Minutes to train; 0: no limit."""
    finish_together: bool = False
    """After the last step go on serving until every member is done, so that all end with the same model."""
    wait_for_members: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Begin only when the run has this many members, this peer included; 0: begin at once."""
    eval_every_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds between evaluations of the common model on held-out text; 0: only at the end."""
    out: str = ""
    """Folder for metrics.jsonl and the model; empty: nothing is written."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    device: str = "auto"
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """CPU threads for torch; 0: torch's own choice."""
    identity: str = ""
    """Key file; empty: a new identity that is forgotten at the end."""
    listen: tuple[str, ...] = DEFAULT_LISTEN
    announce: tuple[str, ...] = ()
    """Addresses that others should dial, where they differ from those listened on (port forwarding)."""
    weight: Weight = 1.0
    """Share of the shards to own, relative to others; 0 owns nothing; auto: by what its upload carries."""
    region: RegionLabel = DEFAULT_REGION
    """Label of the region to average in, or auto: the nearest."""
    volunteer_relay: bool = False
    """Meet other regions for owners of this one that have little upload."""
    status: bool = True
    """Serve the status on loopback."""
    upload: str = ""
    """Limit on all that is sent, such as 10mbit; empty: none."""
    download: str = ""
    """Limit on all that is received."""
    quiet_hours: str = ""
    """Times of day with a lower limit both ways, such as 22:00-07:00=2mbit, local time."""
    store: str = ""
    """Folder for checkpoints; empty: none are kept."""
    store_limit_gb: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of all blocks in the store; 0: no limit."""
    keep: str = "last=3"
    """Which of this peer's checkpoints stay: last=3,every=100 (steps)."""
    checkpoint_every_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Seconds between two checkpoints; what came since the last one is in the store's journal."""
    netem: str = ""
    """Link to emulate: a profile of core.profiles, settings, or both; empty: none."""


class PeerConfig(msgspec.Struct, frozen=True):
    """How a peer behaves, whatever it trains."""

    membership: MembershipConfig = MembershipConfig()
    rounds: RoundConfig = RoundConfig()
    region: RegionLabel = DEFAULT_REGION
    """Label of the region, or AUTO_REGION: found by latency. All members of one region average with each other."""
    weight: Weight = 1.0
    """Share of the shards to own, relative to others; AUTO_WEIGHT: by its measured upload, smoothed."""
    volunteer_relay: bool = False
    """Meet other regions for owners of this one that have little upload: see core.relays."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    token: bytes = b""
    """Shown to the other members, where the run admits peers by token: see core.admission."""


def new_run_of(data: dict[str, Any]) -> NewRun:
    """A run to found, from plain data. What `round` and `inner` do not say follows from `links`.

    Raises: ConfigError, naming the field.
    """
    chosen = LINKS[convert(data, NewRun).links]
    inner = data.get("inner", {})
    if inner.get("optimizer", chosen["inner"]["optimizer"]) == chosen["inner"]["optimizer"]:  # another one has other rates
        inner = {**chosen["inner"], **inner}
    new_run = convert({**data, "round": {**chosen["round"], **data.get("round", {})}, "inner": inner}, NewRun)
    try:
        new_run.round.check()
        check_admission(new_run.admission, new_run.admins, new_run.admitted)
    except UsageError as bad:
        raise ConfigError(str(bad)) from bad
    return new_run


def read_new_run(path: str) -> NewRun:
    """A SPEC.toml. Raises: ConfigError, naming the file and the field."""
    data = read_toml(path, dict)
    try:
        return new_run_of(data)
    except ConfigError as bad:
        raise ConfigError(f"{path}: {bad}") from bad


def read_toml(path: str, kind: type[T]) -> T:
    """Read a TOML file as a `kind`.

    Raises: ConfigError, naming the file, the field and what is allowed.
    """
    try:
        return convert(tomllib.loads(read_text(user_path(path), MAX_CONFIG_BYTES)), kind)
    except StoreError as bad:  # it names the file
        raise ConfigError(str(bad)) from bad
    except (tomllib.TOMLDecodeError, UsageError) as bad:
        raise ConfigError(f"{shown(path)}: {bad}") from bad


def convert(data: dict[str, Any], kind: type[T]) -> T:
    """Plain data as a `kind`. Raises: ConfigError, naming the field."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as bad:
        raise ConfigError(_in_words(str(bad))) from bad


def _in_words(complaint: str) -> str:
    """msgspec's complaint, with what a regular expression allows said in words: ours are a first character, then a class."""

    def said(found: re.Match[str]) -> str:
        signs = " ".join(c for c in found["signs"] if not c.isalnum())
        return f"only letters, digits and {signs} are allowed, and a letter or digit first"

    return re.sub(r"Expected `str` matching regex '\^\[A-Za-z0-9\]\[A-Za-z0-9(?P<signs>[^\]]*)\][^']*'", said, complaint)
