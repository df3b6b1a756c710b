"""A member's own change of a shard, on its way to the peer that owns the shard.

    IDLE     nothing to bring
    PACKING  a change is being compressed; alone in the run, it becomes the next version instead
    PACKED   no other peer has it: it is sent when its time has come
    SENT     a request with it is on its way to `holder`
    HELD     `holder` has it and will put it into an update

    IDLE    -> PACKING   a change is offered
    PACKING -> PACKED    it is compressed
            -> IDLE      it became a version, or is of no use
    PACKED  -> SENT      its time has come, and another peer owns the shard
            -> HELD      this peer owns the shard itself
    SENT    -> HELD      the owner accepted it
            -> PACKED    another peer owns the shard, no answer came, or the request was given up with its target's ownership
    HELD    -> PACKED    the holder is gone, is no longer the owner, made RESEND_AFTER_VERSIONS versions without it, or is silent
    PACKED, SENT, HELD -> IDLE   an update contains it, an update says that it failed, or the owner found it malformed

Never happens: a contribution is settled twice; two contributions have one number; a second one is packed before the first is
settled; an answer to an earlier contribution changes the present one.
"""

from collections import deque
from enum import Enum

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import ramped_weight
from legion_p2p.core.shard.life_events import Advanced, Gone, Owners, TakenBack
from legion_p2p.core.shard.push_events import (
    Accepted,
    Ask,
    Compress,
    CompressDone,
    Effect,
    Enter,
    Event,
    Excluded,
    GiveUp,
    Malformed,
    Merged,
    Moved,
    Offered,
    Packed,
    Rebase,
    Rebased,
    Redirected,
    RoundGivenUp,
    SendPush,
    Settle,
    Unanswered,
    Unusable,
)

RETRY_S = 1.0  # between attempts to reach an owner that does not answer; its death is decided by membership
REDIRECT_S = 0.05  # until the peer that we were directed to is asked
MAX_REDIRECTS = 8  # in quick succession: two peers that name each other are asked once in RETRY_S after that
RESEND_AFTER_S = 10.0  # an owner that stopped being one for a moment forgot what it held; sent again, it counts once
RESEND_REDIRECTED_S = 2.0  # one that is none by our own view, but said to be by others: it may stop being one at any moment
RESEND_AFTER_VERSIONS = 3  # an owner that made this many versions without our push has lost it


class PushState(Enum):
    IDLE = "idle"
    PACKING = "packing"
    PACKED = "packed"
    SENT = "sent"
    HELD = "held"


# events


# effects


class PushQueue:
    """The contributions of one peer to one shard."""

    def __init__(self, me: PeerId, version: int = 0, newest: int = -1) -> None:
        """`newest`: the number of the newest contribution of this peer that the shard contains."""
        self.state = PushState.IDLE
        self.packed: Packed | None = None
        self.holder: PeerId | None = None
        """The peer that has it, or is being asked to take it."""
        self.next_seq = newest + 1
        self.n_packed = 0
        self.extra_tokens = 0
        """Weight, beside its own, of the next contribution: of what was taken over from a chain that was given up."""
        self._me = me
        self._owner: PeerId | None = None
        self._redirect: PeerId | None = None
        """The owner, according to a peer that was asked."""
        self._version = version
        self._held_at = 0
        self._not_before = 0.0
        self._n_sent = 0
        self._packing: Offered | None = None
        self._waiting: Offered | None = None
        self._effects: deque[Effect] = deque()

    @property
    def is_idle(self) -> bool:
        """Nothing is being packed or on its way."""
        return self.state is PushState.IDLE

    @property
    def is_undelivered(self) -> bool:
        """Another peer owns the shard, and does not have the contribution yet."""
        if self._owner in (None, self._me) or self.is_idle:
            return False
        return self.state is not PushState.HELD or self.holder == self._me

    def handle(self, event: Event, now: float) -> None:
        """Take in what happened."""
        match event:
            case Offered():
                self._waiting = event
                self._next(event.alone)
            case CompressDone():
                self._compressed(event, now)
            case Unusable(reason):
                if self.state is PushState.PACKING:
                    self._settle(reason)
            case Rebased(seq):
                if self.state is PushState.PACKING:
                    self.next_seq = max(self.next_seq, seq + 1)
                    self._settle(None)
            case Owners(owners):
                self._owner = owners.owner
                self._check_holder(now)
            case Accepted():
                if self._is_answer(event.seq):
                    self._accepted(event, now)
            case Redirected(seq, owner):
                if self._is_answer(seq):
                    self._redirected(owner, now)
            case Unanswered(seq):
                if self._is_answer(seq):
                    self._wait(now + RETRY_S)
            case Malformed(seq, reason):
                if self._is_answer(seq):
                    self._settle(reason)
            case Advanced(version, newest):
                self._advanced(version, newest, now)
            case TakenBack(version):
                self._taken_back(version)
            case Excluded(reason):
                if self.packed is not None:
                    self._settle(reason)
            case Gone(peer):
                if self.holder == peer and (self.state is PushState.HELD or self._redirect == peer):
                    self._withdraw(now)
            case RoundGivenUp():
                if self.state is PushState.HELD and self.holder == self._me:
                    self._withdraw(now)
            case Moved(version):
                if self.packed is not None:
                    self.packed = msgspec.structs.replace(self.packed, version=version)
                    if self.state is PushState.HELD:
                        self._withdraw(now)
            case Merged(tokens):
                self.extra_tokens = tokens

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        if self.state is PushState.HELD and now >= self._not_before:
            self._withdraw(now)
        if self.state is PushState.PACKED and now >= self._not_before:
            self._send(now)

    def poll(self) -> Effect | None:
        """The next thing to do, in order; None when there is nothing."""
        return self._effects.popleft() if self._effects else None

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None while only an event changes anything."""
        return self._not_before if self.state in (PushState.PACKED, PushState.HELD) else None

    # inner steps

    def _next(self, alone: bool = False) -> None:
        """Begin with the change that waits, if nothing else is under way."""
        if self._waiting is None or not self.is_idle:
            return
        self.state = PushState.PACKING
        self._packing, self._waiting = self._waiting, None
        change = self._packing.change
        self._effects.append(Rebase(change, self.next_seq) if alone else Compress(change))

    def _compressed(self, event: CompressDone, now: float) -> None:
        change, self._packing = self._packing, None
        if change is None:
            return
        tokens = change.tokens + min(self.extra_tokens, change.tokens)
        tokens = ramped_weight(tokens, self.n_packed, event.ramp_pushes)
        self.packed = Packed(self.next_seq, change.version, tokens, change.steps, event.body)
        self.next_seq += 1
        self.n_packed += 1
        self.extra_tokens = 0
        self._n_sent = 0
        self._wait(now)

    def _send(self, now: float) -> None:
        target = self._redirect or self._owner
        if target is None or self.packed is None:
            self._wait(now + RETRY_S)
            return
        self.holder = target
        self.state = PushState.SENT
        if target == self._me:
            self._effects.append(Enter(self.packed))
            return
        self._n_sent += 1
        self._effects.append(SendPush(target, self.packed))

    def _accepted(self, event: Accepted, now: float) -> None:
        self.state = PushState.HELD
        self._held_at = max(event.version, self._version)
        is_redirected = self.holder != self._owner
        self._redirect = self.holder if is_redirected else None
        self._not_before = now + (RESEND_REDIRECTED_S if is_redirected else RESEND_AFTER_S)
        if event.included and self.holder is not None:
            self._effects.append(Ask(self.holder))

    def _redirected(self, owner: PeerId | None, now: float) -> None:
        is_news = owner not in (None, self._me, self.holder)
        self._wait(now + (REDIRECT_S if is_news and self._n_sent < MAX_REDIRECTS else RETRY_S))
        self._redirect = owner if is_news else None

    def _advanced(self, version: int, newest: int, now: float) -> None:
        self._version = version
        self.next_seq = max(self.next_seq, newest + 1)
        if self.packed is None:
            return
        if newest >= self.packed.seq:
            self._settle(None)
        elif self.state is PushState.HELD and version >= self._held_at + RESEND_AFTER_VERSIONS:
            self._withdraw(now)

    def _taken_back(self, version: int) -> None:
        """What was trained from later versions counts as trained from this one, which its owner knows."""
        self._version = version
        self._held_at = min(self._held_at, version)
        if self.packed is not None and self.packed.version > version:
            self.packed = msgspec.structs.replace(self.packed, version=version)

    def _check_holder(self, now: float) -> None:
        """Ownership changed: a peer that owns nothing any more must not hold the contribution, nor hold us up."""
        if self.holder in (self._owner, self._redirect):
            return
        if self.state is PushState.HELD:
            self._withdraw(now)
        elif self.state is PushState.SENT and self.packed is not None and self.holder != self._me:
            self._effects.append(GiveUp(self.packed.seq))
            self._wait(now + RETRY_S)

    def _withdraw(self, now: float) -> None:
        """The holder counts no longer: begin again, with the owner by this peer's own view."""
        if self.state is PushState.SENT and self.packed is not None:
            self._effects.append(GiveUp(self.packed.seq))
        self._wait(now)

    def _wait(self, until: float) -> None:
        self.state = PushState.PACKED
        self.holder = self._redirect = None
        self._not_before = until

    def _is_answer(self, seq: int) -> bool:
        return self.state is PushState.SENT and self.packed is not None and self.packed.seq == seq

    def _settle(self, failure: str | None) -> None:
        self.state = PushState.IDLE
        self._packing = self.packed = self.holder = self._redirect = None
        self._effects.append(Settle(failure))
        self._next()
