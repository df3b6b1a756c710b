"""What the network itself moves is counted by purpose, and together with the sockets' own count it adds up."""

import pytest
import trio

from legion_p2p.core.traffic_ledger import DHT, GOSSIP, RELAYED, UPKEEP, MovedBytes, left_over, summed
from legion_p2p.net import circuits, reach_service
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.relay import HOP, STOP
from legion_p2p.net.stream_meters import class_of_stream
from legion_p2p.net.streams import PROTOCOLS
from tests.net.conftest import eventually, opened
from tests.net.test_circuits import hidden, relay
from tests.waiting import PATIENCE_S

MESSAGE = b"m" * 10_000


def moved_for(network: Libp2pNetwork, kind: str) -> MovedBytes:
    return network.network_traffic().ledger.by_class.get(kind, MovedBytes())


def test_each_protocol_has_a_purpose_and_what_requests_and_circuits_carry_is_counted_once() -> None:
    assert class_of_stream("/meshsub/1.1.0", True) == GOSSIP
    assert class_of_stream("/legion/kad/1.0.0", False) == DHT
    assert class_of_stream("/ipfs/id/1.0.0", True) == UPKEEP
    assert {class_of_stream(protocol, side) for protocol in PROTOCOLS.values() for side in (True, False)} == {""}
    assert [class_of_stream(HOP, side) for side in (True, False)] == ["", RELAYED]
    assert [class_of_stream(STOP, side) for side in (True, False)] == [RELAYED, ""]


async def test_gossip_and_lookups_are_counted_on_both_sides_and_leave_little_of_what_the_sockets_moved() -> None:
    async with opened() as one, opened(of=one) as other:
        async with one.gossip.subscribe("run") as heard:
            with trio.fail_after(PATIENCE_S):
                while True:  # until the mesh has formed
                    await other.gossip.publish("run", MESSAGE)
                    with trio.move_on_after(0.3):
                        await heard.receive()
                        break
        await one.discovery.provide("a key")
        with trio.fail_after(PATIENCE_S):
            while not await other.discovery.find("a key"):  # noqa: ASYNC110
                await trio.sleep(0.1)
        requested = 200_000
        await other.messenger.request(one.peer_id, b"r" * requested)
        await eventually(lambda: moved_for(one, GOSSIP).received_bytes >= len(MESSAGE))

        assert moved_for(other, GOSSIP).sent_bytes >= len(MESSAGE)
        assert moved_for(other, DHT).sent_bytes > 0 and moved_for(one, DHT).received_bytes > 0
        assert other.network_traffic().ledger.by_peer.keys() == {one.peer_id}
        traffic = other.network_traffic()
        assert traffic.sockets is not None
        named = summed((traffic.ledger.by_class, {"requests": MovedBytes(requested, requested)}))
        rest = left_over(traffic.sockets.total, named.values())
        # Noise adds 18 bytes to a frame, yamux 12, and handshakes cost a kilobyte each
        assert 0 < rest.sent_bytes < 0.1 * traffic.sockets.total.sent_bytes
        assert 0 < rest.received_bytes < 0.1 * traffic.sockets.total.received_bytes
        assert traffic.sockets.local == traffic.sockets.total == sum_of(traffic.sockets.by_hour)


def sum_of(hours: dict[int, MovedBytes]) -> MovedBytes:
    return MovedBytes(sum(m.sent_bytes for m in hours.values()), sum(m.received_bytes for m in hours.values()))


async def test_a_circuit_is_counted_by_its_relay_and_what_is_inside_it_by_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (circuits, reach_service):
        monkeypatch.setattr(module, "is_elsewhere", lambda host, networks: True)
    monkeypatch.setattr(circuits, "is_loopback", lambda address: False)
    async with relay() as node, hidden(node) as far, opened(of=node, listen=()) as near:
        near.messenger.add_addresses(far.peer_id, far.messenger.addresses())

        await near.messenger.request(far.peer_id, MESSAGE)

        carried = moved_for(node, RELAYED)
        assert carried.sent_bytes > 2 * len(MESSAGE) and carried.received_bytes > 2 * len(MESSAGE)
        assert RELAYED not in near.network_traffic().ledger.by_class.keys() | far.network_traffic().ledger.by_class.keys()
