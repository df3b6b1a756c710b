"""`Scenario`: a swarm to simulate, as a file describes it. Frozen values that check themselves as they are made.

What each field allows and means stands beside it; docs/simulate.md has the same as a table, made from these structs. Times are in
virtual seconds since the start.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import msgspec

from legion_p2p.config import Rounds, Weight
from legion_p2p.config.engine import AUTO_REGION, REGION_FORM
from legion_p2p.config.fields import settle
from legion_p2p.config.forms import Form, checked_text, refusal
from legion_p2p.config.new_run import chosen_rounds
from legion_p2p.core.presets import Links
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.roles import RoleName
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.errors import UsageError

MAX_PEERS = 10_000  # of all groups, replacements included; the table of members holds no more
MAX_GROUPS = 10_000  # a scenario that was made smaller has one for each peer
MAX_FAULTS = 10_000
MAX_DURATION_S = 30 * 86400.0
SAMPLE_S_OF_A_PEER = 0.01  # a sample takes a quarter of a millisecond of CPU for each peer of 16 shards
MIN_SAMPLE_S = 0.5  # unless more is asked for: looking at all shards of all peers takes a while
MAX_ELEMENTS = 1 << 24  # of a toy model: 64 MiB at each peer

_Time = Annotated[float, msgspec.Meta(ge=0, le=MAX_DURATION_S)]
_Length = Annotated[float, msgspec.Meta(gt=0, le=MAX_DURATION_S)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

AttackName = Literal["none", "flip", "against", "x-100", "x100", "drift", "random", "ALIE", "IPM", "mimic"]
FaultKind = Literal["kill", "suspend", "partition", "slow", "hang", "clock", "disk-full", "link"]
Victim = Literal["random", "owner", "standby", "both"]
OWNERSHIP: tuple[str, ...] = ("owner", "standby", "both")


def _region(given: Any) -> str:
    if not isinstance(given, str) or (given and not REGION_FORM.fullmatch(given)):
        raise refusal(given, f"a label of letters, digits and . _ -, at most 64, {AUTO_REGION}, or nothing")
    return given


def _name(given: Any) -> str:
    if not isinstance(given, str) or not REGION_FORM.fullmatch(given):
        raise refusal(given, _NAME_FORM)
    return given


_NAME_FORM = "a name of letters, digits and . _ -, at most 64"
_Name = Annotated[str, Form(_NAME_FORM, _name)]
_LINK_FORM = "a link such as cable, or up=20mbit,down=100mbit,rtt=50ms,place=1,across=120ms"
_Link = Annotated[str, checked_text(_LINK_FORM, parse_link)]
_Path = Annotated[str, msgspec.Meta(max_length=4096)]


class Joins(msgspec.Struct, frozen=True, kw_only=True):
    """When the peers of a group come."""

    kind: Literal["even", "poisson"] = "even"
    """even: one after the other at equal distances; poisson: at random, independently of each other."""
    at_s: _Time = 0.0
    """When the first may come."""
    over_s: _Time = 0.0
    """How long it takes until all are there; 0: all at the same moment."""

    def __post_init__(self) -> None:
        settle(self)


class Stays(msgspec.Struct, frozen=True, kw_only=True):
    """How long each peer of a group stays, and what comes then."""

    kind: Literal["always", "fixed", "exponential", "weibull", "daily"] = "always"
    """How long a session lasts. daily: there for a share of each day, and away for the rest, at hours of its own."""
    mean_s: _Length = 3600.0
    """Mean length of a session; of daily ones, see `day_s` and `online`."""
    shape: Annotated[float, msgspec.Meta(ge=0.1, le=10)] = 0.5
    """Of the Weibull distribution. Below 1: many sessions are short, and a peer that has stayed long is likely to stay longer."""
    day_s: _Length = 86400.0
    """Length of a day. A shorter one simulates more days in the same time."""
    online: _Share = 0.4
    """Share of a day that a peer is there."""
    night: _Share = 0.5
    """Share of the day at whose end sessions begin, give or take a tenth: different groups may live in different time zones."""
    ends: Literal["kill", "leave"] = "kill"
    """kill: without a word; leave: in order, with goodbye."""
    away_s: _Time = 0.0
    """Mean time until the same peer comes back after a session (exponential); 0: it does not."""
    replaced: bool = False
    """A new peer comes when one goes, so that the group keeps its size."""

    def __post_init__(self) -> None:
        settle(self)
        if self.replaced and self.away_s:
            raise UsageError("Stays: `replaced` and `away_s` exclude each other: either another peer comes, or the same one")
        if self.kind == "daily" and not 0 < self.online < 1:
            raise UsageError(f'Stays: online = {self.online:g} with kind = "daily": it must be above 0 and below 1')


class PeerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Peers that are alike."""

    name: _Name
    """Its peers are called NAME-0, NAME-1, ..., or just NAME where it is one."""
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PEERS)] = 1
    """How many."""
    step_s: Annotated[float, msgspec.Meta(ge=0.001, le=86400)] = 1.0
    """Seconds for a local step at the median peer."""
    spread: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    """How unlike their speeds are: the standard deviation of the logarithm of `step_s`. 0.5: the fastest sixth is 1.6 times as
    fast as the median."""
    link: _Link = ""
    """Access link and place, as legion-peer --netem has it: cable; or up=20mbit,rtt=50ms,place=1,across=120ms. Empty: 5 ms to
    everybody, and no limit."""
    trace: _Path = ""
    """CSV file with a measured course of the link: columns at_s, up_bps, down_bps, rtt_s, of which the last three may be missing.
    It repeats after its end. Relative to the scenario's file."""
    region: Annotated[str, Form("a label", _region)] = ""
    """Region that these peers announce; auto: they find it by latency. Empty: one region for all."""
    regions: Annotated[int, msgspec.Meta(ge=1, le=MAX_PEERS)] = 1
    """More than 1: these peers are dealt to as many regions, in turn, called REGION-0, REGION-1, ..."""
    role: RoleName = "auto"
    """As legion-peer --role."""
    weight: Weight = 1.0
    """Share of the shards to own, relative to others; auto: by measured upload, smoothed."""
    hidden: bool = False
    """Nobody can dial these peers, as behind a home router. They are reached over connections that they made."""
    stores: bool = False
    """They keep checkpoints, on this machine's disk while the simulation runs. A disk can only be full where this is set."""
    attack: AttackName = "none"
    """What these peers do to the run: they know all pushes, act together, and claim a thousand times their tokens."""
    joins: Joins = Joins()
    """When they come."""
    stays: Stays = Stays()
    """How long they stay."""
    present: Annotated[tuple[tuple[float, float], ...], Form("pairs of numbers, as in [[0, 60], [90, inf]]")] = ()
    """Exact times in place of `joins` and `stays`: [[from, until], ...] for each peer of the group."""

    def __post_init__(self) -> None:
        settle(self)
        longest = 64 - len(f"-{self.regions - 1}")
        if self.regions > 1 and (self.region in ("", AUTO_REGION) or len(self.region) > longest):
            raise UsageError(
                f"PeerGroup(regions={self.regions}): region is {self.region!r}, and their names begin with it: "
                f"give a label of at most {longest} characters, other than {AUTO_REGION}"
            )
        for begin, end in self.present:
            if not 0 <= begin < end:
                raise UsageError(
                    f"PeerGroup(present=...): from {begin:g} until {end:g}: the first must be smaller, and not below 0"
                )


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong: once at `at_s`, or again and again at a rate."""

    kind: FaultKind
    """kill: as by SIGKILL; suspend: as by SIGSTOP; partition: cut off from all others; slow: steps take `factor` times as long;
    hang: training stops, the network lives on; clock: it is `offset_s` ahead; disk-full; link: rates fall by `factor`."""
    at_s: _Time | None = None
    """When it happens."""
    every_s: _Length | None = None
    """In place of that: mean time between two (Poisson)."""
    from_s: _Time = 0.0
    """With `every_s`: the earliest."""
    until_s: _Time | None = None
    """With `every_s`: the latest. [default: the end]"""
    for_s: _Time = 30.0
    """How long it lasts. A killed peer starts again after that time; 0: never."""
    who: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] = "random"
    """random; the owner of a random shard, its standby, or both; or the name of a group or a peer:
    all whose names begin with it and a hyphen."""
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PEERS)] = 1
    """Peers hit at a time."""
    share: _Share = 0.0
    """In place of `count`: the share of those that may be hit."""
    factor: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 4.0
    """Of slow and link."""
    offset_s: Annotated[float, msgspec.Meta(ge=-1e8, le=1e8)] = 3600.0
    """Of clock."""
    draw: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    """Chooses among the peers that may be hit: another number hits others."""

    def __post_init__(self) -> None:
        settle(self)
        if (self.at_s is None) == (self.every_s is None):
            raise UsageError(f"Fault(kind={self.kind!r}): give `at_s`, for once, or `every_s`, for a rate")


class SimTask(msgspec.Struct, frozen=True, kw_only=True):
    """What the peers train."""

    kind: Literal["regression", "quadratic", "text", "none"] = "regression"
    """regression: a small network learns the noisy answers of a larger one; quadratic: a vector, each peer's optimum
    beside the common one; text: the built-in GPT xxs on the source of Python's library; none: nothing, in empty rounds."""
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_ELEMENTS)] = 24
    """Hidden units of the regression; elements of the others. Of text: no meaning."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.05
    """Of a local step. Of text: Muon's, for which 0.02 was measured to be good."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    """Examples, or windows of text, in a step."""
    noise: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    """Standard deviation of what is added to the answers, or to a gradient of the quadratic."""
    unlike: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    """How unlike the peers' data is: the spread of their optima, or of the centers of their examples."""

    def __post_init__(self) -> None:
        settle(self)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A swarm, and what happens to it."""

    about: Annotated[str, msgspec.Meta(max_length=500)] = ""
    """What it shows, in a line."""
    duration_s: _Length
    """Virtual time that is simulated."""
    settle_s: _Time = 0.0
    """Virtual time after that, without faults and training, in which all that live should come to agree. 0: none."""
    sample_s: _Time = 0.0
    """Time between two samples of loss, bytes and members. 0: a two hundredth of the duration,
    at least half a second, and a second for each hundred peers."""
    task: SimTask = SimTask()
    """What is trained."""
    links: Links | None = None
    """Settings of the run as legion-peer --links chooses them. [default: each field of `rounds` has its own default]"""
    rounds: Rounds = Rounds()
    """How the members average: the fields of a new run's specification."""
    peers: tuple[PeerGroup, ...]
    """Who takes part. The first peer of the first group creates the run."""
    faults: tuple[Fault, ...] = ()
    """What goes wrong."""
    announce_s: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 2.0
    """Seconds between two announcements of a peer. The patience with silent peers grows with it. Longer: less CPU for many
    peers, and later news."""

    def __post_init__(self) -> None:
        settle(self)
        if not 1 <= len(self.peers) <= MAX_GROUPS or len(self.faults) > MAX_FAULTS:
            n_groups, n_faults = len(self.peers), len(self.faults)
            raise UsageError(
                f"{n_groups} groups of peers and {n_faults} faults: 1 to {MAX_GROUPS} and 0 to {MAX_FAULTS} are allowed"
            )
        if sum(group.count for group in self.peers) > MAX_PEERS:
            raise UsageError(f"peers: {sum(group.count for group in self.peers)} in all groups, at most {MAX_PEERS}")
        for problem in _contradictions(self):
            raise UsageError(problem)

    def round_spec(self) -> RoundSpec:
        """The run's rounds, with nothing left open. Raises: UsageError, where choices do not fit together."""
        return chosen_rounds(self.rounds, self.links)

    def sample_every_s(self) -> float:
        n_peers = sum(group.count for group in self.peers)
        return self.sample_s or max(MIN_SAMPLE_S, self.duration_s / 200, SAMPLE_S_OF_A_PEER * n_peers)


def _contradictions(scenario: Scenario) -> Iterator[str]:
    """Errors of fields that are valid one by one, but not together."""
    names = [group.name for group in scenario.peers]
    for name in names:
        if names.count(name) > 1:
            yield f"peers: two groups are called {name}"
            return
        if name in get_args(Victim):
            yield f"peers: a group cannot be called {name}: faults mean something else by it"
    first = scenario.peers[0]
    if not first.present and first.joins.at_s > 0:
        yield f"peers: the first group comes at {first.joins.at_s:g} s, but its first peer creates the run: let it come at 0"
    attacks = sorted({group.attack for group in scenario.peers} - {"none"})
    if len(attacks) > 1:
        yield f"peers: attacks {', '.join(attacks)}; those that attack act together, so one kind is allowed"
    if first.attack != "none":
        yield f"peers: the first group creates the run, so it cannot be the one that attacks ({first.attack})"
    for fault in scenario.faults:
        if fault.at_s is not None and fault.at_s > scenario.duration_s:
            yield f"faults: {fault.kind} at {fault.at_s:g} s, but the simulation ends at {scenario.duration_s:g} s"
        groups = [g for g in scenario.peers if any(is_meant(fault.who, name) for name in peer_names(g))]
        if fault.who not in get_args(Victim) and not groups:
            known = ", ".join([*get_args(Victim), *names[:8]])
            yield f"faults: who = {fault.who!r} is no group and no peer; allowed are {known}"
        if fault.kind == "disk-full" and not any(g.stores for g in groups or scenario.peers):
            yield "faults: disk-full, but none of these peers keeps checkpoints: set `stores = true` in their group"
    yield from _problems_of_rounds(scenario)


def _problems_of_rounds(scenario: Scenario) -> Iterator[str]:
    try:
        scenario.round_spec()
    except UsageError as bad:
        yield f"rounds: {bad}"


def is_meant(who: str, name: str) -> bool:
    """Whether a fault that names `who` means the peer of this name."""
    return name == who or name.startswith(f"{who}-")


def peer_names(group: PeerGroup) -> tuple[str, ...]:
    """What the peers of a group are called."""
    return (group.name,) if group.count == 1 else tuple(f"{group.name}-{i}" for i in range(group.count))
