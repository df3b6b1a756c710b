"""What a round of a run takes of one peer: bytes, and the seconds that they take on its connection.

    sent      its pushes of the shards that others own, its updates of those that it owns to every other member, and replies
    received  the updates of the shards that others own, pushes of those that it owns from every other member, and replies

Sizes are those of the messages themselves (core.wire, framed as by net.wire), with bodies as large as the run's codecs make them.
Which codecs a peer ends up with, and how many local steps, is decided by what decides it in the engine (services.pacing).

Owners are taken to send their updates to all others themselves. Where members pass them on (core/forwarding), a peer that owns
much sends less than this, and one that owns little more: all about as much as the mean one.

All members are taken to train at one speed over the same connection, and to do what the one that is looked at does; they differ
in how many shards rendezvous gives to them. Announcements are told apart. What lies below the frames (Noise, yamux, TCP, IP) is
not counted: some per cent.
"""

import random
import statistics
from collections import Counter

import msgspec

from legion_p2p.core.adapt import Choice, Load
from legion_p2p.core.announcement import MAX_MEMBERS
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, MAX_SHARDS
from legion_p2p.core.ring_watch import grown
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import UsageError
from legion_p2p.services.run.pacing import paced
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S
from legion_p2p.train.peer_memory import memory_bytes
from legion_p2p.train.round_traffic import Frames, RoundTraffic, announcement_bytes, frames_of, traffic_of

MAX_ELEMENTS = MAX_SHARDS * MAX_SHARD_ELEMENTS
N_DRAWS = 51  # of who owns what


class Connection(msgspec.Struct, frozen=True):
    """What a peer is connected by; None: not known, or without a limit."""

    upload_bps: float | None = None
    download_bps: float | None = None
    rtt_s: float = 0.0


class RoundCost(msgspec.Struct, frozen=True):
    """One peer's round."""

    owned_shards: float
    push_codec: str
    update_codec: str
    local_steps: int
    tokens: int
    """That this peer trains on in the round."""
    traffic: RoundTraffic
    sent_bytes_per_token: float
    compute_s: float
    send_s: float
    receive_s: float
    sync_s: float
    """Sending and receiving at once, and one round trip."""
    sync_share: float
    """Of the time, if training waited for it."""
    exposed_share: float
    """Of the time, as it is: training goes on meanwhile, and only what takes longer than it shows. Synchronous runs do wait."""
    transfer_s: float
    """To bring the update of one shard to all members."""

    @property
    def keeps_up(self) -> bool:
        """The round's bytes are through before the next round's come."""
        return self.sync_s <= self.compute_s


class Forecast(msgspec.Struct, frozen=True):
    """What a run would take. Three peers are looked at: the one that owns fewest shards, the mean one, the one that owns most."""

    n_params: int
    n_shards: int
    shard_elements: int
    n_members: int
    memory_bytes: int
    """About, for training in fp32: all that the process takes."""
    model_bytes: int
    """That a newcomer fetches."""
    connection: Connection
    step_s: float
    tokens_per_step: int
    announcement_bytes: int
    """Of one member."""
    announcements_bps: float
    """Of all others, each heard once: more, as gossip repeats them."""
    initial: tuple[RoundCost, ...]
    """With the codecs and the local steps that the run begins with."""
    adapted: tuple[RoundCost, ...]
    """With those that each peer then chooses, within what the run allows."""
    warnings: tuple[str, ...]


class LocalWork(msgspec.Struct, frozen=True):
    """What a peer does between two rounds."""

    n_steps: int
    step_s: float
    tokens_per_step: int


def forecast(spec: RunSpec, n_members: int, connection: Connection, step_s: float, tokens_per_step: int) -> Forecast:
    """What the run takes of a peer that does a local step of this many tokens in `step_s` seconds.

    Raises: UsageError, if there are too many members or parameters.
    """
    check_members(n_members)
    numel = sum(p.numel for p in spec.params)
    check_size(numel)
    plan = spec.plan()
    now = Choice(spec.round.push_codec, spec.round.update_codec)
    steps, most = spec.round.local_steps, max(spec.round.local_steps, spec.round.max_local_steps)
    frames: dict[tuple[str, str], Frames] = {}

    def cost(owned: float, choice: Choice, local_steps: int) -> RoundCost:
        codecs = (choice.push_codec, choice.update_codec)
        if codecs not in frames:
            frames[codecs] = frames_of(spec, n_members, *codecs)
        work = LocalWork(local_steps, step_s, tokens_per_step)
        return _cost(spec, frames[codecs], n_members, owned, choice, work, connection)

    initial, adapted = [], []
    for owned in shares(plan.n_shards, n_members):
        owned_elements = round(plan.numel * owned / plan.n_shards)
        load = Load(plan.numel - owned_elements, owned_elements * (n_members - 1)) if n_members > 1 else Load(0, 0)
        initial.append(cost(owned, now, steps))
        adapted.append(cost(owned, *paced(spec.round, steps, most, step_s, load, connection.upload_bps, now)))
    announcement = announcement_bytes(plan.n_shards)
    announcements_bps = 8 * announcement * (n_members - 1) / (MembershipConfig().announce_s * grown(n_members))
    return Forecast(
        n_params=numel,
        n_shards=plan.n_shards,
        shard_elements=min(plan.shard_elements, numel),
        n_members=n_members,
        memory_bytes=memory_bytes(spec),
        model_bytes=4 * numel,
        connection=connection,
        step_s=step_s,
        tokens_per_step=tokens_per_step,
        announcement_bytes=announcement,
        announcements_bps=announcements_bps,
        initial=tuple(initial),
        adapted=tuple(adapted),
        warnings=_warnings(adapted, connection, announcements_bps),
    )


def check_size(n_params: float) -> None:
    """Raises: UsageError, if no run holds that many parameters."""
    if n_params > MAX_ELEMENTS:
        raise UsageError(
            f"a model of {n_params / 1e9:.1f}b parameters, a run holds at most {MAX_ELEMENTS / 1e9:.1f}b: "
            f"{MAX_SHARDS:,} shards of {MAX_SHARD_ELEMENTS:,} parameters"
        )


def check_members(n_members: int) -> None:
    """Raises: UsageError."""
    if not 1 <= n_members <= MAX_MEMBERS:
        raise UsageError(f"{n_members} members, allowed are 1 to {MAX_MEMBERS}")


def shares(n_shards: int, n_members: int) -> tuple[float, float, float]:
    """How many shards the member with the fewest owns, the mean one, and the one with the most.

    Rendezvous gives each shard to any member with equal chances; so do these draws, of which the median counts.
    """
    rng = random.Random(0)
    least, most = [], []
    for _ in range(N_DRAWS):
        owned = Counter(rng.choices(range(n_members), k=n_shards)).values()
        least.append(min(owned) if len(owned) == n_members else 0)
        most.append(max(owned))
    return statistics.median_low(least), n_shards / n_members, statistics.median_low(most)


def _cost(
    spec: RunSpec, frames: Frames, n_members: int, owned: float, choice: Choice, work: LocalWork, connection: Connection
) -> RoundCost:
    traffic = traffic_of(frames, n_members, owned)
    compute_s = work.n_steps * work.step_s
    tokens = work.n_steps * work.tokens_per_step
    send_s = _seconds(traffic.sent_bytes, connection.upload_bps)
    receive_s = _seconds(traffic.received_bytes, connection.download_bps)
    sync_s = max(send_s, receive_s) + (connection.rtt_s if n_members > 1 else 0.0)
    share = sync_s / (compute_s + sync_s)
    return RoundCost(
        owned_shards=owned,
        push_codec=choice.push_codec,
        update_codec=choice.update_codec,
        local_steps=work.n_steps,
        tokens=tokens,
        traffic=traffic,
        sent_bytes_per_token=traffic.sent_bytes / tokens,
        compute_s=compute_s,
        send_s=send_s,
        receive_s=receive_s,
        sync_s=sync_s,
        sync_share=share,
        exposed_share=share if spec.round.synchronous else max(0.0, 1 - compute_s / max(sync_s, compute_s)),
        transfer_s=_seconds(frames.updates / frames.n_shards * (n_members - 1), connection.upload_bps) if owned else 0.0,
    )


def _seconds(n_bytes: float, rate_bps: float | None) -> float:
    return 0.0 if rate_bps is None else 8 * n_bytes / rate_bps


def _warnings(costs: list[RoundCost], connection: Connection, announcements_bps: float) -> tuple[str, ...]:
    warnings = []
    _, mean, most = costs
    if not mean.keeps_up:
        warnings.append(
            f"a round's bytes take {mean.sync_s / mean.compute_s:.1f} times as long as its steps, so that pushes come late: "
            "allow a sparser codec, or more local steps"
        )
    elif not most.keeps_up:
        warnings.append("peers that own most do not keep up: with a lower --weight, a slow peer owns less")
    if most.transfer_s > TRANSFER_DEADLINE_S:
        warnings.append(
            f"one update takes {most.transfer_s:.0f} s to all members, and is given up after {TRANSFER_DEADLINE_S:.0f} s: "
            "who did not get it has to ask for it"
        )
    slower = min((bps for bps in (connection.upload_bps, connection.download_bps) if bps is not None), default=None)
    if slower is not None and announcements_bps > slower / 10:
        warnings.append(f"announcements alone take {announcements_bps / slower:.0%} of the connection, or more")
    return tuple(warnings)
