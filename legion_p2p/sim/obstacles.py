"""What keeps peers of a simulated world apart: partitions of the network, and NATs that let nobody in."""

from collections.abc import Iterable

from legion_p2p.core.identity import PeerId

Wall = tuple[frozenset[PeerId], frozenset[PeerId] | None]
"""Two groups that are apart; None: the first is apart from everybody else."""


class Obstacles:
    """The partitions and NATs of a world."""

    def __init__(self) -> None:
        self.walls: list[Wall] = []
        self._hidden: dict[PeerId, tuple[tuple[PeerId, ...], frozenset[PeerId]]] = {}

    def partition(self, one: Iterable[PeerId], other: Iterable[PeerId] | None = None) -> Wall:
        """Let nothing through between the two groups; None: everybody else, also those that come later."""
        wall = frozenset(one), None if other is None else frozenset(other)
        self.walls.append(wall)
        return wall

    def heal(self, wall: Wall | None = None) -> None:
        """Undo one partition, or all of them."""
        if wall is None:
            self.walls.clear()
        elif wall in self.walls:
            self.walls.remove(wall)

    def is_blocked(self, a: PeerId, b: PeerId) -> bool:
        """Whether a partition separates them."""
        return bool(self.walls) and any(_separates(wall, a, b) for wall in self.walls)

    def hide(self, peer: PeerId, relays: Iterable[PeerId], but_from: Iterable[PeerId]) -> None:
        """Nobody can dial it directly `but_from` these; others can through these relays."""
        self._hidden[peer] = tuple(relays), frozenset(but_from)

    def show(self, peer: PeerId) -> None:
        """Undo `hide`."""
        self._hidden.pop(peer, None)

    def can_dial(self, source: PeerId, target: PeerId) -> bool:
        """Whether a direct connection can be made from one to the other."""
        return target not in self._hidden or source in self._hidden[target][1]

    def relays_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Those through which it can be reached where nobody can dial it."""
        relays, _ = self._hidden.get(peer, ((), frozenset()))
        return relays


def _separates(wall: Wall, a: PeerId, b: PeerId) -> bool:
    one, other = wall
    if other is None:
        return (a in one) != (b in one)
    return (a in one and b in other) or (b in one and a in other)
