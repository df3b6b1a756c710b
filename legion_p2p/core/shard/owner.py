"""A shard at the peer that owns it: taking it over, collecting a round, telling the members what came of it.

    NOT_OWNER  another peer owns the shard, or nobody
    CLAIMING   it is ours by the members that we know; what the owner before us made last is being fetched
    OWNER      a round is open
    RELEASING  it is not ours any more: what only an owner has is being handed over

    NOT_OWNER -> CLAIMING   rendezvous names this peer
    CLAIMING  -> OWNER      that is done, and rendezvous still names this peer; -> NOT_OWNER, it names another one
    OWNER     -> RELEASING  rendezvous names another peer, or nobody
    RELEASING -> NOT_OWNER  handed over, or failed (handover.py)

Never happens: a round is open while another state than OWNER holds; a round closes while a newer version is being fetched; two
updates of one version are sent; more than MAX_UPDATES_IN_FLIGHT updates are on their way to one member.

A peer may send updates of other owners as well, which it passes on (core/forwarding): to whom is decided here too.
"""

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from random import Random

import msgspec

from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import Closed, Contribution, Pace, RoundConfig, ShardRound, Verdict
from legion_p2p.core.shard.life_events import Advanced, Owners, Shared, TakenBack
from legion_p2p.core.wire import MAX_REASON_CHARS

MAX_UPDATES_IN_FLIGHT = 8  # to one member and shard; a member that is further behind fetches by itself
MAX_SURVIVORS = 16  # members that are asked for what a dead owner published last
MAX_AHEAD = 4  # of them, that say they have it: they get the time that sending it takes


class OwnerState(Enum):
    NOT_OWNER = "not the owner"
    CLAIMING = "claiming"
    OWNER = "owner"
    RELEASING = "releasing"


# events


class Expected(msgspec.Struct, frozen=True):
    """These members are training now."""

    members: tuple[PeerId, ...]


class Claimed(msgspec.Struct, frozen=True):
    """`Claim` has been carried out."""


class Released(msgspec.Struct, frozen=True):
    """`Release` has been carried out."""


class Delivered(msgspec.Struct, frozen=True):
    """An update has arrived at `peer`, or never will; `holds`: the version that it has now, as far as known."""

    peer: PeerId
    holds: int | None = None


class Served(msgspec.Struct, frozen=True):
    """`peer` has fetched everything up to this version."""

    peer: PeerId
    holds: int


# effects


class Claim(msgspec.Struct, frozen=True):
    """Fetch what the owner before us made last; then `Claimed`."""


class Release(msgspec.Struct, frozen=True):
    """Give up the round, and hand over what only an owner has; then `Released`."""


class Close(msgspec.Struct, frozen=True):
    """Combine what the round has collected: call `close`."""


class SendUpdate(msgspec.Struct, frozen=True):
    """Send the update of this version to `peer`; then `Delivered`."""

    peer: PeerId
    version: int
    goes_first: bool


Event = Shared | Expected | Claimed | Released | Delivered | Served
Effect = Claim | Release | Close


class Owner:
    """What one peer does as the owner of a shard."""

    def __init__(self, me: PeerId, chain: Chain, config: RoundConfig) -> None:
        self.state = OwnerState.NOT_OWNER
        self.round: ShardRound | None = None
        """The open one, while this peer owns the shard."""
        self.owned_from = 0
        """The version at which this peer began to own the shard."""
        self.made_tokens = 0
        """Tokens in the versions that this peer itself made since it last followed another's."""
        self._me = me
        self._chain = chain
        self._config = config
        self.pace = Pace(config)
        """Of the shard's versions, whoever makes them."""
        self._owners = Ownership(None, None)
        self._expected: tuple[PeerId, ...] = ()
        self._held: dict[PeerId, int] = {}
        """The version that a member had, the last time that this peer heard of it."""
        self._in_flight: Counter[PeerId] = Counter()
        self._sent = -1
        self._is_due = False
        self._asked_for: Effect | None = None
        self._given_up: tuple[Contribution, ...] = ()
        """What waited in the round that was given up, while no version has come since."""

    @property
    def has_to_change(self) -> bool:
        """The next effect takes the shard over, or gives it up."""
        return self._asked_for is not None

    def handle(self, event: Event, now: float) -> None:
        """Take in what happened."""
        match event:
            case Owners(owners):
                self._owners = owners
                self._settle()
            case Expected(members):
                self._expected = members
                if self.round is not None:
                    self.round.expect(members, now)
            case Claimed():
                self._claimed(now)
            case Released():
                self.state = OwnerState.NOT_OWNER
                self._settle()
            case Advanced(version, _, included, followed):
                self._sent = min(self._sent, version + MAX_UPDATES_IN_FLIGHT)
                if self.round is not None:
                    self.round.advanced(version, included)
                self._given_up = ()
                if followed:
                    self.made_tokens = 0
                    self.pace.closed((), now)
            case TakenBack(version):
                self._sent = min(self._sent, version)
                self._given_up = ()
                if self.round is not None:
                    self._open_round(self.round.waiting, now)
            case Delivered(peer, holds):
                self._in_flight[peer] -= 1
                if self._in_flight[peer] <= 0:
                    del self._in_flight[peer]
                if holds is not None:
                    self._held[peer] = holds
            case Served(peer, holds):
                if self.round is not None:
                    self._held[peer] = holds
        self.handle_timeout(now)

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        self._is_due = self.round is not None and self.round.ready(now)

    def poll(self) -> Effect | None:
        """What to do next; one thing at a time. `Close` may be asked for again until it is done."""
        if self._asked_for is not None:
            asked, self._asked_for = self._asked_for, None
            return asked
        return Close() if self.state is OwnerState.OWNER and self._is_due else None

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None while only an event changes anything."""
        return None if self.round is None else self.round.next_deadline()

    # what is asked while it owns

    def push(self, contribution: Contribution, now: float) -> Verdict | None:
        """A contribution arrived; None: this peer does not own the shard."""
        if self.round is None:
            return None
        verdict = self.round.push(contribution, now)
        self.handle_timeout(now)
        return verdict

    def close(self, now: float) -> Closed | None:
        """End the round, if it still should end; `Advanced` opens the next one."""
        if self.round is None or not self.round.ready(now):
            return None
        closed = self.round.close(now)
        self.handle_timeout(now)
        return closed

    def refused(self, peer: PeerId, reason: str) -> None:
        """A contribution of the round that was closed last was not usable, and there is no update that says so."""
        if self.round is not None:
            self.round.refused(peer, reason[:MAX_REASON_CHARS])

    def has_sent(self, version: int) -> bool:
        """`publish` was asked about this version, or a later one."""
        return version <= self._sent

    def publish(
        self, version: int, members: Sequence[PeerId], receivers: Sequence[PeerId] | None = None
    ) -> tuple[SendUpdate, ...]:
        """Whom to send the update that makes this version, as its owner or because it is passed on; nobody, if that was asked
        before. `members`: all that should have it. `receivers`: those of them that this peer should send it to; None: all."""
        if self.has_sent(version):
            return ()
        self._sent = version
        self._held = {peer: self._held[peer] for peer in members if peer in self._held}
        return self.send_also(version, members, members if receivers is None else receivers)

    def send_also(self, version: int, members: Sequence[PeerId], receivers: Sequence[PeerId]) -> tuple[SendUpdate, ...]:
        """The same, for receivers of a peer that does not pass it on. A member that keeps up, or that the others wait for, is
        sent it; the rest fetches."""
        first = self._chain.first(members)
        sends = []
        for peer in receivers:
            goes_first = peer in first
            if peer == self._me or self._in_flight[peer] >= (MAX_UPDATES_IN_FLIGHT if goes_first else 1):
                continue
            if goes_first or self._held.get(peer, version) >= version - 1:
                self._in_flight[peer] += 1
                sends.append(SendUpdate(peer, version, goes_first))
        return tuple(sends)

    def release(self) -> bool:
        """Give up the round; False if there is none. Its members push again, to the next owner."""
        if self.round is None:
            return False
        self._given_up = self.round.waiting
        self.round, self._is_due = None, False
        self.state, self._asked_for = OwnerState.RELEASING, None
        return True

    def still_holds(self) -> frozenset[PeerId]:
        """The members of which a contribution waits, or would if this peer owned the shard again, in this version."""
        return frozenset(c.peer for c in (self._given_up if self.round is None else self.round.waiting))

    # inner steps

    def _settle(self) -> None:
        is_ours = self._owners.owner == self._me
        if self.state is OwnerState.NOT_OWNER and is_ours:
            self.state, self._asked_for = OwnerState.CLAIMING, Claim()
        elif self.state is OwnerState.OWNER and not is_ours:
            self.state, self._asked_for = OwnerState.RELEASING, Release()

    def _claimed(self, now: float) -> None:
        if self._owners.owner != self._me:
            self.state = OwnerState.NOT_OWNER
            return
        self.state = OwnerState.OWNER
        self.owned_from = self._chain.version
        self._sent = self._chain.version
        self._open_round(self._given_up, now)  # what it signed receipts for is not lost by owning nothing for a moment
        self._given_up = ()

    def _open_round(self, contributions: Sequence[Contribution], now: float) -> None:
        newest = {PeerId(i.peer): i.seq for i in self._chain.included()}
        self.round = ShardRound(self._config, self._chain.version, newest, self.pace)
        for contribution in contributions:
            self.round.push(contribution, now)
        self.round.expect(self._expected, now)


def survivors_to_ask(ahead: Sequence[PeerId], rest: Sequence[PeerId], rng: Random) -> tuple[list[PeerId], list[PeerId]]:
    """The members to ask for the last update of a dead owner: some of the members that announce it, and some of the rest, which
    may have it without having said so yet."""
    chosen = rng.sample(ahead, min(MAX_AHEAD, len(ahead)))
    return chosen, rng.sample(rest, min(MAX_SURVIVORS - len(chosen), len(rest)))
