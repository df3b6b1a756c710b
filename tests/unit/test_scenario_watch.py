"""What must never happen to a shard is found in the updates and holdings of a simulation, and only there."""

from legion_p2p.scenarios.watch import HEAL_S, MAX_ROUNDS_BEHIND, Holding, TakenUpdate, Watch


def update(version, base, digest, *included, region="home"):
    return TakenUpdate(region, 0, version, base, digest, included)


def held(peer, version, digest, region="home"):
    return Holding(peer, region, 0, version, digest)


def test_a_push_in_two_updates_of_one_chain_is_counted_twice():
    watch = Watch()
    assert not list(watch.accepted("a", update(1, b"0", b"1", ("x", 5))))
    assert not list(watch.accepted("a", update(2, b"1", b"2", ("y", 5), ("x", 6))))

    found = list(watch.accepted("a", update(3, b"2", b"3", ("x", 5))))

    assert [(v.kind, v.peers) for v in found] == [("counted-twice", ("x",))]
    assert watch.n_updates == 3


def test_a_push_in_two_updates_of_which_neither_builds_on_the_other_is_counted_once():
    watch = Watch()
    for digest in (b"1", b"1'"):
        assert not list(watch.accepted("a", update(1, b"0", digest, ("x", 5))))
    assert not list(watch.accepted("a", update(1, b"0", b"1''", ("x", 5), region="west")))


def test_a_fork_that_lasts_is_told_once():
    watch = Watch()
    two_ways = [held("a", 7, b"x"), held("b", 7, b"y"), held("c", 7, b"y")]
    found = []
    for now in range(0, 200, 10):
        found += [(now, v.kind, v.peers) for v in watch.sampled(two_ways, now, undisturbed_s=now)]

    assert found == [(HEAL_S + 10, "fork", ("a",))]


def test_a_fork_that_heals_or_that_something_explains_is_none():
    watch = Watch()
    two_ways, one_way = [held("a", 7, b"x"), held("b", 7, b"y")], [held("a", 8, b"z"), held("b", 8, b"z")]
    for now in range(0, 300, 10):
        assert not list(watch.sampled(one_way if now % 50 == 0 else two_ways, now, undisturbed_s=now))
    for now in range(300, 500, 10):
        assert not list(watch.sampled(two_ways, now, undisturbed_s=20))
    other = [held("a", 7, b"x", "east"), held("b", 7, b"y", "west")]
    for now in range(500, 700, 10):
        assert not list(watch.sampled(other, now, undisturbed_s=now))


def test_a_peer_that_stays_where_it_is_while_the_others_go_on_is_stuck():
    watch, found = Watch(), []
    for now in range(0, 200, 5):
        version = now // 2
        found += [
            (now, v.kind, v.peers) for v in watch.sampled([held("a", 3, b"3"), held("b", version, b"%d" % version)], now, now)
        ]

    ((at, kind, peers),) = found
    assert (kind, peers) == ("stuck", ("a",)) and at > HEAL_S and at / 2 > MAX_ROUNDS_BEHIND


def test_a_peer_that_is_behind_and_follows_is_not_stuck():
    watch = Watch()
    for now in range(0, 400, 5):
        late = max(0, now - 30)
        assert not list(watch.sampled([held("a", late, b"%d" % late), held("b", now, b"%d" % now)], now, now))


def test_a_version_that_two_had_and_nobody_builds_on_is_lost():
    watch = Watch()
    for peer in "ab":
        list(watch.accepted(peer, update(1, b"0", b"1")))
        list(watch.accepted(peer, update(2, b"1", b"2")))
    list(watch.accepted("c", update(2, b"1", b"2'")))
    list(watch.accepted("c", update(3, b"2'", b"3'")))

    found = list(watch.ended([held("c", 3, b"3'")], was_disturbed=False))

    assert [(v.kind, v.peers) for v in found] == [("lost-version", ("a", "b"))]
    assert not list(watch.ended([held("c", 3, b"3'")], was_disturbed=True))


def test_a_version_that_one_alone_had_may_be_lost_and_what_is_built_on_is_not():
    watch = Watch()
    for peer in "ab":
        list(watch.accepted(peer, update(1, b"0", b"1")))
    list(watch.accepted("a", update(2, b"1", b"2")))
    list(watch.accepted("b", update(2, b"1", b"2'")))

    assert not list(watch.ended([held("b", 2, b"2'")], was_disturbed=False))
