"""How peers find the run, and know of each other."""

from typing import Annotated

import msgspec

from legion_p2p.core.announcement import MAX_ANNOUNCEMENT_BYTES
from legion_p2p.core.known_members import ROW_BYTES
from legion_p2p.core.messages.base import Count, Done, Message, PeerName, Request, RunId
from legion_p2p.core.run import MAX_SPEC_BYTES, RunName

MAX_EXCHANGED = 64  # announcements in one exchange: with small models about 64 KiB
MAX_KNOWN_MEMBERS = 1024  # members that one names as known: those of a region and of the others' summaries, many times over
MAX_RUNS_TOLD = 16  # that one peer tells of: it is in one, and a later version may be in several

SignedBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_ANNOUNCEMENT_BYTES + 200)]
SignedList = Annotated[tuple[SignedBytes, ...], msgspec.Meta(max_length=MAX_EXCHANGED)]


class SpecFound(Message, frozen=True, tag="spec_found"):
    spec: Annotated[bytes, msgspec.Meta(max_length=MAX_SPEC_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


class GetSpec(Request[SpecFound], frozen=True, tag="get_spec"):
    """Which runs of this name or id do you know? Any peer of a run answers, with SpecFound."""

    run: RunId


class RunSummary(msgspec.Struct, frozen=True):
    """A run, as one of its members tells of it to any peer that asks."""

    name: RunName
    id: RunId
    n_members: Count


class RunsFound(Message, frozen=True, tag="runs_found"):
    runs: Annotated[tuple[RunSummary, ...], msgspec.Meta(max_length=MAX_RUNS_TOLD)]


class GetRuns(Request[RunsFound], frozen=True, tag="get_runs"):
    """Which runs are you in? For a peer that does not know what runs there are, or whose user has mistyped a name."""


class Exchanged(Message, frozen=True, tag="exchanged"):
    announcements: SignedList


class Exchange(Request[Exchanged], frozen=True, tag="exchange"):
    """Here are announcements that I know; send me yours. The sender's own comes first."""

    run: RunId
    announcements: SignedList
    known: Annotated[bytes, msgspec.Meta(max_length=MAX_KNOWN_MEMBERS * ROW_BYTES)] = b""
    """What else I have, packed as in `core.known_members`: send only what is newer."""
    region: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """The one whose members I want to know in full; of others I want the envoys."""


class Ping(Request[Done], frozen=True, tag="ping"):
    """Do you live? Answered with Done."""

    run: RunId


class PingFor(Request[Done], frozen=True, tag="ping_for"):
    """Ask `peer` for me whether it lives. Answered with Done if it does, refused if it does not answer."""

    run: RunId
    peer: PeerName


class Accusation(Request[Done], frozen=True, tag="accusation"):
    """`peer`, in this incarnation, seems dead to me. A hint to look, not evidence."""

    run: RunId
    peer: PeerName
    incarnation: Count
