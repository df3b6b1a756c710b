"""What goes first, where one upload or one peer's time is not enough for everything."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Priority(IntEnum):
    """Of a request or a reply: the lower value goes first."""

    CONTROL = 0
    """Small and urgent: on a stream of its own, which bulk never delays."""
    ROUND = 1
    """Bulk that others wait for before they can train on: pushes, updates, and what an owner needs to own."""
    CATCH_UP = 2
    """Bulk for a member that is behind: it trains meanwhile."""
    DOWNLOAD = 3
    """Bulk for anybody else: peers that join, and peers that copy checkpoints."""


@dataclass(frozen=True)
class ThrottledReply(Generic[T_co]):
    """A reply that takes an upload slot until it is on its way."""

    reply: T_co
    sent: Callable[[], None]
    """Called once, when the reply is written or never will be."""
    priority: Priority = Priority.DOWNLOAD
