"""What must never happen to a shard, looked for in all updates of a simulation.

| kind | what |
|---|---|
| counted-twice | an update and one of those that it builds on include the same push |
| fork | peers of one region that reach each other held different bytes of one version for longer than HEAL_S |
| lost-version | a version that two peers had, and nobody that is left builds on, although nothing kept the peers apart |
| stuck | a peer has had the same version of a shard while the others made MAX_ROUNDS_BEHIND of them, and HEAL_S passed |
| ended | a peer ended by an error that is no answer to its situation; or a handler of it failed |

It sees the updates that peers take over (`TakenUpdate`) and, at each sample, what the living hold (`Holding`). It decides from
these values alone, so that each kind has a test without a swarm.
"""

from collections.abc import Iterable, Iterator

import msgspec

from legion_p2p.core.identity import PeerId

HEAL_S = 60.0  # a death is noticed after 8 s, a fork after an announcement; the rest is for narrow links
MAX_ROUNDS_BEHIND = 20
MAX_ANCESTORS = 100_000  # updates of a shard that are followed back


class TakenUpdate(msgspec.Struct, frozen=True):
    """An update that a peer has taken over."""

    region: str
    shard: int
    version: int
    base: bytes
    digest: bytes
    included: tuple[tuple[PeerId, int], ...]
    tokens: int = 0


class Holding(msgspec.Struct, frozen=True):
    """What a living peer holds of a shard."""

    peer: str
    region: str
    shard: int
    version: int
    digest: bytes


class Violation(msgspec.Struct, frozen=True):
    """Something that must not happen."""

    kind: str
    text: str
    peers: tuple[str, ...] = ()


State = tuple[int, bytes]
"""Version and digest: a round of changes that are zero leads to the same digest."""


class _Shard:
    """One shard in one region."""

    def __init__(self) -> None:
        self.base: dict[State, State] = {}
        self.holders: dict[State, set[str]] = {}
        self.including: dict[tuple[PeerId, int], list[State]] = {}
        self.forked_since: float | None = None

    def ancestors(self, state: State) -> Iterator[State]:
        """The states that this one builds on, the nearest first, as far as updates lead."""
        for _ in range(MAX_ANCESTORS):
            base = self.base.get(state)
            if base is None:
                return
            yield base
            state = base


class Watch:
    """Finds violations; tells each once."""

    def __init__(self) -> None:
        self.n_updates = 0
        self.n_tokens = 0
        self._shards: dict[tuple[str, int], _Shard] = {}
        self._progress: dict[tuple[str, int], tuple[int, float, int]] = {}
        self._told: set[tuple[object, ...]] = set()
        self._newest: dict[tuple[str, int], int] = {}

    def accepted(self, peer: str, update: TakenUpdate) -> Iterator[Violation]:
        """A peer has taken over an update."""
        shard = self._shards.setdefault((update.region, update.shard), _Shard())
        state = (update.version, update.digest)
        shard.holders.setdefault(state, set()).add(peer)
        if state in shard.base:
            return
        self.n_updates += 1
        self.n_tokens += update.tokens
        shard.base[state] = (update.version - 1, update.base)
        for push in update.included:
            others = shard.including.setdefault(push, [])
            if others:
                twice = set(others) & set(shard.ancestors(state))
                if twice and self._is_new("twice", update.region, update.shard, push):
                    yield Violation(
                        "counted-twice",
                        f"version {update.version} of shard {update.shard} includes push {push[1]} of {push[0]} again",
                        (push[0],),
                    )
            others.append(state)

    def sampled(self, holdings: Iterable[Holding], now: float, undisturbed_s: float) -> Iterator[Violation]:
        """What the living peers hold that no fault keeps apart. `undisturbed_s`: for how long no fault has kept anybody apart."""
        by_shard: dict[tuple[str, int], list[Holding]] = {}
        for holding in holdings:
            by_shard.setdefault((holding.region, holding.shard), []).append(holding)
        for key, held in by_shard.items():
            newest = self._newest[key] = max(self._newest.get(key, 0), *(holding.version for holding in held))
            yield from self._forks(key, held, now, undisturbed_s)
            for holding in held:
                yield from self._stuck(holding, newest, now, undisturbed_s)

    def ended(self, holdings: Iterable[Holding], was_disturbed: bool) -> Iterator[Violation]:
        """The last look, at what is held at the end. No version that two peers had may be lost, unless peers were apart
        meanwhile."""
        if was_disturbed:
            return
        final: dict[tuple[str, int], set[State]] = {}
        for holding in holdings:
            final.setdefault((holding.region, holding.shard), set()).add((holding.version, holding.digest))
        for key, states in final.items():
            shard = self._shards.get(key)
            if shard is None:
                continue
            kept = {older for state in states for older in (state, *shard.ancestors(state))}
            oldest = min((version for version, _ in kept), default=0)
            for state, holders in shard.holders.items():
                version, _ = state
                if len(holders) > 1 and state not in kept and version > oldest:
                    who = tuple(sorted(holders))
                    yield Violation(
                        "lost-version", f"version {version} of shard {key[1]} that {len(who)} peers had is in nobody's chain", who
                    )

    def _forks(self, key: tuple[str, int], held: list[Holding], now: float, undisturbed_s: float) -> Iterator[Violation]:
        shard = self._shards.setdefault(key, _Shard())
        states: dict[int, dict[bytes, list[str]]] = {}
        for holding in held:
            states.setdefault(holding.version, {}).setdefault(holding.digest, []).append(holding.peer)
        forked = {version for version, digests in states.items() if len(digests) > 1}
        # a fork goes on while some version is held in two ways, whichever version that is by now
        if not forked:
            shard.forked_since = None
            return
        if shard.forked_since is None:
            shard.forked_since = now
        since = shard.forked_since
        if min(now - since, undisturbed_s) > HEAL_S and self._is_new("fork", *key):
            version = max(forked)
            sides = sorted(states[version].values(), key=len)
            yield Violation(
                "fork",
                f"version {version} of shard {key[1]} has been held in {len(sides)} ways for {now - since:.0f} s",
                tuple(sides[0]),
            )

    def _stuck(self, holding: Holding, newest: int, now: float, undisturbed_s: float) -> Iterator[Violation]:
        key = (holding.peer, holding.shard)
        version, since, newest_then = self._progress.get(key, (-1, now, newest))
        if version != holding.version:
            self._progress[key] = (holding.version, now, newest)
            return
        behind = newest - max(newest_then, holding.version)
        if behind > MAX_ROUNDS_BEHIND and min(now - since, undisturbed_s) > HEAL_S and self._is_new("stuck", *key):
            yield Violation(
                "stuck",
                f"{holding.peer} has held version {version} of shard {holding.shard} for {now - since:.0f} s, of {newest}",
                (holding.peer,),
            )

    def _is_new(self, *what: object) -> bool:
        is_new = what not in self._told
        self._told.add(what)
        return is_new
