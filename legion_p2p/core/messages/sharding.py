"""Sharded runs: weights and gradients of units, and how a unit comes to another owner or standby."""

from typing import Annotated, Literal

import msgspec

from legion_p2p.core.messages.base import (
    Busy,
    Count,
    Message,
    Payload,
    PeerName,
    Request,
    RunId,
    ShardIndex,
    Version,
)
from legion_p2p.core.plan import MAX_SHARDS

MAX_STEP_MEMBERS = 1024  # contributions to one step of a unit: a group on one network has some ten members
MAX_UNIT_PARTS = 4  # of a unit on its way to another peer: weights and two moments of at most 32 MiB each, and a count
UnitRole = Literal["owner", "standby", "none"]
UnitPart = Literal["weights", "first", "second"]

_Members = Annotated[tuple[PeerName, ...], msgspec.Meta(max_length=MAX_STEP_MEMBERS)]
_Part = Annotated[int, msgspec.Meta(ge=0, lt=MAX_UNIT_PARTS)]
_Parts = Annotated[int, msgspec.Meta(ge=1, le=MAX_UNIT_PARTS)]


class UnitHeld(Message, frozen=True, tag="unit_held"):
    """What the answering peer holds of a unit now."""

    role: UnitRole
    term: Count
    """How often the unit has changed its owner, as far as this peer knows."""
    version: Version
    """Steps that the weights have made."""
    digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """Of the weights; empty where none are held."""
    standby: PeerName = ""
    """Of an owner: the peer that stands by; empty: none does."""


class UnitElsewhere(Message, frozen=True, tag="unit_elsewhere"):
    """Another member owns the unit, as far as I know; an empty name: I do not know."""

    owner: PeerName
    waits: bool = False
    """I own it myself, and its step still waits for gradients: ask again."""


class UnitWeights(Message, frozen=True, tag="unit_weights"):
    """A unit's weights after `version` steps."""

    version: Version
    payload: Payload
    n_steps: Count = 0
    """Of a moment: steps that it has seen. None, and an empty payload: the optimizer has none yet."""


class PullUnit(Request[UnitWeights | UnitElsewhere | Busy], frozen=True, tag="pull_unit"):
    """Send the weights of a unit with which step `step` is computed. The answer waits until they are there. A peer of
    another region gets what there is, as far as upload slots allow."""

    run: RunId
    unit: ShardIndex
    step: Version
    exact: bool = False
    """As fp32, whatever weights travel in otherwise."""
    part: UnitPart = "weights"
    """A moment instead: what the optimizer remembers."""


class UnitStepped(Message, frozen=True, tag="unit_stepped"):
    """The unit has made the step; `included`: with the gradient of the one that asks."""

    version: Version
    included: bool


class PushGradient(Request[UnitStepped | UnitElsewhere], frozen=True, tag="push_gradient"):
    """A member's gradient of a unit in step `step`. Answered once the unit has made that step; sent again, it counts once."""

    run: RunId
    unit: ShardIndex
    step: Version
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
    """Its weight in the mean."""
    payload: Payload


class ReplicateMove(Request[UnitHeld], frozen=True, tag="replicate_move"):
    """From a unit's owner to its standby: what both are to subtract from the weights with the next step, because the region has
    synced with another one."""

    run: RunId
    unit: ShardIndex
    term: Count
    step: Version
    payload: Payload


class ReplicateStep(Request[UnitHeld], frozen=True, tag="replicate_step"):
    """From a unit's owner to its standby: the mean gradient of a step, to make the same step with."""

    run: RunId
    unit: ShardIndex
    term: Count
    step: Version
    included: _Members
    payload: Payload
    is_moved: bool = False
    """What the ReplicateMove before it brought is subtracted as well."""
    waits: bool = False
    """The step is closed and not made yet: MakeStep says when."""


class MakeStep(Request[UnitHeld], frozen=True, tag="make_step"):
    """From a unit's owner to its standby: make the step whose mean gradient you have, with `factor` times that."""

    run: RunId
    unit: ShardIndex
    term: Count
    step: Version
    factor: Annotated[float, msgspec.Meta(ge=0, le=1)]


class UnitNorms(Message, frozen=True, tag="unit_norms"):
    """The squares of the norms of the units that were asked about, in that order; None: not known here."""

    squares: Annotated[tuple[Annotated[float, msgspec.Meta(ge=0)] | None, ...], msgspec.Meta(max_length=MAX_SHARDS)]


class AskNorms(Request[UnitNorms], frozen=True, tag="ask_norms"):
    """How long are the gradients of these units in this step? Answered once those that the peer owns are closed for it."""

    run: RunId
    step: Version
    units: Annotated[tuple[ShardIndex, ...], msgspec.Meta(max_length=MAX_SHARDS)]


class PutUnit(Request[UnitHeld], frozen=True, tag="put_unit"):
    """A part of all that an owner holds of a unit, for a peer that is to stand by."""

    run: RunId
    unit: ShardIndex
    term: Count
    version: Version
    included: _Members
    part: _Part
    n_parts: _Parts
    payload: Payload


class AppointUnit(Request[UnitHeld], frozen=True, tag="appoint_unit"):
    """From a unit's owner to a peer that holds it: be its owner from now on, its standby, or let go of it."""

    run: RunId
    unit: ShardIndex
    term: Count
    version: Version
    role: UnitRole


class AskUnit(Request[UnitHeld], frozen=True, tag="ask_unit"):
    """What do you hold of this unit?"""

    run: RunId
    unit: ShardIndex
