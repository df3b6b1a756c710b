"""What a member does about one update that was promised to it and does not come.

    WAITING  -> ASKING    it is overdue: the parent is asked which version it has, which costs next to nothing
    ASKING   -> WAITING   the parent does not have it yet, so it waits as well, or has it: it is on its way
    ASKING   -> FETCHING  the parent does not answer
    WAITING  -> FETCHING  the parent had it, and did not send it; or it was asked MAX_INQUIRIES times
    FETCHING -> FETCHING  the peer that was asked does not have it either; the next one is its parent, and so on up to the owner

Where a link is full, everything is late, and whoever fetches then makes it fuller. So each wait is twice as long as the one
before, and nobody fetches while the parent is alive and waits itself.

Never happens: an update is fetched from a member that gets it from this one; an owner is asked by all at once, because the one
that it sends to is slow.
"""

import msgspec

from legion_p2p.core.identity import PeerId

MAX_INQUIRIES = 3  # of one update: with waits that double, seven times as long as the first
ANSWER_S = 2.0  # a request that carries nothing is answered sooner, or the peer is as good as gone


class Promise(msgspec.Struct, frozen=True):
    """An update that is on its way."""

    version: int
    until: float
    """When it should be here."""
    parent: PeerId
    """Who sends it."""
    sources: tuple[PeerId, ...]
    """Whom to ask for it instead, one after the other: each has it before the one in front of it."""
    wait_s: float
    """How long it should take to get it from one of them."""


class Inquire(msgspec.Struct, frozen=True):
    """Ask this peer which version it has; then `answered`."""

    peer: PeerId


class FetchFrom(msgspec.Struct, frozen=True):
    """Ask this peer for the update."""

    peer: PeerId
    within_s: float


class Overdue:
    """Of one shard."""

    def __init__(self) -> None:
        self.promise: Promise | None = None
        self._until = 0.0
        self._wait_s = 0.0
        self._n_asked = 0

    def promised(self, promise: Promise) -> None:
        """The newest one counts."""
        self.promise = promise
        self._until, self._wait_s, self._n_asked = promise.until, promise.wait_s, 0

    def failed(self, promise: Promise, now: float) -> None:
        """The parent will not send it: fetch it at once."""
        self.promise = promise
        self._until, self._wait_s, self._n_asked = now, promise.wait_s, MAX_INQUIRIES

    def look(self, version: int, now: float) -> Inquire | FetchFrom | None:
        """What to do now. `version`: the one that is held."""
        promise = self.promise
        if promise is None or version >= promise.version or not promise.sources:
            self.promise = None
            return None
        if now < self._until:
            return None
        if self._n_asked < MAX_INQUIRIES:
            self._n_asked += 1
            self._until = now + ANSWER_S
            return Inquire(promise.parent)
        source, *others = promise.sources
        # One that does not have it either waits for it, too, and passes it on: the next one is not asked at once.
        self._until = now + self._wait_s
        self._wait_s *= 2
        self.promise = msgspec.structs.replace(promise, sources=tuple(others))
        return FetchFrom(source, promise.wait_s)

    def answered(self, peer: PeerId, version: int | None, now: float) -> None:
        """The peer that was asked which version it has has this one; None: it did not answer."""
        promise = self.promise
        if promise is None or peer != promise.parent:
            return
        if version is None:
            self._until, self._n_asked = now, MAX_INQUIRIES
            return
        if version >= promise.version and promise.sources != (peer,):
            self._n_asked = MAX_INQUIRIES
        self._until = now + self._wait_s
        self._wait_s *= 2

    def unreachable(self, now: float) -> None:
        """The last one that was asked for it cannot be reached: the next one is asked at once."""
        self._until = now

    def next_deadline(self) -> float | None:
        """When to `look` again; None: nothing is awaited."""
        return None if self.promise is None else self._until
