"""Members of a run that read one text, each its own part of it: what they have taken goes with their announcements."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.train.batches import Batch
from legion_p2p.train.bridge import PeerAccess


class SharedReader(Protocol):
    """A reader of text by chunks, such as `ChunkedWindows` or `StreamedWindows`. Its methods are called from several threads."""

    def heard(self, peer: PeerId, epoch: int, bitmap: bytes) -> None:
        """What another peer has taken. Raises: DecodeError, if that is not possible for this text."""

    def announcement(self) -> tuple[int, bytes]:
        """The epoch, and what this peer has taken in it."""


class TextReader(SharedReader, Protocol):
    """A reader of text by which `legion-peer` trains."""

    def __next__(self) -> Batch:
        """Raises: StoreError, if the text cannot be read."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with the very next batch."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that `state` was of. Raises: DecodeError."""

    def follow(self, state: dict[str, Any]) -> None:
        """Go on beside the one that `state` was of. Raises: DecodeError."""


Reader = TypeVar("Reader", bound=SharedReader)
Make = Callable[[PeerId, Callable[[], Iterable[PeerId]]], Reader]
"""Makes a reader of this peer's id, and of a function that tells which peers train now."""


def share_text(thread: PeerAccess, engine: ActiveRun, make: Make[Reader]) -> Reader:
    """A reader that hears from now on what other members take. A member that has another text is reported once."""
    living: list[PeerId] = []
    reader = make(engine.me, lambda: living)
    warned: set[str] = set()

    def heard(announcement: Announcement) -> None:
        if announcement.chunks:
            try:
                reader.heard(peer_of(announcement), announcement.epoch, announcement.chunks)
            except DecodeError as bad:
                if announcement.peer_id not in warned:
                    warned.add(announcement.peer_id)
                    engine.events.emit("data.other_text", peer=announcement.peer_id, reason=str(bad))

    def count(_: None = None) -> None:
        living[:] = [peer_of(a) for a in engine.members.roster.everyone() if a.training or a.peer_id == engine.me]

    def begin() -> None:
        engine.members.announcements.add(heard)
        engine.members.roles_changed.add(count)
        count()
        for announcement in engine.members.roster.everyone():
            heard(announcement)

    thread.call(begin)
    return reader
