"""Who gets in where connections are many."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.places import SHARE, Places, party_of


def test_one_network_fills_a_quarter_of_the_places_and_others_still_get_in() -> None:
    places, n_open = Places(100), 0
    with ExitStack() as stack:
        for i in range(700):
            host = f"8.8.8.{i % 256}"
            if places.admits(host, n_open):
                stack.enter_context(places.taken(host))
                n_open += 1

        assert n_open == 50, "half of all, before places are few"
        assert all(not places.admits(f"8.8.8.{i}", n_open) for i in range(256))
        for i in range(25):
            host = f"9.9.9.{i}"
            assert places.admits(host, n_open)
            stack.enter_context(places.taken(host))
            n_open += 1
        assert not places.admits("9.9.9.200", n_open) and places.admits("1.1.1.1", n_open)


def test_places_that_become_free_can_be_taken_again() -> None:
    places = Places(8)
    with places.taken("8.8.8.8"), places.taken("8.8.8.9"):
        assert not places.admits("8.8.8.10", 4)
    assert places.admits("8.8.8.10", 4)


def test_peers_of_this_machine_are_not_told_apart_and_those_of_a_lan_are_by_their_address() -> None:
    assert party_of("127.0.0.1") == party_of("::1") == ""
    assert party_of("192.168.1.2") != party_of("192.168.1.3")
    assert party_of("8.8.8.8") == party_of("8.8.8.9") != party_of("8.8.9.8")
    assert party_of("2001:4860:0:1::1") == party_of("2001:4860:0:2::1") != party_of("2001:4861::1")
    assert party_of("fe80::1%eth0") == "fe80::1"


def test_however_few_places_there_are_somebody_gets_in() -> None:
    assert Places(1).admits("8.8.8.8", 1) and Places(3).admits("8.8.8.8", 2)


@given(st.lists(st.tuples(st.sampled_from(["8.8.8.8", "9.9.9.9", "1.1.1.1", "2001:4860::8"]), st.booleans()), max_size=200))
def test_no_network_has_more_than_its_share_of_what_was_taken_late(steps: list[tuple[str, bool]]) -> None:
    places, held, n_places = Places(16), [], 16
    for host, leaves in steps:
        if leaves and held:
            held.pop()[1].close()
            continue
        n_open = len(held)
        if n_open < n_places and places.admits(host, n_open):
            stack = ExitStack()
            stack.enter_context(places.taken(host))
            held.append((host, stack))
            mine = sum(h == host for h, _ in held)
            assert 2 * n_open < n_places or SHARE * mine <= n_places
