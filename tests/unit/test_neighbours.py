"""Peers of the same LAN: what an announcement is worth, and which of them are dialed."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.neighbours import (
    FIRST_PAUSE_S,
    MAX_CONNECTED,
    MAX_DIALED_AT_ONCE,
    MAX_NEIGHBOURS,
    MAX_PAUSE_S,
    MAX_SAID,
    Neighbours,
    addresses_in,
    announcement,
)

ME = Identity(bytes(32)).peer_id
OTHER = Identity(bytes([1]) * 32).peer_id


def is_near(host: str) -> bool:
    return host.startswith(("192.168.1.", "fd00::"))


def peers(n: int) -> list[PeerId]:
    return [PeerId(f"peer {i}") for i in range(n)]


def texts(*given: str) -> bytes:
    return b"".join(bytes([len(text.encode())]) + text.encode() for text in given)


def test_what_a_peer_announces_is_read_as_it_was_meant():
    said = announcement(ME, ["/ip4/192.168.1.5/tcp/4710", "/ip6/fd00::5/tcp/4710"])

    assert addresses_in(said, ME, is_near) == ("/ip4/192.168.1.5/tcp/4710", "/ip6/fd00::5/tcp/4710")


def test_circuits_and_names_are_not_announced_and_many_addresses_are_cut():
    circuit = f"/ip4/203.0.113.7/tcp/1/p2p/{OTHER}/p2p-circuit"
    many = [f"/ip4/192.168.1.{i}/tcp/4710" for i in range(1, 100)]

    said = announcement(ME, [circuit, "/dns4/example.org/tcp/1", *many])

    assert addresses_in(said, ME, is_near) == tuple(many[:MAX_SAID])


def test_a_neighbour_is_not_believed_about_other_peers_or_places_outside_of_the_lan():
    said = texts(
        f"dnsaddr=/ip4/192.168.1.6/tcp/1/p2p/{OTHER}",
        f"dnsaddr=/ip4/203.0.113.7/tcp/1/p2p/{ME}",
        f"dnsaddr=/dns4/192.168.1.6/tcp/1/p2p/{ME}",
        f"dnsaddr=/dnsaddr/example.org/p2p/{ME}",
        f"dnsaddr=/ip4/192.168.1.6/tcp/1/p2p/{OTHER}/p2p-circuit/p2p/{ME}",
        "name=\x1b[2J",
        f"dnsaddr=/ip4/192.168.1.7/tcp/1/p2p/{ME}",
    )

    assert addresses_in(said, ME, is_near) == ("/ip4/192.168.1.7/tcp/1",)


@given(st.binary(max_size=3000))
def test_no_bytes_are_taken_for_more_than_they_are(said):
    assert len(addresses_in(said, ME, is_near)) <= MAX_SAID


def test_a_few_are_dialed_at_once_and_no_more_than_a_few_are_kept():
    known = Neighbours()
    for peer in peers(20):
        known.hear(peer, 0.0)

    assert len(known.to_dial((), 0.0)) == MAX_DIALED_AT_ONCE
    assert known.to_dial(peers(MAX_CONNECTED), 0.0) == ()
    assert len(known.to_dial(peers(MAX_CONNECTED - 1), 0.0)) == 1


def test_one_that_fails_is_tried_again_ever_more_rarely_and_behind_others():
    known = Neighbours()
    bad, good = peers(2)
    known.hear(bad, 0.0)
    known.failed(bad, 0.0)
    known.hear(good, 1.0)

    assert known.to_dial((), 1.0) == (good,)
    assert known.to_dial((), FIRST_PAUSE_S) == (good, bad)
    for _ in range(20):
        known.failed(bad, 100.0)
    known.hear(bad, 100.0)
    assert bad not in known.to_dial((), 100.0 + MAX_PAUSE_S - 1) and bad in known.to_dial((), 100.0 + MAX_PAUSE_S)
    known.gone(bad)
    assert known.peers() == (good,)


def test_a_crowd_of_invented_neighbours_pushes_nobody_out_that_can_be_reached():
    known = Neighbours()
    (honest, *crowd) = peers(5000)
    known.hear(honest, 0.0)
    for peer in crowd:
        known.hear(peer, 1.0)
        if peer in known.peers():
            known.failed(peer, 1.0)

    assert len(known.peers()) == MAX_NEIGHBOURS
    assert known.to_dial((), 1.0)[0] == honest


@given(st.lists(st.tuples(st.sampled_from(["hear", "failed", "gone"]), st.integers(0, 200), st.floats(0, 50)), max_size=300))
def test_whatever_neighbours_say_the_bounds_hold(events):
    known, now = Neighbours(), 0.0
    for event, i, passed_s in events:
        now += passed_s
        peer = PeerId(f"peer {i}")
        if event == "gone":
            known.gone(peer)
        elif event == "failed":
            known.failed(peer, now)
        else:
            known.hear(peer, now)
        assert len(known.peers()) <= MAX_NEIGHBOURS
        assert len(known.to_dial((), now)) <= MAX_DIALED_AT_ONCE
