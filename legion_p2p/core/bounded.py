"""A map that cannot outgrow its limit, for whatever strangers can add to."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedMap(OrderedDict[K, V]):
    """A dict of at most `limit` entries, the oldest first. To set an entry makes it the newest; to read one does not.

    Where there is no room the oldest entry is forgotten. So a peer that invents keys displaces entries, but grows no memory.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: a named constant with its reason, as for everything that a stranger can grow."""
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.limit:
            self.popitem(last=False)

    def touch(self, key: K) -> None:
        """Make an entry the newest, as where reading it should keep it (LRU). Raises: KeyError."""
        self.move_to_end(key)

    def drop_while(self, is_over: Callable[[V], bool]) -> None:
        """Forget the oldest entries as long as `is_over` says so of their values, for example because their time is over."""
        while self and is_over(next(iter(self.values()))):
            self.popitem(last=False)
