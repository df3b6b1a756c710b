"""`Peer`: how one peer behaves, whatever it trains. The same values are the options of `legion-peer`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import msgspec

from legion_p2p.config.engine import AUTO_REGION, DEFAULT_REGION, REGION_FORM, Weight
from legion_p2p.config.fields import settle
from legion_p2p.config.forms import Form, ListenAddresses, Switch, checked_text, path_text, refusal, text_of
from legion_p2p.config.manners import Manners
from legion_p2p.core.addresses import ENDPOINT_FORM, parse_endpoint
from legion_p2p.core.caps import QUIET_FORM, parse_quiet_hours
from legion_p2p.core.identity import Identity
from legion_p2p.core.privacy import PRIVACY_FORM, parse_privacy
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.relay_ledger import DEFAULT_RELAY, RELAY_FORM, parse_relay
from legion_p2p.core.retention import parse_retention
from legion_p2p.core.roles import RoleName
from legion_p2p.core.speed_tests import PER_HOUR_OF_PEER
from legion_p2p.core.units import RATE_FORM, parse_rate

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
DEFAULT_SEARCH_S = 15.0  # a run that was created a moment ago takes seconds to show in the DHT
_DASHBOARD_FORM = "yes, no, or a port"
_KEY_FILE = "the path of a key file, or a legion_p2p.Identity"


def _identity(given: Any) -> str | Identity:
    if isinstance(given, Identity):
        return given
    if given is None:
        return ""
    return text_of(given, _KEY_FILE)


IdentityOrFile = Annotated[str | Identity, Form(_KEY_FILE, _identity)]
"""Who a peer is: a key file, an Identity; or empty, for a new one."""


def _region(given: Any) -> str:
    if not isinstance(given, str) or not REGION_FORM.fullmatch(given):
        raise refusal(given, f"a label of letters, digits and . _ -, at most 64, or {AUTO_REGION}")
    return given


def _relay(given: Any) -> str:
    if not isinstance(given, str):
        raise refusal(given, RELAY_FORM)
    parse_relay(given)
    return given


def _folders(given: Any) -> tuple[str, ...]:
    allowed = "the paths of folders"
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, list | tuple):
        raise refusal(given, allowed)
    return tuple(text for one in given if (text := text_of(one, allowed)))


def _dashboard(given: Any) -> str:
    if isinstance(given, bool):
        return "yes" if given else "no"
    text = str(given).lower() if isinstance(given, str | int) else ""
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535:
        return text
    if text not in ("yes", "no"):
        raise refusal(given, _DASHBOARD_FORM)
    return text


def _callback(given: Any) -> Callable[[Any], None] | None:
    if given is not None and not callable(given):
        raise refusal(given, "a function that takes an Event")
    return cast("Callable[[Any], None] | None", given)


Rate = Annotated[str, checked_text(RATE_FORM, parse_rate)]


class Limits(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """How much of the machine's connection a peer may use, over all its connections together."""

    upload: Rate = ""
    """Limit on all that this peer sends, in bits per second, such as 10mbit. Lower: sparser pushes and rarer rounds. Empty: no
    limit."""

    download: Rate = ""
    """Limit on all that it receives. Lower: joining takes longer, and updates arrive later. Empty: no limit."""

    quiet_hours: Annotated[str, checked_text(QUIET_FORM, parse_quiet_hours)] = ""
    """Time of day with a lower limit both ways, in local time: 22:00-07:00, or 22:00-07:00=2mbit. Without a rate it is 256kbit,
    enough to stay a member."""

    netem: Annotated[str, checked_text("a link such as cable, or up=20mbit,rtt=50ms", parse_link)] = ""
    """Link to emulate, for experiments: cable, satellite, ..., or up=20mbit,down=100mbit,rtt=50ms,jitter=5ms,loss=0.5%."""

    def __post_init__(self) -> None:
        settle(self)


class Store(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """Where a peer keeps checkpoints, and which ones."""

    path: Annotated[str, path_text("the path of a folder")] = ""
    """Folder for checkpoints, to resume from and for others to fetch; made on first use. none: no checkpoints are kept."""

    keep: Annotated[str, checked_text("a policy such as last=3,every=100", parse_retention)] = "last=3"
    """Retention: which checkpoints are kept. last=3 keeps the newest three, every=100 also one for every 100 steps. More: more
    disk."""

    max_gb: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 20.0
    """Most disk space that the store may use, in GB; at the limit nothing more is stored, and training goes on. 0: no limit."""

    checkpoint_every_s: Annotated[float, msgspec.Meta(ge=1, le=1e9)] = 60.0
    """Seconds between two checkpoints. Changes in between are kept too, in a journal that only this peer reads. Shorter: more
    writing."""

    exports: Annotated[str, path_text("the path of a folder")] = ""
    """Folder below which the page in the browser exports checkpoints when a user with its token presses the button. Empty:
    none are exported."""

    shared: Annotated[tuple[str, ...], Form("folders of prepared data", _folders)] = ()
    """Folders of prepared data to give to peers that ask, as well as checkpoints. The data that legion-peer itself trains on
    is given as well."""

    def __post_init__(self) -> None:
        settle(self)


class Peer(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """One peer on the network: its identity, where it can be reached, and what it contributes to its run."""

    identity: IdentityOrFile = ""
    """Key file with this peer's identity, made on first use. none: a new identity that is forgotten at the end."""

    listen: ListenAddresses = DEFAULT_LISTEN
    """Addresses to listen on; port 0 is any free one."""

    announce: ListenAddresses = ()
    """Addresses that others should dial, where a router forwards a port to this machine."""

    port_mapping: Switch = True
    """Ask the router to forward a port to this peer, by UPnP, PCP or NAT-PMP. The forwarding ends when the peer leaves."""

    lan: Switch = True
    """Meet the peers of the same LAN by mDNS, and be met. Anyone on the LAN can then see that this peer is there."""

    region: Annotated[str, Form("a label", _region)] = DEFAULT_REGION
    """Region: average with the members that have this label, and only now and then with other regions; auto: the members
    nearby."""

    role: RoleName = "auto"
    """What this peer does. auto: train, and own shards if others can reach it; trainer: own them even through a relay; client:
    train, and own none; helper: own, store and relay, and train nothing."""

    weight: Weight = 1.0
    """Share of the model's shards to take care of, relative to others; each costs upload. 0: none; auto: 1 for each 10 Mbit/s of
    upload."""

    offload: Literal["none", "disk"] = "none"
    """With disk, what a round needs only once (the common copy, and what is sent later) is held in files in the store's folder
    instead of memory: at most 2 bytes a parameter in memory, instead of 8. Each round writes and reads a few times the size of
    the model."""

    dp: Annotated[str, checked_text(PRIVACY_FORM, parse_privacy)] = ""
    """Differential privacy of what this peer pushes. noise=1,clip=0.5,delta=1e-6 shortens each round's change to a length of 0.5,
    and adds noise of 1 * 0.5 to each of its elements; the status shows the epsilon that is spent. It costs most of what is
    learnt. Needs legion_p2p[privacy]. Empty: none."""

    volunteer_relay: bool = False
    """Relay the exchange with other regions for members of this region that have little upload. Costs upload."""

    relay: Annotated[str, Form(RELAY_FORM, _relay)] = DEFAULT_RELAY
    """Where others can dial this peer, relay the traffic of peers that nobody can dial, at most at this rate; no: relay none.
    Limits on peers, circuits and a peer's bytes in an hour may follow: 10mbit,peers=256,circuits=512,hourly=8gb."""

    speed_tests: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = PER_HOUR_OF_PEER
    """Tests of bandwidth that others may make against this peer in an hour (legion-ctl doctor), each at most 4 MiB both ways, and
    none while transfers run. 0: none."""

    limits: Limits = Limits()
    """How much of the connection it may use."""

    manners: Manners = Manners()
    """When it may train, and what it may take of the machine."""

    store: Store = Store()
    """Where it keeps checkpoints."""

    status: bool = True
    """Serve the status on this machine, for legion-ctl."""

    dashboard: Annotated[str, Form(_DASHBOARD_FORM, _dashboard)] = "yes"
    """Serve a page for a browser on this machine: yes, no, or the port. Opening it takes the token in its address."""
    metrics: Annotated[str, checked_text(ENDPOINT_FORM, parse_endpoint)] = ""
    """Serve metrics for Prometheus at this address, under /metrics, once the peer is in its run; without a host, on this
    machine only. Empty: they are not served."""

    search_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = DEFAULT_SEARCH_S
    """Seconds to look for the run before giving up. Longer: finds it over slow links, but notices a wrong name later."""

    token: Annotated[str, path_text("a token, or the path of a file with one")] = ""
    """File with the token that admits this peer to a private run, as legion-ctl token make printed it; or the token itself."""

    network_key: Annotated[str, path_text("the path of a file with the key of a network")] = ""
    """File with a key that all peers of a network share, of 64 hexadecimal digits; peers without it get no answer at all. 
    Empty: every peer is answered."""

    on_event: Annotated[Callable[[Any], None] | None, Form("a function that takes an Event", _callback)] = None
    """Called with each `Event`, from joining to leaving, in the peer's own thread: it should return at once."""

    def __post_init__(self) -> None:
        settle(self)
