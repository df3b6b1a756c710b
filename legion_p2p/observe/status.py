"""What a running peer knows, as one frozen record: the only source of what the live view, the JSON and the log show."""

import msgspec

from legion_p2p.core.answers import RoundScores

STATUS_VERSION = 1


class RunStatus(msgspec.Struct, frozen=True):
    id: str
    name: str


class MemberStatus(msgspec.Struct, frozen=True):
    """One member, this peer included."""

    peer_id: str
    region: str
    liveness: str
    step: int
    tokens_per_s: float
    tokens: int = 0
    loss: float | None = None
    training: bool = False
    ready: bool = False
    done: bool = False
    shards_owned: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    addresses: tuple[str, ...] = ()
    rtt_s: float | None = None
    """Of the connection to it; None: there is none, or nothing was measured."""
    role: str = "auto"
    reach: str = "unknown"
    """How others reach it, by its own account: public, punchable, relayed, or unknown."""
    paused: bool = False
    """It trains nothing for now, because its user or one of their conditions says so."""


class ConnectionStatus(msgspec.Struct, frozen=True):
    """The connection to one peer, in the run or not. None: not measured."""

    peer_id: str
    kind: str
    """direct, punched, relayed, or unknown."""
    relay: str | None = None
    """The peer that carries it, where it is relayed."""
    rtt_s: float | None = None
    rate_bps: float | None = None
    """What transfers have lately reached, in the faster direction."""


class ReachStatus(msgspec.Struct, frozen=True):
    """How others reach this peer, as far as it has found out."""

    reach: str = "unknown"
    nat: str = "unknown"
    why: str = ""
    relays: tuple[str, ...] = ()
    """Relays that hold a reservation for it."""
    circuits: int = 0
    """How many circuits it carries at most for others."""


class ShardStatus(msgspec.Struct, frozen=True):
    """One shard as held here; `digest` in hex."""

    shard: int
    version: int
    digest: str
    owner: str | None
    standby: str | None


class FailedPush(msgspec.Struct, frozen=True):
    peer_id: str
    reason: str


class RoundStatus(msgspec.Struct, frozen=True):
    """The last round that this peer saw close."""

    shard: int
    version: int
    averaged_fraction: float
    failed: tuple[FailedPush, ...] = ()
    n_included: int = 0
    n_expected: int = 0


class ContactStatus(msgspec.Struct, frozen=True):
    """An initial peer, and why it is not connected; an empty problem: it is."""

    address: str
    problem: str = ""


class ControlStatus(msgspec.Struct, frozen=True):
    """What the user has asked of this peer, and the limits that hold."""

    wish: str = "train"
    """What training is to do: train, pause, finish, or leave."""
    reasons: tuple[str, ...] = ()
    """Why it pauses: "by you", or conditions of its user that do not hold."""
    until: float | None = None
    """When the user's pause ends, in seconds since the epoch; None: there is none, or it has no end."""
    upload_bps: float | None = None
    """By the user's choice; None: no limit. The same for receiving below."""
    download_bps: float | None = None
    max_cpu: float | None = None
    """Share of the machine's processors that the process may take; None: no limit."""


class TargetStatus(msgspec.Struct, frozen=True):
    """What ends the run, and how far it is; 0: not by that."""

    steps: int = 0
    tokens: int = 0
    loss: float = 0.0
    run_tokens: int = 0
    """Tokens that the run has trained so far, as most members count."""
    reached: str = ""
    """What was reached, in words; empty: the run goes on."""
    least_s: float | None = None
    """Seconds that it still takes, at least and at most, by the last ten minutes; None: unknown."""
    most_s: float | None = None


class TrafficRow(msgspec.Struct, frozen=True):
    """Bytes with one peer, for one purpose, or in one hour."""

    name: str
    """The peer's id, what it was for, or when the hour began, in seconds since the epoch."""
    sent_bytes: int
    received_bytes: int


class ShardTrafficRow(msgspec.Struct, frozen=True):
    """Messages that carry shards: their bytes, and those that the same shards have as fp32."""

    name: str
    """pushes, updates, or whole shards."""
    sent_bytes: int
    sent_fp32_bytes: int
    received_bytes: int
    received_fp32_bytes: int


class BooksStatus(msgspec.Struct, frozen=True):
    """Who got and sent what, since the start. Where `total` is known, the bytes of `classes` and `rest` together are those of it,
    and `hours` count all of it.
    """

    peers: tuple[TrafficRow, ...] = ()
    classes: tuple[TrafficRow, ...] = ()
    hours: tuple[TrafficRow, ...] = ()
    total: TrafficRow | None = None
    """As the sockets counted it; None: there are none."""
    rest: TrafficRow | None = None
    """Headers, encryption, handshakes, and what broke off on its way: what `classes` leave of `total`."""
    local: TrafficRow | None = None
    """Of `total`, with this machine and its local network."""
    shards: tuple[ShardTrafficRow, ...] = ()


class ServiceStatus(msgspec.Struct, frozen=True):
    """What a peer does for others, whether they are in a run with it or not. Totals since it started, and what it holds now."""

    n_connections: int = 0
    n_refused: int = 0
    """Connections turned away: too many, or of a peer that misbehaved."""
    n_questions: int = 0
    """Of the DHT, answered."""
    n_records: int = 0
    """Of the DHT, held now."""
    n_known: int = 0
    """Peers that it was connected with, and would know again after a restart."""
    n_reservations: int = 0
    """Peers that others can reach through this one now."""
    n_circuits: int = 0
    """Between two peers each, open now."""
    n_relay_refusals: int = 0
    """Reservations and circuits that were refused, because a limit was reached or the other side had not reserved."""
    relayed_bytes: int = 0


class ErrorStatus(msgspec.Struct, frozen=True):
    """Something that went wrong: seconds since the epoch, a name, and a sentence."""

    at: float
    event: str
    text: str


class PrivacyStatus(msgspec.Struct, frozen=True):
    """What this peer's pushes have spent of its privacy."""

    epsilon: float | None
    """At `delta`, of all that was pushed in this run; None: nothing was pushed since the start."""
    delta: float
    rounds: float
    """How often the whole model was pushed."""
    clipped_share: float
    """Of the pushes since the start, those that had to be shortened."""


class Status(msgspec.Struct, frozen=True):
    """All of it. Bytes are totals since this peer started."""

    peer_id: str
    addresses: tuple[str, ...]
    run: RunStatus | None
    region: str
    state: str
    """One of joining, training, helping, waiting, done, leaving."""
    step: int
    members: tuple[MemberStatus, ...]
    shards: tuple[ShardStatus, ...]
    sent_bytes: int
    received_bytes: int
    last_round: RoundStatus | None
    errors: tuple[ErrorStatus, ...]
    rounds: int = 0
    loss: float | None = None
    tokens: int = 0
    tokens_per_s: float = 0.0
    run_step: int = 0
    """Steps of the run, by this member's count and what most others say."""
    local_steps: int = 0
    target_steps: int | None = None
    remaining_s: float | None = None
    """Until what this peer's user asked for is done: at least, or about, where `remaining_most_s` is not known; None: unknown, or
    nothing was asked for."""
    remaining_most_s: float | None = None
    """At most, by the last ten minutes."""
    uptime_s: float = 0.0
    agreement: float | None = None
    """How far the pushes of the last rounds agreed: 1 all alike, 0 as if each went its own way. None: not measured."""
    common_digest: str = ""
    """Digest over the digests of all shards: two peers with the same one hold the same model."""
    blocked_fraction: float = 0.0
    """Share of the time that step() held up the training loop."""
    push_codec: str = ""
    update_codec: str = ""
    """What this peer uses now, of the codecs that the run allows."""
    upload_bps: float | None = None
    """Bits per second that sending has reached lately; None: not measured yet. The same for receiving below."""
    download_bps: float | None = None
    upload_limit_bps: float | None = None
    """In force now, by the user's choice or of an emulated link; None: no limit."""
    download_limit_bps: float | None = None
    bytes_in_region: int = 0
    """Of requests and replies, both ways; what members of other regions sent and got is in the second."""
    bytes_across: int = 0
    n_connected: int = 0
    """Peers that there is a connection with now, in the run or not."""
    reach: ReachStatus = ReachStatus()
    connections: tuple[ConnectionStatus, ...] = ()
    """To all peers that this one is connected with, in the run or not."""
    contacts: tuple[ContactStatus, ...] = ()
    """The initial peers that this peer was given."""
    former: tuple[str, ...] = ()
    """Addresses of former members that this peer tries, because it is alone: those that its store remembers."""
    control: ControlStatus = ControlStatus()
    target: TargetStatus | None = None
    """What the run is to come to; None: it has no end of its own."""
    books: BooksStatus = BooksStatus()
    service: ServiceStatus | None = None
    mfu: float | None = None
    """Model FLOPs utilisation of this peer; None: not known."""
    privacy: PrivacyStatus | None = None
    """None: nothing is done to what this peer pushes."""
    test: RoundScores | None = None
    """How the common model does in the multiple-choice test that this peer takes part in; None: nothing is answered."""
    pid: int = 0
    status_version: int = STATUS_VERSION
