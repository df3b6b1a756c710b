"""Every exception that legion_p2p raises on purpose.

The class tells what is to blame and what to do; the message tells what was seen and what is allowed.
`except LegionError` catches all of them and nothing else.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HOW_TO_CREATE = "to create it: --new-run on the command line, NewRun(...) in Python"
MAX_NAMES_TOLD = 10  # of runs or peers, in one message
HOW_TO_BE_REACHED = "a member needs an address that others can dial (a forwarded port, with --announce), or a relay that answers"
_NOBODY: Mapping[str, str] = {}


def short_name(kind: "type[LegionError]") -> str:
    """How an error is called where there is little room, and on the page of errors: `unknown-run` for UnknownRunError."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__.removesuffix("Error")).lower()


def describe_failure(failure: BaseException) -> str:
    """One line: the message of an error that was raised on purpose, else with the kind of exception and where it came from."""
    text = " ".join(str(failure).split())
    if isinstance(failure, LegionError):
        return text
    frame = failure.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else f" ({frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno})"
    return f"{type(failure).__name__}: {text}{where}"


class LegionError(Exception):
    """The base of all of them."""

    def __reduce__(self) -> tuple[Any, ...]:
        # what Exception does, calling the class with its message, fails for classes that take fields instead
        return _copy, (type(self), self.args, vars(self))


def _copy(kind: type[LegionError], args: tuple[Any, ...], fields: dict[str, Any]) -> LegionError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(fields)
    return error


class UsageError(LegionError):
    """The caller asked for something that cannot be. Change the argument that the message names."""


class ConfigError(UsageError):
    """A value from a flag, a file or an environment variable is not allowed. The message names where it came from."""


class JoinError(LegionError):
    """This peer could not join. The network, the given addresses or the run's name are to blame, not the caller's code."""


class NoContactError(JoinError):
    """None of the given addresses answered. Check that one of those nodes runs and can be reached from here.

    `reasons` tells for each address why, `advice` what would help.
    """

    def __init__(self, reasons: Mapping[str, str], advice: Sequence[str] = ()) -> None:
        self.reasons = dict(reasons)
        self.advice = tuple(advice)
        tried = "; ".join(f"{address}: {reason}" for address, reason in self.reasons.items())
        super().__init__("; ".join((f"none of {len(self.reasons)} initial peers answered ({tried})", *self.advice)))


class UnknownRunError(JoinError):
    """No peer that can be reached knows a run of this name. Create it, or correct the name. `known` are the names of others;
    `losses` says which checkpoints of it are stored here without some of their blocks, and what to do. `unreachable` are peers
    that are said to be in it and cannot be reached from here, with the addresses that were tried and why each failed.
    """

    def __init__(
        self, run: str, n_contacts: int, known: Sequence[str] = (), losses: str = "", unreachable: Mapping[str, str] = _NOBODY
    ) -> None:
        self.run = run
        self.unreachable = dict(unreachable)
        self.n_contacts = n_contacts
        self.known = tuple(known)
        there = f"; known here: {', '.join(known[:MAX_NAMES_TOLD])}{', ...' * (len(known) > MAX_NAMES_TOLD)}" if known else ""
        named = f"a run named {run!r} ({n_contacts} contacts asked)"
        if not unreachable:
            super().__init__(f"no peer knows {named}{there}; {losses or HOW_TO_CREATE}")
            return
        tried = "; ".join(f"{peer} ({reason})" for peer, reason in list(self.unreachable.items())[:MAX_NAMES_TOLD])
        is_one = len(self.unreachable) == 1
        said = f"{len(self.unreachable)} peer{' is' if is_one else 's are'} said to be in it, and cannot be reached from here"
        super().__init__(
            f"no peer that can be reached knows {named}{there}; {said}: {tried}; {HOW_TO_BE_REACHED}; {losses or HOW_TO_CREATE}"
        )


class AmbiguousRunError(JoinError):
    """Several runs carry this name. Give the id of the one that is meant, or its creator; `creators` has both."""

    def __init__(self, run: str, creators: Mapping[str, str]) -> None:
        """`creators`: by the ids of the runs."""
        self.run = run
        self.creators = dict(creators)
        self.run_ids = tuple(self.creators)
        listed = ", ".join(f"{run_id} of {creator}" for run_id, creator in self.creators.items())
        super().__init__(f"{len(self.creators)} runs are named {run!r}: give the id of one, or {run}@CREATOR; they are {listed}")


class RunExistsError(JoinError):
    """A run of this name exists already, so it cannot be created. Join it, or choose another name."""


class IncompatibleModelError(LegionError):
    """This peer does not fit the run: its model differs from the run's. Build the model that the run describes."""


class TooLargeError(LegionError):
    """Training took more memory than this machine or its GPU has. The peer left in order; the message says what takes less."""


class MissingDataError(UsageError):
    """The run trains on prepared data that this peer does not have. Fetch it from other members; `dataset` is its id.

    `creator`: of a private run, whose members give it only to peers that the run admits.
    """

    def __init__(self, run: str, dataset: str, creator: str = "") -> None:
        self.run = run
        self.dataset = dataset
        self.creator = creator
        private = f" --run {run} --identity KEY" if creator else ""
        super().__init__(
            f"run {run!r} trains on the prepared data {dataset}, which is not here: legion-ctl data fetch {dataset} --out FOLDER "
            f"--initial-peers ADDR{private} fetches it; then give the folder with --data"
        )


class NetworkError(LegionError):
    """Something between two peers failed. Trying again later may help."""


class UnreachableError(NetworkError):
    """A peer did not answer. It may be gone, or merely slow; its liveness is decided elsewhere."""

    def __init__(self, peer_id: str, reason: str) -> None:
        self.peer_id = peer_id
        self.reason = reason
        super().__init__(f"{peer_id} cannot be reached: {reason}")


class TooLongError(NetworkError):
    """An owner's update is far longer than those before it, so it is not followed. Its owner may lack the newest ones, or lie."""


class NotCosignedError(NetworkError):
    """An update that no other member has computed again and signed, in a run that asks for it. It is not applied; its owner may
    see other members than this peer does, or lie."""


class NotCountedError(NetworkError):
    """An owner does not take this peer's pushes, because this peer is proven to have lied as an owner. That ends after a day. If
    it lost its newest versions in a power failure, nothing else is wrong."""


class NoAnswerError(NetworkError):
    """A peer did not answer within the time that the caller gave it. It may be busy, stopped or cut off: ask another one."""

    def __init__(self, peer_id: str, within_s: float) -> None:
        self.peer_id = peer_id
        self.within_s = within_s
        super().__init__(f"{peer_id} did not answer in {within_s:g} s")


class RemoteProtocolError(NetworkError):
    """A remote peer broke the protocol. It is to blame; drop what it sent and score it."""

    def __init__(self, peer_id: str, reason: str) -> None:
        self.peer_id = peer_id
        self.reason = reason
        super().__init__(f"{peer_id}: {reason}")


class RefusedError(NetworkError):
    """A remote peer understood the request and refused it. `kind` is its reason in one word."""

    def __init__(self, peer_id: str, kind: str, reason: str) -> None:
        self.peer_id = peer_id
        self.kind = kind
        self.reason = reason
        super().__init__(f"{peer_id} refused: {reason}")


class NotAdmittedError(NetworkError):
    """A run does not admit this peer. Its creator can make a token for it, or put it on the list of another run."""

    def __init__(self, peer_id: str, reason: str) -> None:
        self.peer_id = peer_id
        self.reason = reason
        super().__init__(f"{peer_id} is not admitted: {reason}")


class DecodeError(LegionError):
    """Bytes are not what they claim to be. Their sender is to blame."""


class CodecError(DecodeError):
    """A compressed tensor does not match its header, or its codec is unknown."""


class SelfCheckError(LegionError):
    """This peer was about to send what others would refuse. A value that it was given is to blame, which the message names."""


class SignatureError(DecodeError):
    """A signature does not match the bytes and the peer that it claims to be of."""


class StoreError(LegionError):
    """The disk holds something unusable, or refuses. The message names the file and what to do."""


class QuotaError(StoreError):
    """The block store holds as much as it may. Remove checkpoints that are no longer needed, or raise the quota."""


class DiskFullError(StoreError):
    """The disk has no room left. What is stored is unharmed; free some space, then try again."""


class NotSavedError(StoreError):
    """What was to be written at the end could not be written where it was asked for, and is elsewhere: the message says where."""


class MissingBlockError(StoreError):
    """The store lacks a block, or had to move it aside because it was damaged. Fetch it from a peer that has it."""

    def __init__(self, cid: str, reason: str) -> None:
        self.cid = cid
        self.reason = reason
        super().__init__(f"block {cid} is missing: {reason}")


class ClosedError(LegionError):
    """The peer has left already. Make a new one."""


class NonFiniteError(LegionError):
    """Numbers that are to be sent contain NaN or infinity. Our own training diverged: skip this round, lower the rate."""
