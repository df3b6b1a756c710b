"""Circuits through relays, and what hostile relays and peers get out of them. For these tests loopback is elsewhere."""

from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from legion_p2p.core.addresses import is_circuit
from legion_p2p.core.dial_order import Nearness
from legion_p2p.core.dial_pauses import FREE_FAILURES
from legion_p2p.core.identity import Identity
from legion_p2p.core.reach import ConnectionKind, Reach
from legion_p2p.core.reach_finder import ReachVerdict
from legion_p2p.core.relay_ledger import RelayLimits
from legion_p2p.errors import LegionError, UnreachableError
from legion_p2p.net import circuits, dialer, reach_service
from legion_p2p.net.circuit_stream import CircuitStream, read_message, write_message
from legion_p2p.net.ends import multiaddr_of, remote_end
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.relay import HOP, STOP
from tests.net.conftest import eventually, opened
from tests.ports import free_port
from tests.waiting import PATIENCE_S

LIMITS = RelayLimits()
SECRET = b"what the relay must not read"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    for module in (circuits, reach_service):
        monkeypatch.setattr(module, "is_elsewhere", lambda host, networks: True)
    monkeypatch.setattr(circuits, "is_loopback", lambda address: False)


@asynccontextmanager
async def relay(limits: RelayLimits = LIMITS):
    async with opened(config=NetConfig(relay=limits, relay_unproven=True, redial_max_s=1.0)) as node:
        yield node


@asynccontextmanager
async def hidden(*relays: Libp2pNetwork, identity: Identity | None = None, reserved: int | None = None):
    """A peer that listens nowhere, once it has its reservations."""
    contacts = [address for node in relays for address in node.addresses()]
    async with opened(identity, listen=(), initial_peers=contacts) as network:
        await eventually(lambda: len(network.reachability.own().relays) == (len(relays) if reserved is None else reserved))
        yield network


async def hop(network: Libp2pNetwork, node: Libp2pNetwork, message: HopMessage) -> HopMessage:
    stream = await network._host.new_stream(ID.from_base58(node.peer_id), [HOP])
    await write_message(stream, message)
    return await read_message(stream, HopMessage)


def connect_to(peer: str) -> HopMessage:
    message = HopMessage(type=HopMessage.CONNECT)
    message.peer.id = ID.from_base58(peer).to_bytes()
    return message


async def test_a_peer_that_nobody_can_dial_is_reached_through_a_relay_which_reads_nothing(monkeypatch):
    seen = bytearray()

    async with relay() as node, hidden(node) as a, opened(of=node) as b:
        ledger = node.relay.ledger
        pass_on = CircuitStream.read

        async def read(self, n=None):
            data = await pass_on(self, n)
            seen.extend(data)
            return data

        monkeypatch.setattr(CircuitStream, "read", read)
        assert all("/p2p-circuit/" in address for address in a.addresses())
        b.messenger.add_addresses(a.peer_id, a.messenger.addresses())

        assert await b.messenger.request(a.peer_id, SECRET) == SECRET

        there, back = b.reachability.connection(a.peer_id), a.reachability.connection(b.peer_id)
        assert (there.kind, there.relay) == (back.kind, back.relay) == (ConnectionKind.RELAYED, node.peer_id)
        assert ledger.n_circuits == 1 and ledger.relayed_bytes > len(SECRET)
        assert seen and SECRET not in seen


async def test_an_initial_peer_may_be_behind_a_relay():
    async with relay() as node, hidden(node) as a, opened(listen=(), initial_peers=a.addresses()) as b:
        assert b.reachability.connection(a.peer_id).relay == node.peer_id
        assert await b.messenger.request(a.peer_id, b"hello") == b"hello"


async def test_when_a_relay_goes_the_other_one_carries_on(nursery):
    first_gone = trio.CancelScope()

    async def first_relay(task_status):
        with first_gone:
            async with relay() as node:
                task_status.started(node)
                await trio.sleep_forever()

    first = await nursery.start(first_relay)
    async with relay() as second, hidden(first, second) as a, opened(of=second) as b:
        b.messenger.add_addresses(a.peer_id, a.messenger.addresses())
        await b.messenger.request(a.peer_id, b"")

        first_gone.cancel()

        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    with trio.fail_after(5):
                        assert await b.messenger.request(a.peer_id, b"on") == b"on"
                    if b.reachability.connection(a.peer_id).relay == second.peer_id:
                        break
                except (LegionError, trio.TooSlowError):
                    await trio.sleep(0.2)
        await eventually(lambda: a.reachability.own().relays == (second.peer_id,))


async def test_a_relay_that_swallows_what_it_should_pass_is_got_around():
    async with relay() as honest, relay() as hostile, hidden(hostile, honest) as a, opened(of=honest) as b:

        async def swallow(from_, sender, to, circuit):
            await trio.sleep_forever()

        hostile.relay._pass_on = swallow
        circuits_of_a = a.messenger.addresses()
        b.messenger.add_addresses(a.peer_id, tuple(sorted(circuits_of_a, key=lambda address: hostile.peer_id not in address)))

        assert await b.messenger.request(a.peer_id, b"got through") == b"got through"

        assert b.reachability.connection(a.peer_id).relay == honest.peer_id


async def test_further_relays_are_found_in_the_dht_and_by_what_members_announce():
    config = NetConfig(relay=LIMITS, relay_unproven=True)
    async with opened() as node, opened(of=node, config=config) as one, opened(of=node, listen=()) as a:
        await eventually(lambda: a.reachability.own().relays == (one.peer_id,))

        async with opened(config=config) as two:  # the others have not heard of it
            a.messenger.add_addresses(two.peer_id, two.messenger.addresses())
            a.reachability.heard_of_relay(two.peer_id)

            await eventually(lambda: set(a.reachability.own().relays) == {one.peer_id, two.peer_id})


async def test_a_relay_passes_no_more_than_its_rate():
    n_bytes = 100_000
    async with relay(RelayLimits(rate_bps=1e6)) as node, hidden(node) as a, opened(of=node) as b:
        b.messenger.add_addresses(a.peer_id, a.messenger.addresses())
        await b.messenger.request(a.peer_id, b"")

        began = trio.current_time()
        assert await b.messenger.request(a.peer_id, bytes(n_bytes)) == bytes(n_bytes)

        assert trio.current_time() - began > 2 * 8 * n_bytes / 1e6 * 0.9  # there and back; two that send share the rate


async def test_a_full_relay_refuses_and_the_peer_goes_without():
    async with relay(RelayLimits(max_reservations=1)) as node, hidden(node), hidden(node, reserved=0) as b:
        await eventually(lambda: node.relay.ledger.n_refused > 0)

        assert b.reachability.own().relays == () and b.addresses() == ()


async def test_a_circuit_to_a_peer_without_reservation_is_refused_and_that_peer_is_never_dialed():
    victim = Identity.generate()
    async with opened(victim) as target, relay() as node, opened(of=node) as b:
        node._contacts._dialer._book.add(target.peer_id, target.messenger.addresses())

        answer = await hop(b, node, connect_to(target.peer_id))

        assert answer.status == Status.NO_RESERVATION
        assert target.peer_id not in node.messenger.connected()


async def test_relays_that_are_said_to_be_at_an_address_of_somebody_else_make_few_dials_of_it(monkeypatch, nursery):
    ranks = {True: Nearness.CIRCUIT, False: Nearness.PUBLIC}  # for this test loopback is public
    monkeypatch.setattr(dialer, "dial_order", lambda addresses, *_: tuple((a, ranks[is_circuit(a)]) for a in addresses))
    n_dials = 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal n_dials
        n_dials += 1

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, hang_up, [listener])
    victim = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
    async with opened() as a, opened(of=a) as b:
        for _ in range(6 * FREE_FAILURES):
            target, lied = Identity.generate().peer_id, Identity.generate().peer_id
            b.messenger.add_addresses(target, (f"{victim}/p2p/{lied}/p2p-circuit",))
            with pytest.raises(UnreachableError):
                await b.messenger.request(target, b"")

        assert 0 < n_dials <= 2 * FREE_FAILURES  # on a busy machine some pauses are over before it ends
    nursery.cancel_scope.cancel()


async def test_an_error_names_what_the_relay_said():
    async with relay(RelayLimits(max_circuits_per_peer=1)) as node, hidden(node) as a, opened(of=node) as b, opened(of=node) as c:
        for peer in (b, c):
            peer.messenger.add_addresses(a.peer_id, a.messenger.addresses())
        await b.messenger.request(a.peer_id, b"")

        with pytest.raises(UnreachableError, match="the relay carries no more circuits"):
            await c.messenger.request(a.peer_id, b"")


async def test_nobody_is_brought_by_a_peer_that_was_not_asked_to():
    async with opened() as a, opened(of=a) as stranger:
        stream = await stranger._host.new_stream(ID.from_base58(a.peer_id), [STOP])
        message = StopMessage(type=StopMessage.CONNECT)
        message.peer.id = ID.from_base58(stranger.peer_id).to_bytes()

        await write_message(stream, message)

        assert (await read_message(stream, StopMessage)).status == Status.PERMISSION_DENIED


async def test_a_relay_that_lies_about_whom_it_brings_is_scored():
    async with relay() as node, hidden(node) as a:
        stream = await node._host.new_stream(ID.from_base58(a.peer_id), [STOP])
        message = StopMessage(type=StopMessage.CONNECT)
        message.peer.id = ID.from_base58(Identity.generate().peer_id).to_bytes()
        await write_message(stream, message)
        assert (await read_message(stream, StopMessage)).status == Status.OK

        raw = RawConnection(CircuitStream(stream), True)
        with trio.move_on_after(10):
            try:
                await node._host.get_network().upgrade_outbound_raw_conn(raw, ID.from_base58(a.peer_id))
            except Exception as ended:
                assert ended

        await eventually(lambda: a.messenger.refusals.score(node.peer_id) > 0)


@pytest.mark.parametrize("protocol", [HOP, STOP])
@pytest.mark.parametrize("garbage", [b"\x05hello", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x00", b"\x02\x08\x07"])
async def test_garbage_about_circuits_costs_the_stream_and_no_more(protocol, garbage):
    async with relay() as node, opened(of=node) as stranger:
        stream = await stranger._host.new_stream(ID.from_base58(node.peer_id), [protocol])
        await stream.write(garbage)

        with pytest.raises(Exception), trio.fail_after(PATIENCE_S):  # noqa: B017  # libp2p raises many kinds
            while await stream.read(100):
                pass
            raise EOFError

        assert await stranger.messenger.request(node.peer_id, b"still there") == b"still there"


async def test_a_dial_that_arrives_proves_a_peer_public_and_makes_it_a_relay():
    config = NetConfig(relay=RelayLimits(), redial_max_s=1.0)
    async with relay() as node, opened(of=node, config=config) as a:
        await eventually(lambda: a.reachability.own().reach is Reach.PUBLIC)

        await eventually(lambda: a.reachability.own().relays == ())
        assert a.relay.enabled and a.reachability.own().circuits == RelayLimits().max_circuits
        assert not any("/p2p-circuit" in address for address in a.addresses())

        a.reaching.reachability.concluded(ReachVerdict(Reach.RELAYED))
        assert not a.relay.enabled and a.reachability.own().circuits == 0


async def test_what_comes_through_the_hole_that_a_dial_of_this_peer_has_made_proves_nothing():
    async with opened() as a:
        service, (_, _, host, _, port) = a.reaching.own_reach, a.messenger.addresses()[0].split("/")
        there, here = (host, free_port()), (host, int(port))
        with pytest.raises(OpenConnectionError):  # nobody listens there yet
            await service._transport.dial_with_source(Multiaddr(multiaddr_of(there)), here)
        arrived = []
        service.finder.arrived = lambda host, address, now, **more: arrived.append(host)
        async with opened(listen=[multiaddr_of(there)]) as b:
            b.reaching.own_reach._dial_backs.ask = lambda *asked: "not now"
            b._contacts._dialer.source = lambda address: there
            b.messenger.add_addresses(a.peer_id, a.messenger.addresses())
            await b.messenger.request(a.peer_id, b"")
            (connection,) = a._contacts._dialer.direct(b.peer_id)
            assert remote_end(connection.muxed_conn) == there
            assert not arrived

            assert await b.reaching.own_reach._dial_back(a.peer_id, here)

            await eventually(lambda: arrived == [host])


async def test_only_the_address_that_a_request_came_from_is_dialed_back():
    async with opened() as node, opened(of=node) as a:
        dialed = []
        service = node.reaching.own_reach

        async def dial(address: Multiaddr):
            dialed.append(str(address))
            raise OSError("refused")

        service._transport.dial = dial
        question = reach_service.ReachQuestion((4710, 22))
        service._dial_backs = reach_service.DialBacks()
        await a.messenger.call(node.peer_id, reach_service.SERVICE, reach_service.msgspec.msgpack.encode(question))

        assert sorted(dialed) == ["/ip4/127.0.0.1/tcp/22", "/ip4/127.0.0.1/tcp/4710"]


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x91\x94\x01\x02\x03\x04", b"\x91\x91\xce\x00\x01\x00\x00", b"\x91\x91\x00"])
async def test_what_is_no_question_about_reach_is_refused(body):
    async with opened() as node, opened(of=node) as a:
        with pytest.raises(LegionError, match="not a question about reach"):
            await a.messenger.call(node.peer_id, reach_service.SERVICE, body)
