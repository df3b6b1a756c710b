"""One way to tell others what happened."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Observers(Generic[T]):
    """Functions that want to hear of each event of one kind, in the order in which they were added.

    A class has one attribute per kind of event, `self.changed: Observers[Changed] = Observers()`, and calls `tell`.
    """

    def __init__(self) -> None:
        self._observers: dict[Callable[[T], object], None] = {}

    def add(self, observer: Callable[[T], object]) -> Callable[[], None]:
        """Call `observer` with each event from now on, until the function that this returns is called."""
        self._observers[observer] = None
        return lambda: self._observers.pop(observer, None) and None

    def tell(self, event: T) -> None:
        """Something happened. What an observer raises reaches the caller, and the observers after it hear nothing."""
        for observer in tuple(self._observers):
            observer(event)
