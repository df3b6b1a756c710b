"""What the network and the services above it say to each other: values only."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import msgspec

from legion_p2p.core.identity import PeerId


class Lane(Enum):
    """Which of a peer's streams carries a request: bulk never delays control."""

    CONTROL = "control"
    BULK = "bulk"


LAST = 1 << 16  # the rank of downloads: before them goes all that has a rank of its own


@dataclass(frozen=True)
class Gift:
    """A reply of which is to be known when it is on its way: most of them can wait, as parts of a download."""

    body: bytes
    sent: Callable[[], None]
    """Called once, when it is written, or never will be."""
    rank: int = LAST


class Contact(msgspec.Struct, frozen=True):
    """A peer and where it may be found: multiaddrs without the trailing /p2p/ part."""

    peer_id: PeerId
    addresses: tuple[str, ...] = ()


class Bandwidth(msgspec.Struct, frozen=True):
    """What this peer's connection carries, in bits per second; None: not measured yet, or not limited."""

    upload_bps: float | None = None
    """Reached lately, all transfers together; the connection may carry more than was asked of it."""
    download_bps: float | None = None
    upload_limit_bps: float | None = None
    """Set by the user or by an emulated link, and in force now."""
    download_limit_bps: float | None = None

    @property
    def known_upload_bps(self) -> float | None:
        """What is to be reckoned with: the lower of the two, where any is known."""
        return min((bps for bps in (self.upload_bps, self.upload_limit_bps) if bps is not None), default=None)


class Traffic(msgspec.Struct, frozen=True):
    """Bytes of request and reply frames since start, headers included."""

    sent_bytes: int = 0
    received_bytes: int = 0
