"""Which member passes an update on to which others."""

import gc
import statistics
from collections import Counter
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.forwarding.forest import (
    EPOCH_VERSIONS,
    FEW_RECEIVERS,
    MAX_TREES,
    MAX_UPLOAD_FACTOR,
    Forest,
    Forwarder,
    Tree,
    forest_of,
    size_class,
    upload_step,
)
from legion_p2p.core.identity import PeerId

LARGE = 1 << 18  # a copy takes 0.2 s at 10 Mbit/s: far more than a hop
SMALL = 1 << 10
PEERS = [PeerId(f"peer-{n:02}") for n in range(24)]


def forest(
    members: list[Forwarder], owners: list[PeerId | None], n_bytes: int = LARGE, first: list[PeerId] | None = None
) -> Forest:
    peers = [member.peer for member in members]
    return Forest(members, owners, n_bytes, frozenset(peers if first is None else first))


def equal(n: int = 24, **fields: object) -> list[Forwarder]:
    return [Forwarder(peer, **fields) for peer in PEERS[:n]]


def tree_of(grown: Forest, shard: int = 0, version: int = 0) -> Tree:
    tree = grown.tree(shard, version)
    assert tree is not None
    return tree


def copies(grown: Forest, n_shards: int, version: int = 0) -> Counter[PeerId]:
    """How many updates each member sends in a round of all shards."""
    sent: Counter[PeerId] = Counter()
    for shard in range(n_shards):
        for peer, children in tree_of(grown, shard, version).children.items():
            sent[peer] += len(children)
    return sent


uploads = st.sampled_from([0.0, 1e6, 8e6, 1e8])


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[Forwarder], list[PeerId | None], int, list[PeerId]]:
    peers = PEERS[: draw(st.integers(1, 24))]
    some = st.lists(st.sampled_from(peers), max_size=4)
    members = [Forwarder(peer, draw(uploads), draw(st.booleans()), tuple(draw(some))) for peer in peers]
    owners = draw(st.lists(st.sampled_from([*peers, None]), min_size=1, max_size=10))
    return members, owners, draw(st.sampled_from([0, SMALL, LARGE])), draw(some)


@given(regions(), st.integers(0, 100))
def test_every_member_but_the_owner_has_one_parent_and_gets_the_update_after_it(region, version: int) -> None:
    members, owners, n_bytes, first = region
    grown = forest(members, owners, n_bytes, first)
    by_peer = {member.peer: member for member in members}

    for shard, owner in enumerate(owners):
        tree = grown.tree(shard, version)
        if owner is None:
            assert tree is None
            continue
        assert tree is not None and set(tree.parents) == set(by_peer) - {owner}
        assert sorted(c for children in tree.children.values() for c in children) == sorted(tree.parents)
        for peer, parent in tree.parents.items():
            assert tree.ancestors(peer)[-1] == owner
            assert tree.arrives_s[peer] > tree.arrives_s.get(parent, 0.0)
            if parent != owner:
                assert parent not in by_peer[peer].avoided
                assert by_peer[peer].can_be_dialed and by_peer[parent].can_be_dialed and parent in first


@given(regions(), st.randoms(use_true_random=False))
def test_the_order_in_which_members_are_known_changes_nothing(region, rng) -> None:
    members, owners, n_bytes, first = region
    shuffled = rng.sample(members, len(members))

    assert [forest(members, owners, n_bytes, first).tree(s, 0) for s in range(len(owners))] == [
        forest(shuffled, owners, n_bytes, first).tree(s, 0) for s in range(len(owners))
    ]


@pytest.mark.parametrize("owners", [PEERS[:8], [PEERS[0]] * 8, [PEERS[0]] * 7 + [PEERS[1]]])
def test_all_of_24_members_send_as_much_as_others_whoever_owns_8_shards(owners: list[PeerId | None]) -> None:
    grown = forest(equal(), owners)

    for version in (0, EPOCH_VERSIONS, 5 * EPOCH_VERSIONS):
        sent = copies(grown, 8, version)
        assert min(sent[peer] for peer in PEERS) >= 5
        assert max(sent.values()) <= 1.3 * statistics.fmean(sent[peer] for peer in PEERS)


@pytest.mark.parametrize("n_shards", [1, 2, 3])
def test_where_there_are_few_shards_members_take_turns_and_trees_stay_flat(n_shards: int) -> None:
    grown, sent = forest(equal(), PEERS[:n_shards]), Counter[PeerId]()

    for version in range(96):
        sent += copies(grown, n_shards, version)
        for shard in range(n_shards):
            tree = tree_of(grown, shard, version)
            assert max(len(tree.ancestors(peer)) for peer in PEERS) <= 6

    assert max(sent.values()) <= 1.3 * statistics.fmean(sent[peer] for peer in PEERS)


def test_a_member_with_ten_times_the_upload_passes_on_about_ten_times_as_much() -> None:
    members = [Forwarder(peer, 1e8 if peer == PEERS[20] else 1e7) for peer in PEERS]

    sent = copies(forest(members, PEERS[:8]), 8)

    others = statistics.fmean(sent[peer] for peer in PEERS if peer != PEERS[20])
    assert 7 < sent[PEERS[20]] / others < 13


def test_an_upload_that_somebody_makes_up_makes_it_carry_no_more_than_so_many_others() -> None:
    members = [Forwarder(peer, 1e15 if peer == PEERS[20] else 1e7) for peer in PEERS]

    sent = copies(forest(members, PEERS[:8] * 20), 160)

    others = statistics.fmean(sent[peer] for peer in PEERS if peer != PEERS[20])
    assert sent[PEERS[20]] <= 1.1 * MAX_UPLOAD_FACTOR * others


def test_a_narrow_owner_sends_one_copy_and_the_widest_pass_it_on_first() -> None:
    members = [Forwarder(peer, 2e5 if peer == PEERS[0] else 1e7) for peer in PEERS]

    tree = tree_of(forest(members, [PEERS[0]]))

    (root,) = tree.children[PEERS[0]]
    assert tree.passes_on(root) and len(tree.children[root]) >= 4


def test_an_update_reaches_all_sooner_than_its_owner_could_send_it() -> None:
    tree = tree_of(forest(equal(upload_bps=1e7), PEERS[:8]))

    assert max(tree.arrives_s.values()) < 0.6 * 23 * 8 * LARGE / 1e7


@pytest.mark.parametrize(("n", "n_bytes"), [(24, SMALL), (FEW_RECEIVERS + 1, LARGE), (2, LARGE), (1, LARGE)])
def test_small_updates_and_those_of_few_members_take_no_detour(n: int, n_bytes: int) -> None:
    tree = tree_of(forest(equal(n), [PEERS[0]], n_bytes))

    assert set(tree.parents.values()) <= {PEERS[0]}


def test_an_owner_with_bandwidth_to_spare_sends_to_all_itself() -> None:
    members = [Forwarder(peer, 1e10 if peer == PEERS[0] else 1e9) for peer in PEERS]

    assert set(tree_of(forest(members, [PEERS[0]])).parents.values()) == {PEERS[0]}


def test_a_member_that_all_avoid_passes_nothing_on_and_the_others_share_what_it_would_have() -> None:
    liar = PEERS[20]
    members = [Forwarder(peer, avoided=() if peer == liar else (liar,)) for peer in PEERS]

    sent = copies(forest(members, [PEERS[0]] * 8), 8)

    assert sent[liar] == 0
    assert max(sent.values()) <= 1.3 * statistics.fmean(sent[peer] for peer in PEERS if peer != liar)


def test_a_member_can_speak_for_itself_alone_about_which_others_it_avoids() -> None:
    honest = PEERS[20]
    members = [Forwarder(peer, avoided=(honest,) if peer == PEERS[5] else ()) for peer in PEERS]

    sent = copies(forest(members, [PEERS[0]] * 8), 8)

    assert sent[honest] >= 6


def test_newcomers_pass_nothing_on_and_those_that_contribute_do() -> None:
    old = PEERS[:8]

    sent = copies(forest(equal(), old, first=old), 8)

    assert set(sent) == set(old) and max(sent.values()) <= 1.1 * statistics.fmean(sent.values())


def test_a_member_that_only_relays_lead_to_gets_updates_from_their_owner() -> None:
    members = [Forwarder(peer, can_be_dialed=peer not in PEERS[:3]) for peer in PEERS]

    tree = tree_of(forest(members, [PEERS[10]]))

    assert {tree.parents[peer] for peer in PEERS[:3]} == {PEERS[10]} and not any(map(tree.passes_on, PEERS[:3]))


def test_the_tree_of_a_shard_stays_for_some_versions_and_then_is_another_one() -> None:
    grown = forest(equal(), [PEERS[0]] * 8)

    assert tree_of(grown, version=0) is tree_of(grown, version=EPOCH_VERSIONS - 1)
    assert tree_of(grown, version=0).parents != tree_of(grown, version=EPOCH_VERSIONS).parents


def test_what_a_round_takes_of_each_member_is_known_without_growing_the_trees() -> None:
    grown = forest(equal(), [PEERS[0]] * 3 + PEERS[1:6])

    sent = copies(grown, 8)

    assert all(abs(grown.copies_of(peer) - sent[peer]) <= 2 for peer in PEERS)


def test_no_more_than_so_many_trees_are_remembered() -> None:
    grown = forest(equal(5), [PEERS[0]] * (MAX_TREES + 10))

    for shard in range(MAX_TREES + 10):
        grown.tree(shard, 0)

    assert len(grown._trees) == MAX_TREES


def test_a_measurement_that_wavers_and_sizes_that_differ_a_little_change_no_tree() -> None:
    assert upload_step(9.1e6) == upload_step(1.6e7) != upload_step(1.7e7) and upload_step(0.0) == upload_step(0.5) == 0.0
    assert size_class(1025) == size_class(2048) == 2048 and size_class(0) == size_class(1) == 1


def test_members_of_one_process_that_see_the_same_share_a_forest_in_whatever_order_they_list_each_other() -> None:
    members, owners, first = equal(8), [PEERS[0], PEERS[3]], frozenset(PEERS[:8])

    one = forest_of(members, owners, LARGE, first)

    assert forest_of(reversed(members), tuple(owners), LARGE, first) is one
    assert forest_of(members, owners, SMALL, first) is not one
    assert forest_of(members, [PEERS[1], PEERS[3]], LARGE, first) is not one
    assert forest_of(members, owners, LARGE, first - {PEERS[5]}) is not one
    assert tree_of(one, 1, 7) == tree_of(forest(members, owners), 1, 7)


def test_a_forest_that_nobody_uses_any_more_is_forgotten() -> None:
    members, first = equal(5), frozenset(PEERS[:5])

    kept = ref(forest_of(members, [PEERS[0]], LARGE, first))

    gc.collect()
    assert kept() is None
