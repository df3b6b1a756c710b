"""The exit code of a command whose peer failed is that of the failure, not of the call that noticed it."""

from legion_p2p.cli.failures import FAILED, NOT_JOINED, failure_of
from legion_p2p.errors import ClosedError, JoinError


def test_a_peer_that_failed_gives_the_exit_code_of_its_cause() -> None:
    closed = ClosedError("this peer failed: another peer runs with this peer's key")
    assert failure_of(closed, "legion-peer").code == FAILED

    closed.__cause__ = JoinError("another peer runs with this peer's key")

    failed = failure_of(closed, "legion-peer")
    assert (failed.code, failed.text) == (NOT_JOINED, str(closed))
