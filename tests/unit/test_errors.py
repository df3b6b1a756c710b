"""Errors say who, what was seen, what was allowed; and survive the trip between threads and processes."""

import inspect
import pickle

import pytest

from legion_p2p import errors
from legion_p2p.errors import (
    AmbiguousRunError,
    CodecError,
    DecodeError,
    JoinError,
    LegionError,
    MissingBlockError,
    NetworkError,
    NoAnswerError,
    NoContactError,
    RefusedError,
    RemoteProtocolError,
    SignatureError,
    UnknownRunError,
    UnreachableError,
    UsageError,
)

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
WITH_FIELDS = [
    NoContactError({"/ip4/10.0.0.1/tcp/1": "connection refused"}),
    UnknownRunError("tiny", 3),
    NoContactError({"/ip4/10.0.0.1/tcp/1": "connection refused"}, ("start the node",)),
    UnknownRunError("tiny", 3, ("other",), "", {"12D3KooWa": "/ip4/10.0.0.1/tcp/1: no answer in 5 s"}),
    AmbiguousRunError("tiny", {"id1": "creator1", "id2": "creator2"}),
    UnreachableError("peer", "no answer"),
    NoAnswerError("peer", 2.5),
    RemoteProtocolError("peer", "garbage"),
    RefusedError("peer", "IncompatibleModelError", "not in that run"),
    MissingBlockError("bafkreiblock", "it is not in the store"),
]


def name(error: object) -> str:
    return type(error).__name__


def test_one_except_catches_all_of_them_and_nothing_else() -> None:
    assert all(issubclass(kind, LegionError) for kind in ALL)
    assert not issubclass(LegionError, (OSError, ValueError, RuntimeError))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_says_in_its_docstring_who_is_to_blame(kind: type) -> None:
    assert kind.__doc__ and len(kind.__doc__) > 20 and kind.__doc__ != kind.__base__.__doc__
    assert not inspect.isabstract(kind)


def test_what_strangers_can_cause_is_told_apart_from_what_the_caller_did() -> None:
    assert issubclass(SignatureError, DecodeError) and issubclass(CodecError, DecodeError)
    assert issubclass(UnreachableError, NetworkError) and issubclass(RefusedError, NetworkError)
    assert not issubclass(DecodeError, (UsageError, NetworkError, JoinError))


@pytest.mark.parametrize("error", WITH_FIELDS, ids=name)
def test_what_was_learned_is_in_the_message_and_on_the_instance(error: LegionError) -> None:
    learned = vars(error)

    assert learned
    for value in learned.values():
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        assert all(str(part) in str(error) for part in parts if part != getattr(error, "kind", None))


@pytest.mark.parametrize("error", WITH_FIELDS, ids=name)
def test_it_comes_through_a_pipe_between_processes_as_it_was(error: LegionError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def test_an_unknown_run_tells_how_to_found_it() -> None:
    told = str(UnknownRunError("tiny", 3))

    assert "'tiny'" in told and "--new-run" in told and "3 contacts" in told


def test_a_run_whose_members_cannot_be_reached_says_which_they_are_what_was_tried_and_what_would_help() -> None:
    told = str(UnknownRunError("tiny", 3, unreachable={"12D3KooWa": "/ip4/10.0.0.1/tcp/1: no answer in 5 s", "12D3KooWb": "x"}))

    assert "no peer that can be reached knows a run named 'tiny'" in told and "2 peers are said to be in it" in told
    assert "12D3KooWa (/ip4/10.0.0.1/tcp/1: no answer in 5 s)" in told and "--announce" in told and "a relay" in told
