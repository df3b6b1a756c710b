"""What the machine that brings changes to the owner (push.py) is told, and what it asks for."""

from typing import Any

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.life_events import Shared


class Packed(msgspec.Struct, frozen=True, eq=False):
    """A contribution that is compressed, and that no update contains yet."""

    seq: int
    version: int
    """The version that the change was made from."""
    tokens: int
    steps: int
    body: Any
    """What it is compressed to; opaque here."""


class Offered(msgspec.Struct, frozen=True, eq=False):
    """The training side has a change."""

    change: Any
    version: int
    tokens: int
    steps: int
    alone: bool = False
    """Nobody else is in the run, and the change was made from its newest version."""


class CompressDone(msgspec.Struct, frozen=True, eq=False):
    """`Compress` has been carried out."""

    body: Any
    ramp_pushes: int = 0
    """Contributions that count less than their tokens."""


class Unusable(msgspec.Struct, frozen=True):
    """`Compress` or `Rebase` failed: the change is taken back."""

    reason: str


class Rebased(msgspec.Struct, frozen=True):
    """`Rebase` has been carried out."""

    seq: int


class Accepted(msgspec.Struct, frozen=True):
    """`holder` answered that it has the contribution."""

    seq: int
    version: int
    """The newest version, there or here."""
    included: bool = False
    """An update contains it already."""


class Redirected(msgspec.Struct, frozen=True):
    """The peer that was asked says that `owner` owns the shard; None: nobody that could be asked does."""

    seq: int
    owner: PeerId | None


class Unanswered(msgspec.Struct, frozen=True):
    """The request failed. The contribution may have arrived all the same."""

    seq: int


class Malformed(msgspec.Struct, frozen=True):
    """The owner can do nothing with the contribution, or will not, however often it is sent."""

    seq: int
    reason: str


class Excluded(msgspec.Struct, frozen=True):
    """An update says that this peer's contribution could not be used."""

    reason: str


class RoundGivenUp(msgspec.Struct, frozen=True):
    """This peer owns the shard no longer, and has given up the round."""


class Moved(msgspec.Struct, frozen=True):
    """The shard was taken over as another region has it, in this version: what was trained goes to that region's owner."""

    version: int


class Merged(msgspec.Struct, frozen=True):
    """What this peer alone had made, of `tokens`, was replaced, and goes with the next contribution."""

    tokens: int


class Compress(msgspec.Struct, frozen=True, eq=False):
    """Compress the change; then `CompressDone` or `Unusable`."""

    change: Any


class Rebase(msgspec.Struct, frozen=True, eq=False):
    """Make the change the next version, as contribution `seq`; then `Rebased` or `Unusable`."""

    change: Any
    seq: int


class SendPush(msgspec.Struct, frozen=True, eq=False):
    """Ask `target` to take the contribution; then `Accepted`, `Redirected`, `Unanswered` or `Malformed`."""

    target: PeerId
    packed: Packed


class GiveUp(msgspec.Struct, frozen=True):
    """Stop waiting for the answer to this contribution's request: another peer owns the shard now."""

    seq: int


class Enter(msgspec.Struct, frozen=True, eq=False):
    """Put the contribution into this peer's own round; then `Accepted` or `Unanswered`."""

    packed: Packed


class Settle(msgspec.Struct, frozen=True):
    """The training side may offer the next change; `failure`: why this one counts for nothing."""

    failure: str | None = None


class Ask(msgspec.Struct, frozen=True):
    """`peer` has a version that contains the contribution, and that is missing here."""

    peer: PeerId


Event = (
    Shared | Offered | CompressDone | Unusable | Rebased | Accepted | Redirected | Unanswered | Malformed | Excluded
    | RoundGivenUp | Moved | Merged
)  # fmt: skip


Effect = Compress | Rebase | SendPush | GiveUp | Enter | Settle | Ask
