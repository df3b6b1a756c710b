"""What a peer that represents shards knows of other regions, one state for each shard and pair of regions."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.distance import DistanceGuard
from legion_p2p.core.identity import PeerId
from legion_p2p.core.intervals import Interval
from legion_p2p.core.sync_times import SyncTimes
from legion_p2p.core.wire import SyncReply, SyncRequest
from legion_p2p.tensor.sync_step import Known
from legion_p2p.tensor.travel import Travel

CENTER = ""  # in place of a region's label: the center variable, which no region has; it sorts before all of them
MAX_PAIRS = 8  # other regions that are remembered of each shard, with two tensors each; that of the oldest sync is dropped


@dataclass(frozen=True, eq=False)
class OpenRequest:
    """A sync that was begun here and has no answer yet, and what was known when it began."""

    peer: PeerId
    message: SyncRequest
    known: Known | None
    ours: Tensor
    """The estimate that the other side makes of this side's copy."""
    own: Tensor
    """The copy itself."""
    travelled: float
    version: int


@dataclass(eq=False)
class PairState:
    """What is known here of the other side, for one shard."""

    guard: DistanceGuard
    known: Known | None = None
    digest: bytes = b""
    asked: OpenRequest | None = None
    is_asking: bool = False
    answered: tuple[int, SyncReply] | None = None
    """The number of the last request that was answered, and the answer: a request that comes twice counts once."""
    staleness: int = 0
    """How many intervals between two syncs the last answer took."""
    interval: Interval | None = None

    def forget(self) -> None:
        """The next sync sends the whole shard."""
        self.known, self.digest, self.asked = None, b"", None


class PairStates:
    """All of one peer."""

    def __init__(self, moving_rate: float) -> None:
        self._moving_rate = moving_rate
        self._states: dict[int, BoundedMap[tuple[str, str], PairState]] = {}

    def get(self, shard: int, mine: str, other: str) -> PairState:
        """That of region `mine` towards `other`; a new one where nothing is known."""
        states = self._states.setdefault(shard, BoundedMap(MAX_PAIRS))
        state = states.get((mine, other))
        if state is None:
            state = states[mine, other] = PairState(DistanceGuard(self._moving_rate))
        states.touch((mine, other))
        return state

    def forget_region(self, shard: int) -> None:
        """This peer does not represent its region any more. What it knows as the center's owner stays."""
        self._forget(shard, lambda mine: mine != CENTER)

    def forget_center(self, shard: int) -> None:
        """The center variable of the shard begins again."""
        self._forget(shard, lambda mine: mine == CENTER)

    def clear(self) -> None:
        self._states.clear()

    def _forget(self, shard: int, goes: Callable[[str], bool]) -> None:
        for pair in [pair for pair in self._states.get(shard, ()) if goes(pair[0])]:
            del self._states[shard][pair]


@dataclass(eq=False)
class LastSync:
    """Of one shard: when it last synced, how far it has gone by itself since, and what a relay last brought."""

    times: SyncTimes
    travel: Travel
    relayed: tuple[PeerId, int, int] | None = None
    """From which relay the owner last took a step, its number, and at which version."""
