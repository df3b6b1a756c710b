"""Whether a peer takes its share of a run's shards.

    JOINING   -> PRESENT    it holds the whole model
    PRESENT   -> SUSPENDED  it was away, or moves to another region: it catches up before it owns again
    SUSPENDED -> PRESENT    it has caught up
    any       -> LEAVING    it owns nothing from now on, and hands over what it owned
    LEAVING   -> LEFT       it answers no requests about the run any more

Can never happen: a peer that is LEAVING or LEFT becomes PRESENT again; a peer leaves twice.
"""

from enum import Enum


class Stage(Enum):
    JOINING = "joining"
    PRESENT = "present"
    SUSPENDED = "suspended"
    LEAVING = "leaving"
    LEFT = "left"


class Presence:
    """The stage of one peer in one run."""

    def __init__(self) -> None:
        self.stage = Stage.JOINING

    @property
    def ready(self) -> bool:
        """It may own shards."""
        return self.stage is Stage.PRESENT

    @property
    def leaving(self) -> bool:
        """It leaves, or has left."""
        return self.stage in (Stage.LEAVING, Stage.LEFT)

    @property
    def left(self) -> bool:
        return self.stage is Stage.LEFT

    def joined(self) -> None:
        if self.stage is Stage.JOINING:
            self.stage = Stage.PRESENT

    def suspend(self) -> None:
        if self.stage is Stage.PRESENT:
            self.stage = Stage.SUSPENDED

    def resume(self) -> None:
        if self.stage is Stage.SUSPENDED:
            self.stage = Stage.PRESENT

    def leave(self) -> bool:
        """Begin to leave. False, if it was leaving already."""
        if self.leaving:
            return False
        self.stage = Stage.LEAVING
        return True

    def gone(self) -> None:
        """Everything has been handed over."""
        self.stage = Stage.LEFT
