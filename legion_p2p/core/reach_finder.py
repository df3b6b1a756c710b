"""Finding out how others reach this peer, by what others in other networks saw and did.

UNKNOWN -> PUBLIC when peers of other networks have dialed it, UNKNOWN -> PUNCHABLE or RELAYED when they tried and could not.
Any of them goes back to UNKNOWN when this machine's addresses or its address outside change, and is found out again.

A dial that arrived here is proof, and nobody can fake it. That a dial failed is only a claim: it takes more failures than
successes among the last votes, and each network has one vote, so that one liar, or many in one network, decide nothing where
others can be asked. As long as one network is all that there is, its word counts.

Some routers let in whatever comes from an address that was dialed from inside, from any port of it (address-restricted NATs). So
behind a NAT it proves nothing that a host got through that this peer had dialed from its listening port: such a vote is in doubt,
and counts neither way until a host got through, or failed, that was not dialed so. Peers in doubt dial others from other ports.

The kind of NAT follows from the ports at which several others saw connections from the listening port: one and the same is a
cone, different ones are symmetric. One observer alone shows neither.

Can never happen: PUBLIC without a dial that arrived, or behind a NAT by such in doubt alone; a vote of a peer in this peer's own
network; more than MAX_VOTERS votes.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import NatKind, Reach

WANTED_VOTERS = 3  # networks whose peers are asked to dial back
MAX_VOTERS = 8  # networks whose word is kept; the one that spoke longest ago is forgotten first
MAX_OBSERVERS = 8  # peers whose sight of this one is kept
VOTE_S = 300.0  # how long a vote counts; then that network is asked again
SEEN_S = 90.0  # how long an observation counts: it is repeated every OBSERVE_S
OBSERVE_S = 20.0  # between two questions how this peer is seen: changes show within 30 s, and flows through NATs stay alive
IN_DOUBT = "only peers that this one had dialed before got through, as some routers allow"
ASK_PAUSE_S = 10.0  # between two questions to one peer to dial back


@dataclass
class _Vote:
    dialed: bool
    at: float
    address: str = ""
    """Where it arrived."""
    was_dialed: bool = False
    """This peer had dialed that host from its listening port before."""


@dataclass
class _Sight:
    host: str
    port: int
    at: float
    listening: bool
    """Whether it is of a connection from the port that this peer listens on."""


@dataclass(frozen=True)
class ReachVerdict:
    """What is known now."""

    reach: Reach = Reach.UNKNOWN
    nat: NatKind = NatKind.UNKNOWN
    why: str = "nobody has tried to dial this peer yet"
    proven: tuple[str, ...] = ()
    """Addresses at which dials of others arrived."""


@dataclass
class OwnReachFinder:
    """Takes what was seen, and says what follows."""

    own_hosts: frozenset[str] = frozenset()
    listens: bool = True
    """Whether this peer listens anywhere: else nobody can dial it, and nobody is asked to."""
    _votes: BoundedMap[str, _Vote] = field(default_factory=lambda: BoundedMap(MAX_VOTERS))
    _sights: BoundedMap[PeerId, _Sight] = field(default_factory=lambda: BoundedMap(MAX_OBSERVERS))
    _asked_at: BoundedMap[PeerId, float] = field(default_factory=lambda: BoundedMap(8 * MAX_VOTERS))
    _outside: dict[bool, str] = field(default_factory=dict)  # by whether it is of IPv6
    _has_punched: bool = False
    _is_forwarded: bool = False

    def arrived(self, host: str, address: str, now: float, *, was_dialed: bool = False) -> None:
        """A peer at `host`, in another network, dialed this one, and got through: at `address`, where that is known.

        `was_dialed`: this peer had dialed that host before, from the port that it listens on.
        """
        before = self._votes.get(network_of(host))
        if before is not None and before.dialed:
            address = address or before.address
            was_dialed = was_dialed and (before.was_dialed or now - before.at >= VOTE_S)
        self._votes[network_of(host)] = _Vote(True, now, address, was_dialed)

    def failed(self, host: str, now: float) -> None:
        """A peer at `host` says that it could not dial this one."""
        self._votes[network_of(host)] = _Vote(False, now)

    def seen(self, by: PeerId, host: str, port: int, listening: bool, now: float) -> bool:
        """`by` sees a connection of this peer come from there; True if this peer's address outside has changed."""
        self._sights[by] = _Sight(host, port, now, listening)
        sights = self._of_family(host, now)
        before, most = self._outside.get(_is_v6(host)), _most_seen(sights)
        if most is None or (before is not None and _times(most, sights) <= _times(before, sights)):
            return False
        self._outside[_is_v6(host)] = most
        if before is None:
            return False
        self._votes.clear()
        self._has_punched = self._is_forwarded = False
        for peer in [peer for peer, sight in self._sights.items() if _is_v6(sight.host) == _is_v6(host) and sight.host != most]:
            del self._sights[peer]
        return True

    def punched(self) -> None:
        """A hole was punched: this peer's NAT lets that be."""
        self._has_punched = True

    def moved(self, own_hosts: frozenset[str]) -> bool:
        """This machine has these addresses now; True if they are others than before, which makes all that was found out void."""
        if own_hosts == self.own_hosts:
            return False
        is_first = not self.own_hosts
        self.own_hosts = own_hosts
        if is_first:
            return False
        self._votes.clear()
        self._sights.clear()
        self._outside.clear()
        self._asked_at.clear()
        self._has_punched = self._is_forwarded = False
        return True

    def opened(self) -> None:
        """A router says that it forwards a port now: that others could not dial this peer before means nothing any more."""
        self._is_forwarded = True
        for network in [network for network, vote in self._votes.items() if not vote.dialed]:
            del self._votes[network]
        self._asked_at.clear()

    def to_ask(self, candidates: dict[PeerId, str], now: float) -> tuple[PeerId, ...]:
        """Which of these peers, at these hosts of other networks, should dial back now: one of each network without a vote."""
        if not self.listens:
            return ()
        fresh = {network for network, vote in self._votes.items() if now - vote.at < VOTE_S}
        n_in_doubt = sum(self._is_in_doubt(self._votes[network], now) for network in fresh)
        chosen: list[PeerId] = []
        for peer, host in candidates.items():
            if len(fresh) - n_in_doubt >= WANTED_VOTERS:
                break
            if network_of(host) not in fresh and now - self._asked_at.get(peer, float("-inf")) >= ASK_PAUSE_S:
                fresh.add(network_of(host))
                self._asked_at[peer] = now
                chosen.append(peer)
        return tuple(chosen)

    def outside(self, now: float) -> tuple[str, int] | None:
        """Where others see what comes from the listening port, if that is one place for all: what a hole is punched to."""
        ends = {(sight.host, sight.port) for sight in self._fresh(now) if sight.listening}
        return ends.pop() if len(ends) == 1 else None

    def outside_host(self, now: float) -> str | None:
        """The IP address that most others see this peer at."""
        return _most_seen(self._fresh(now))

    def verdict(self, now: float) -> ReachVerdict:
        """What follows from all of it."""
        recent = [vote for vote in self._votes.values() if now - vote.at < 2 * VOTE_S]
        votes = [vote for vote in recent if not self._is_in_doubt(vote, now)]
        n_dialed = sum(vote.dialed for vote in votes)
        nat = self._nat(now)
        if not self.listens:
            return ReachVerdict(Reach.RELAYED, nat, "this peer listens nowhere")
        if not votes and recent:
            return ReachVerdict(Reach.PUNCHABLE, nat, IN_DOUBT)
        if not votes:
            return ReachVerdict(Reach.UNKNOWN, nat)
        if n_dialed and 2 * n_dialed >= len(votes):
            proven = tuple(dict.fromkeys(vote.address for vote in reversed(votes) if vote.dialed and vote.address))
            return ReachVerdict(Reach.PUBLIC, nat, f"peers of {n_dialed} of {len(votes)} other networks dialed this peer", proven)
        why = f"peers of {len(votes) - n_dialed} of {len(votes)} other networks could not dial this peer"
        if nat is NatKind.SYMMETRIC:
            return ReachVerdict(Reach.RELAYED, nat, f"{why}, and its router shows each of them another port")
        if nat in (NatKind.CONE, NatKind.NONE) or self._has_punched:
            return ReachVerdict(Reach.PUNCHABLE, nat, f"{why}, but its router lets connections be punched")
        return ReachVerdict(Reach.RELAYED, nat, f"{why}, and too few were asked to tell which kind of router stands before it")

    def is_in_doubt(self, now: float) -> bool:
        """Whether some got through only, perhaps, because this peer had dialed them from its listening port."""
        return any(now - vote.at < 2 * VOTE_S and self._is_in_doubt(vote, now) for vote in self._votes.values())

    def _is_in_doubt(self, vote: _Vote, now: float) -> bool:
        has_nat = (outside := self.outside_host(now)) is not None and outside not in self.own_hosts
        return vote.dialed and vote.was_dialed and has_nat and not self._is_forwarded

    def _nat(self, now: float) -> NatKind:
        sights = self._fresh(now)
        if sights and all(sight.host in self.own_hosts for sight in sights):
            return NatKind.NONE
        ends = [(sight.host, sight.port) for sight in sights if sight.listening]
        if len(ends) < 2:
            return NatKind.UNKNOWN
        return NatKind.CONE if len(set(ends)) == 1 else NatKind.SYMMETRIC

    def _fresh(self, now: float) -> list[_Sight]:
        """Those of IPv4, where there are any: it is IPv4 that has NATs."""
        return self._of_family("", now) or self._of_family("::", now)

    def _of_family(self, host: str, now: float) -> list[_Sight]:
        return [s for s in self._sights.values() if now - s.at < SEEN_S and _is_v6(s.host) == _is_v6(host)]


def network_of(host: str) -> str:
    """What one party may well have all of: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    ip = ip_address(host.partition("%")[0])
    return str(ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


def _most_seen(sights: list[_Sight]) -> str | None:
    hosts = [sight.host for sight in sights]
    return max(set(hosts), key=lambda host: (hosts.count(host), host)) if hosts else None


def _times(host: str | None, sights: list[_Sight]) -> int:
    return sum(sight.host == host for sight in sights)


def _is_v6(host: str) -> bool:
    return ":" in host
