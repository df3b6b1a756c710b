"""Where large packets vanish, small ones are used."""

import socket

import pytest
import trio

from legion_p2p.net.packet_size import HEARD_S, SMALL_SEGMENT_BYTES, PacketSize
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
