"""What the network and the services above it say to each other: values only."""

from collections.abc import Awaitable, Callable

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.spliced import Bytes

Handler = Callable[[PeerId, bytes], Awaitable[Bytes | ThrottledReply[Bytes]]]
"""Answers a request: (the peer that asks, the request's body) -> the reply's body.

Plain bytes are sent with the priority of rounds, a ThrottledReply with its own. A LegionError that the handler raises reaches the
asker as RefusedError, with its class name as `kind` and its text. Anything else reaches the asker as RefusedError of kind
"InternalError", and this side's log; the host lives on.
"""


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
