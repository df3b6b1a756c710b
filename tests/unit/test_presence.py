"""Whether a peer takes its share of a run's shards."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.presence import Presence, Stage

STEPS = ("joined", "suspend", "resume", "leave", "gone")


def after(*steps: str) -> Presence:
    presence = Presence()
    for step in steps:
        getattr(presence, step)()
    return presence


def test_a_peer_owns_from_when_it_has_joined_until_it_leaves() -> None:
    assert not after().ready
    assert after("joined").ready
    assert not after("joined", "leave").ready


def test_a_suspended_peer_owns_nothing_and_owns_again_when_it_resumes() -> None:
    assert not after("joined", "suspend").ready
    assert after("joined", "suspend", "resume").ready


def test_a_peer_that_is_still_joining_cannot_be_suspended_into_owning() -> None:
    assert after("suspend", "resume").stage is Stage.JOINING


def test_a_peer_leaves_once() -> None:
    presence = after("joined")

    assert presence.leave()
    assert not presence.leave() and presence.leaving and not presence.left
    presence.gone()
    assert not presence.leave() and presence.leaving and presence.left


@given(st.lists(st.sampled_from(STEPS)))
def test_a_peer_that_leaves_never_owns_again(steps: list[str]) -> None:
    presence = Presence()
    left = False
    for step in steps:
        getattr(presence, step)()
        left = left or step in ("leave", "gone")
        assert presence.leaving == left
        assert not (left and presence.ready)
