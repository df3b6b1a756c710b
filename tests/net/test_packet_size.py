"""Where large packets vanish, small ones are used."""

import socket

import pytest
import trio

from legion_p2p.net.packet_size import HEARD_S, INFO, RETRANSMITS, SMALL_SEGMENT_BYTES, PacketSize
from tests.net.conftest import opened

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

    def __init__(self) -> None:
        self.retransmits = 0
        self.acked_bytes = 0
        self.n_delivered = 0

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return INFO.pack(1, 0, self.retransmits, 0, 1448, 1, 100, self.acked_bytes, self.n_delivered)

    def getpeername(self) -> tuple[str, int]:
        return "11.1.0.1", 4710


async def test_a_connection_on_which_large_segments_arrived_is_slow_and_one_on_which_only_small_ones_did_leads_through_a_hole():
    size, slow, hole = PacketSize(), Told(), Told()
    slow.acked_bytes, slow.n_delivered = 20 * 1448, 20
    hole.acked_bytes, hole.n_delivered = 40 * 700, 40
    assert size.vanishing([("slow", slow), ("hole", hole)]) == []

    slow.retransmits = hole.retransmits = RETRANSMITS
    slow.acked_bytes, slow.n_delivered = slow.acked_bytes + 10 * 200, slow.n_delivered + 10  # only small ones since
    assert size.vanishing([("slow", slow), ("hole", hole)]) == ["hole"]
