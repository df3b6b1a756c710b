"""The values that a replay makes (graph_replay.py): states and pushes, how often each is still needed, and who waits for one."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.scenarios.graph import PackLine

ChainKey = tuple[str, int]
"""A region and a shard."""
Waiter = int | ChainKey
"""A peer, by its number, or a chain."""


@dataclass(eq=False)
class MadeState:
    """A state: its values, and how often it is still needed; of the updates that led to it their lengths, and the standings of
    members after them."""

    value: Tensor
    n_uses: int
    norms: tuple[float, ...] = ()
    standings: Mapping[PeerId, int] = field(default_factory=dict)


@dataclass(eq=False)
class MadePush:
    """A push that is to enter states: of a region that was cut in two, perhaps one of each side. `value` None: not finite."""

    line: PackLine
    value: Tensor | None
    n_uses: int


class ReplayedValues:
    """What was made and is still needed, and who can go on because of it."""

    def __init__(self, n_peers: int) -> None:
        self.lively: dict[int, None] = dict.fromkeys(range(n_peers))
        """Peers whose next line may be possible now."""
        self.ready: dict[ChainKey, None] = {}
        """Chains of which that is true."""
        self._states: dict[int, MadeState] = {}
        self._pushes: dict[int, MadePush] = {}
        self._state_uses: Counter[int] = Counter()
        self._push_uses: Counter[int] = Counter()
        self._waiting: dict[tuple[str, int], list[Waiter]] = defaultdict(list)
        """By what they wait for: a state or a push."""

    # while the graph is read

    def needs_states(self, states: Iterable[int]) -> None:
        self._state_uses.update(states)

    def needs_pushes(self, pushes: Iterable[int]) -> None:
        self._push_uses.update(pushes)

    # while it is replayed

    def made(
        self, state: int, value: Tensor, norms: tuple[float, ...] = (), standings: Mapping[PeerId, int] | None = None
    ) -> None:
        """A state is there: it is kept while somebody needs it."""
        if n_uses := self._state_uses[state]:
            self._states[state] = MadeState(value, n_uses, norms, standings or {})
        self._wake("state", state)

    def use(self, state: int, times: int = 1) -> MadeState:
        made = self._states[state]
        made.n_uses -= times
        if made.n_uses <= 0:
            del self._states[state]
        return made

    def pushed(self, line: PackLine, value: Tensor | None) -> None:
        """A push is there. `value` None: it was not finite."""
        if n_uses := self._push_uses[line.push]:
            self._pushes[line.push] = MadePush(line, value, n_uses)
        self._wake("push", line.push)

    def use_push(self, push: int) -> MadePush:
        pushed = self._pushes[push]
        pushed.n_uses -= 1
        if not pushed.n_uses:
            del self._pushes[push]
        return pushed

    def have_states(self, states: Iterable[int], waiter: Waiter | None = None) -> bool:
        """Whether all are there; else `waiter` waits for the first that is not."""
        return self._have("state", self._states, states, waiter)

    def have_pushes(self, pushes: Iterable[int], waiter: Waiter) -> bool:
        """Whether all are there; else `waiter` waits for the first that is not."""
        return self._have("push", self._pushes, pushes, waiter)

    def go_on(self, waiter: Waiter) -> None:
        """Its next line may be possible."""
        if isinstance(waiter, int):
            self.lively[waiter] = None
        else:
            self.ready[waiter] = None

    def _have(self, kind: str, made: Mapping[int, object], numbers: Iterable[int], waiter: Waiter | None) -> bool:
        missing = next((number for number in numbers if number not in made), None)
        if missing is not None and waiter is not None:
            self._waiting[kind, missing].append(waiter)
        return missing is None

    def _wake(self, kind: str, number: int) -> None:
        for waiter in self._waiting.pop((kind, number), ()):
            self.go_on(waiter)
