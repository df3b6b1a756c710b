"""Where large packets vanish, small ones are used."""

import socket
from typing import Any, cast

import pytest
import trio

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import DecodeError
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.packet_size import HEARD_S, INFO, RETRANSMITS, SMALL_SEGMENT_BYTES, PacketSize
from legion_p2p.net.path_probe import MAX_SIGNS, PROBE_BYTES, SIGNS, PathProbe
from tests.net.conftest import eventually, opened

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_MAXSEG"), reason="needs TCP_MAXSEG")


def segment_bytes(network) -> list[int]:
    """Of every connection of this host."""
    found = []
    for conns in network._host.get_network().connections.values():
        for conn in conns:
            sock = conn.muxed_conn.secured_conn.conn.conn.stream.stream.socket
            found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
    return found


async def test_after_a_stall_of_a_peer_that_is_alive_connections_in_both_directions_use_small_segments():
    async with opened() as a, opened(of=a) as before:
        assert max(segment_bytes(before)) > SMALL_SEGMENT_BYTES

        a.reaching.own_reach._transport._sockets.packet_size.stalled("11.1.0.1", trio.current_time())
        async with opened() as c, opened(of=a) as b:
            a.messenger.add_addresses(c.peer_id, c.messenger.addresses())
            await a.messenger.request(c.peer_id, b"")

            assert 0 < max(segment_bytes(b)) <= SMALL_SEGMENT_BYTES
            assert 0 < max(segment_bytes(c)) <= SMALL_SEGMENT_BYTES


async def test_a_peer_that_is_simply_gone_changes_nothing(autojump_clock):
    size = PacketSize()
    await trio.sleep(2 * HEARD_S)

    size.stalled("11.1.0.1", trio.current_time() - HEARD_S - 1)
    assert not size.is_small
    size.stalled("11.1.0.1", trio.current_time() - 1)
    assert size.is_small


class Told:
    """A socket of which the kernel says how often its last segment was sent in vain, and what has arrived of the others."""

    def __init__(self, silent_ms: int = 100, host: str = "11.1.0.1") -> None:
        self.silent_ms = silent_ms
        self.host = host
        self.retransmits = 0
        self.acked_bytes = 0
        self.n_delivered = 0

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return INFO.pack(1, 0, self.retransmits, 0, 1448, 1, self.silent_ms, self.acked_bytes, self.n_delivered)

    def getpeername(self) -> tuple[str, int]:
        return self.host, 4710


async def test_a_connection_on_which_large_segments_arrived_is_slow_and_one_on_which_only_small_ones_did_leads_through_a_hole():
    size, slow, hole = PacketSize(), Told(), Told()
    slow.acked_bytes, slow.n_delivered = 20 * 1448, 20
    hole.acked_bytes, hole.n_delivered = 40 * 700, 40
    assert size.vanishing([("slow", slow), ("hole", hole)]) == []

    slow.retransmits = hole.retransmits = RETRANSMITS
    slow.acked_bytes, slow.n_delivered = slow.acked_bytes + 10 * 200, slow.n_delivered + 10  # only small ones since
    assert size.vanishing([("slow", slow), ("hole", hole)]) == ["hole"]


@pytest.mark.parametrize(
    ("retransmits", "silent_ms", "is_hole"),
    [(2, 100, False), (3, 1100, True), (3, 1300, False), (4, 1900, True), (4, 2100, False)],
)
async def test_a_hole_is_where_the_other_side_was_heard_while_large_segments_were_in_vain(retransmits, silent_ms, is_hole):
    size, told = PacketSize(), Told(silent_ms)
    assert size.vanishing([("a", told)]) == []

    told.retransmits = retransmits

    assert size.vanishing([("a", told)]) == (["a"] if is_hole else [])
    assert size.is_small is is_hole


@pytest.mark.parametrize(
    ("host", "is_hole"), [("127.0.0.1", False), ("::1", False), ("::ffff:10.0.0.1", True), ("fe80::1%eth0", True)]
)
async def test_within_a_machine_no_packet_vanishes_however_busy_it_is(host, is_hole):
    size, told = PacketSize(), Told(host=host)
    size.vanishing([("a", told)])

    told.retransmits = RETRANSMITS

    assert size.vanishing([("a", told)]) == (["a"] if is_hole else [])


async def test_an_initial_peer_is_sent_something_large_and_small_things_before_it_that_it_answers_later(monkeypatch):
    came: list[int] = []

    async def answer(probe: PathProbe, peer: PeerId, body: bytes) -> bytes:
        came.append(len(body))
        return b""

    monkeypatch.setattr(PathProbe, "answer", answer)
    async with opened() as a, opened(of=a):
        await eventually(lambda: len(came) == 1 + len(SIGNS) + 1)
    assert came == [0] + [1] * len(SIGNS) + [PROBE_BYTES]
    assert PROBE_BYTES > 2 * 1448


class Asking:
    def serve_internally(self, service: str, handler: Any) -> None: ...


async def test_a_sign_comes_as_late_as_was_asked_for_and_no_later_and_no_larger_probe_is_taken(autojump_clock):
    probe, peer = PathProbe(cast(Libp2pMessenger, Asking())), Identity(b"p" * 32).peer_id

    for after_s in SIGNS:
        began = trio.current_time()
        assert await probe.answer(peer, bytes([after_s])) == b""
        assert trio.current_time() == began + after_s
    with pytest.raises(DecodeError, match="after 200 s"):
        await probe.answer(peer, bytes([200]))
    with pytest.raises(DecodeError, match="limit is 4096"):
        await probe.answer(peer, bytes(PROBE_BYTES + 1))


async def test_signs_that_are_waited_for_are_bounded_for_each_peer_and_for_all(autojump_clock):
    probe = PathProbe(cast(Libp2pMessenger, Asking()))
    peers = [Identity(bytes([i]) * 32).peer_id for i in range(MAX_SIGNS // len(SIGNS) + 2)]
    took_s: dict[PeerId, list[float]] = {peer: [] for peer in peers}

    async def ask(peer: PeerId) -> None:
        began = trio.current_time()
        assert await probe.answer(peer, bytes([SIGNS[-1]])) == b""
        took_s[peer].append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            for _ in range(2 * len(SIGNS)):
                nursery.start_soon(ask, peer)

    waited = {peer: sum(one > 0 for one in all_of_them) for peer, all_of_them in took_s.items()}
    assert max(waited.values()) == len(SIGNS) and sum(waited.values()) == MAX_SIGNS
    assert not probe._n_promised, "nobody is remembered"
