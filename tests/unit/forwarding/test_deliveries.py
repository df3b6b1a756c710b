"""When an update should be here, and which members fail to pass updates on."""

from legion_p2p.core.claims import FIRST_CLAIM_S
from legion_p2p.core.forwarding.deliveries import MAX_FACTOR, MAX_MISSES, MIN_WAIT_S, Deliveries, Patience
from legion_p2p.core.forwarding.forest import Tree
from legion_p2p.core.identity import PeerId

ME, OWNER, PARENT, OTHER = (PeerId(name) for name in ("me", "owner", "parent", "other"))
LATE_S = 1000.0


def tree_by(parent: PeerId = PARENT, expected_s: float = 1.0) -> Tree:
    """The owner sends to `parent`, and that to us."""
    if parent == OWNER:
        return Tree(OWNER, {OWNER: (ME,)}, {ME: OWNER}, {ME: expected_s})
    return Tree(OWNER, {OWNER: (parent,), parent: (ME,)}, {parent: OWNER, ME: parent}, {parent: 0.5, ME: expected_s})


def missed(deliveries: Deliveries, n: int, parent: PeerId = PARENT) -> None:
    """Told of n updates, each long after the one before, of which none came."""
    for version in range(1, n + 1):
        deliveries.told(0, version, tree_by(parent), version * LATE_S)


def test_an_update_is_awaited_from_the_parent_and_then_fetched_from_those_above() -> None:
    promise = Deliveries(ME).told(0, 5, tree_by(), 10.0)

    assert promise is not None and promise.version == 5 and promise.until > 11.0
    assert promise.parent == PARENT and promise.sources == (OWNER,)


def test_an_update_that_the_owner_sends_itself_can_be_fetched_from_nobody_else() -> None:
    promise = Deliveries(ME).told(0, 5, tree_by(OWNER), 10.0)

    assert promise is not None and promise.sources == (OWNER,)


def test_an_update_that_came_before_its_owner_told_of_it_is_not_awaited() -> None:
    deliveries = Deliveries(ME)
    deliveries.arrived(0, 5, PARENT, 9.0)

    assert deliveries.told(0, 5, tree_by(), 10.0) is None
    assert deliveries.tree_of(0, 5) is None
    assert deliveries.told(1, 5, tree_by(), 10.0) is not None, "another shard"


def test_a_parent_that_misses_several_updates_is_avoided_for_a_while() -> None:
    deliveries = Deliveries(ME)

    missed(deliveries, MAX_MISSES)
    assert deliveries.poll_failed() is None
    now = (MAX_MISSES + 1) * LATE_S
    deliveries.told(0, MAX_MISSES + 1, tree_by(), now)

    assert deliveries.poll_failed() == PARENT and deliveries.poll_failed() is None
    assert deliveries.avoided(now) == (PARENT,) and deliveries.avoided(now + FIRST_CLAIM_S) == ()


def test_a_parent_that_was_only_slow_is_not_avoided() -> None:
    deliveries = Deliveries(ME)

    for version in range(1, 10):
        deliveries.told(0, version, tree_by(), version * LATE_S)
        deliveries.arrived(0, version, PARENT, version * LATE_S + LATE_S / 2)

    assert deliveries.poll_failed() is None and deliveries.avoided(10 * LATE_S) == ()


def test_a_parent_is_not_blamed_for_what_another_member_brought_nor_for_what_is_not_overdue() -> None:
    deliveries = Deliveries(ME)

    for version in range(1, 10):
        deliveries.told(0, version, tree_by(), version * LATE_S)
        deliveries.arrived(0, version, OTHER, version * LATE_S + 0.5)
    for version in range(10, 20):
        deliveries.told(0, version, tree_by(), 10 * LATE_S)

    assert deliveries.poll_failed() is None


def test_an_owner_is_never_avoided() -> None:
    deliveries = Deliveries(ME)

    missed(deliveries, 10, OWNER)

    assert deliveries.poll_failed() is None


def test_a_member_that_sends_something_else_is_avoided_at_once_and_not_waited_for() -> None:
    deliveries = Deliveries(ME)
    promise = deliveries.told(0, 5, tree_by(), 10.0)

    assert deliveries.altered(0, OTHER, 10.5) is None, "the parent may still send it"
    assert deliveries.altered(0, PARENT, 10.5) == promise
    assert deliveries.avoided(11.0) == (OTHER, PARENT)


def test_patience_follows_what_was_measured() -> None:
    patience = Patience()
    first_s = patience.wait_s(1.0)

    for _ in range(100):
        patience.took(1.0, 1.0)
    short_s = patience.wait_s(1.0)
    for _ in range(100):
        patience.took(1.0, 6.0)

    assert 1.0 < short_s < first_s < patience.wait_s(1.0) and patience.wait_s(1.0) > 6.0
    assert patience.wait_s(0.0) >= MIN_WAIT_S


def test_each_update_that_is_late_doubles_the_wait_until_one_comes() -> None:
    patience = Patience()
    patience.took(1.0, 1.0)
    before_s = patience.wait_s(1.0)

    patience.late()
    doubled_s = patience.wait_s(1.0)
    for _ in range(20):
        patience.late()
    longest_s = patience.wait_s(1.0)
    patience.took(1.0, 1.0)

    assert before_s < doubled_s < longest_s <= MIN_WAIT_S + MAX_FACTOR
    assert patience.wait_s(1.0) <= before_s


def test_a_version_that_nobody_can_have_made_keeps_no_later_update_from_being_awaited() -> None:
    deliveries = Deliveries(ME)
    deliveries.arrived(0, 1 << 60, PARENT, 0.0)

    assert deliveries.told(0, 7, tree_by(), 1.0) is not None

    deliveries.arrived(0, 7, PARENT, 1.0)
    assert deliveries.told(0, 7, tree_by(), 1.0) is None
