"""What a user asks of a running peer, and what follows from it for its training.

    TRAIN         -> PAUSE   the user pauses, for a time or until they resume; or a condition of theirs does not hold
    PAUSE         -> TRAIN   they resume, or the time is over; and every condition holds
    TRAIN, PAUSE  -> FINISH  train no more, bring in what was trained, then leave
    not LEAVE     -> LEAVE   leave at once

Can never happen: a peer that finishes or leaves trains again; a peer pauses without a reason that can be shown.
"""

from enum import Enum
from typing import Annotated

import msgspec

from legion_p2p.core.units import parse_rate, parse_share
from legion_p2p.errors import DecodeError, UsageError

MAX_COMMAND_BYTES = 4096  # the longest one has three short texts
MAX_PAUSE_S = 366 * 86400.0  # longer is a typing error; without a time a pause has no end anyway
MAX_LIMIT_CHARS = 32
NO_LIMIT = "none"
MAX_CPU_FORM = "a percentage from 1% to 100%, such as 50%"

_Limit = Annotated[str, msgspec.Meta(max_length=MAX_LIMIT_CHARS)]


class Pause(msgspec.Struct, frozen=True, tag="pause", omit_defaults=True):
    """Pause training for this many seconds, or until `Resume`."""

    for_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_PAUSE_S)] | None = None


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Train again."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Bring in what was trained, then leave."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Leave in order, at once."""


class SetLimits(msgspec.Struct, frozen=True, tag="limits", omit_defaults=True):
    """Other limits from now on. None leaves one as it is, NO_LIMIT takes it away."""

    upload: _Limit | None = None
    """Bits per second, such as 5mbit."""
    download: _Limit | None = None
    max_cpu: _Limit | None = None
    """Share of this machine's processors, such as 50%."""

    def check(self) -> None:
        """Raises: UsageError, naming the allowed form."""
        for rate in (self.upload, self.download):
            if rate is not None and rate != NO_LIMIT:
                parse_rate(rate)
        if self.max_cpu is not None and self.max_cpu != NO_LIMIT:
            parse_cpu(self.max_cpu)
        if self.upload is None and self.download is None and self.max_cpu is None:
            raise UsageError("no limit is named: give upload, download or max_cpu")


Command = Pause | Resume | Finish | Leave | SetLimits

_decoder = msgspec.json.Decoder(Command)
_encoder = msgspec.json.Encoder()


def encode_command(command: Command) -> bytes:
    return _encoder.encode(command)


def decode_command(data: bytes) -> Command:
    """A command that came from outside this process. Raises: DecodeError; UsageError, where a limit has no allowed form."""
    if len(data) > MAX_COMMAND_BYTES:
        raise DecodeError(f"command of {len(data)} bytes, at most {MAX_COMMAND_BYTES}")
    try:
        command: Command = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise DecodeError(f"command: {bad}") from bad
    if isinstance(command, SetLimits):
        command.check()
    return command


def parse_cpu(text: str) -> float:
    """A share of the processors: 0.5 for 50%. Raises: UsageError, naming the allowed form."""
    share = parse_share(text)
    if not 0.01 <= share <= 1:
        raise UsageError(f"share of the CPU {text!r}: allowed is {MAX_CPU_FORM}")
    return share


class Wish(Enum):
    """What the training side is to do now."""

    TRAIN = "train"
    PAUSE = "pause"
    FINISH = "finish"
    LEAVE = "leave"

    @property
    def ends(self) -> bool:
        """Nothing is trained any more."""
        return self in (Wish.FINISH, Wish.LEAVE)


BY_USER = "by you"


class TrainingControl:
    """What one peer is to do, by its user's commands and conditions."""

    def __init__(self) -> None:
        self.wish = Wish.TRAIN
        self.reasons: tuple[str, ...] = ()
        """Why it pauses, in words for its user."""
        self._is_paused = False
        self._until: float | None = None
        self._conditions: tuple[str, ...] = ()

    def handle(self, command: Pause | Resume | Finish | Leave, now: float) -> None:
        """The user says this."""
        match command:
            case Pause(for_s):
                self._is_paused, self._until = True, None if for_s is None else now + for_s
            case Resume():
                self._is_paused, self._until = False, None
            case Finish() if self.wish is not Wish.LEAVE:
                self.wish = Wish.FINISH
            case Leave():
                self.wish = Wish.LEAVE
        self._decide()

    def hold(self, conditions: tuple[str, ...]) -> None:
        """These conditions of the user's do not hold now, in words; empty: all hold."""
        self._conditions = conditions
        self._decide()

    def handle_timeout(self, now: float) -> None:
        if self._until is not None and now >= self._until:
            self._is_paused, self._until = False, None
            self._decide()

    def next_deadline(self) -> float | None:
        return self._until

    def remaining_s(self, now: float) -> float | None:
        """How long the user's pause still lasts; None: there is none, or it has no end."""
        return None if self._until is None else max(0.0, self._until - now)

    def _decide(self) -> None:
        if self.wish.ends:
            self.reasons = ()
            return
        self.reasons = ((BY_USER,) if self._is_paused else ()) + self._conditions
        self.wish = Wish.PAUSE if self.reasons else Wish.TRAIN
