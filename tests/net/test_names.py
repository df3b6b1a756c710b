"""Names with several addresses, with others than before, and with text records; no name server of the Internet is asked."""

import socket

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rrset
import pytest
import trio

from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import Identity
from legion_p2p.errors import NetworkError, NoContactError
from legion_p2p.net import parts
from legion_p2p.net.host import open_network
from legion_p2p.net.names import SystemNames, addresses_by_texts, open_stream
from tests.net.conftest import QUICK, eventually, opened
from tests.ports import free_port
from tests.waiting import PATIENCE_S

PEER = Identity(bytes(32)).peer_id


class FakeNames:
    """What each name says at the moment."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {}
        self.said: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def hosts(self, name: str, family: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        wanted = {socket.AF_INET: "4", socket.AF_INET6: "6"}.get(family, "46")
        found = [host for host in self.of.get(name, []) if ("6" if ":" in host else "4") in wanted]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    async def texts(self, name: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        if name not in self.said:
            raise NetworkError(f"the texts of {name} cannot be looked up: there are none")
        return self.said[name]


@pytest.fixture
async def port(nursery) -> int:
    """One on which 127.0.0.1 answers, and no other address of this machine."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    return listeners[0].socket.getsockname()[1]


@pytest.mark.parametrize("protocol", ["dns", "dns4"])
async def test_of_several_addresses_one_that_answers_is_enough(port, protocol):
    names = FakeNames()
    names.of["boot.example"] = ["127.0.0.2", "::1", "127.0.0.1"]

    async with await open_stream(names, protocol, "boot.example", port) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_a_family_that_was_asked_for_is_the_only_one_that_is_tried(port):
    names = FakeNames()
    names.of["boot.example"] = ["127.0.0.1"]

    with pytest.raises(OSError, match="not known"):
        await open_stream(names, "dns6", "boot.example", port)


async def test_a_name_is_asked_for_again_at_each_attempt(port):
    names = FakeNames()
    names.of["boot.example"] = ["127.0.0.3"]
    with pytest.raises(OSError):
        await open_stream(names, "dns4", "boot.example", port)

    names.of["boot.example"] = ["127.0.0.1"]

    async with await open_stream(names, "dns4", "boot.example", port):
        assert names.asked == ["boot.example", "boot.example"]


async def test_a_name_with_very_many_addresses_is_tried_at_a_few(port):
    names = FakeNames()
    names.of["boot.example"] = [f"127.0.1.{i}" for i in range(1, 200)] + ["127.0.0.1"]

    with trio.fail_after(PATIENCE_S), pytest.raises(OSError):
        await open_stream(names, "dns4", "boot.example", port)


async def test_texts_lead_to_the_peer_through_another_name():
    names = FakeNames()
    names.said["_dnsaddr.boot.example"] = [
        f"dnsaddr=/dnsaddr/more.example/p2p/{PEER}",
        f"dnsaddr=/dnsaddr/dead.example/p2p/{PEER}",
    ]
    names.said["_dnsaddr.more.example"] = [f"dnsaddr=/ip4/203.0.113.7/tcp/4710/p2p/{PEER}"]

    assert await addresses_by_texts(names, "boot.example", PEER) == ("/ip4/203.0.113.7/tcp/4710",)


async def test_texts_that_name_nobody_are_an_error_in_words():
    names = FakeNames()
    names.said["_dnsaddr.boot.example"] = ["v=spf1 -all"]

    with pytest.raises(NetworkError, match="name no address of"):
        await addresses_by_texts(names, "boot.example", PEER)
    with pytest.raises(NetworkError, match="cannot be looked up"):
        await addresses_by_texts(names, "dead.example", PEER)


class NameServer:
    """A name server on loopback that knows the text records of one name."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self._socket = trio.socket.socket(type=socket.SOCK_DGRAM)

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        await self._socket.bind(("127.0.0.1", 0))
        task_status.started(self._socket.getsockname()[1])
        while True:
            data, sender = await self._socket.recvfrom(4096)
            question = dns.message.from_wire(data)
            answer = dns.message.make_response(question)
            answer.flags |= dns.flags.RA
            quoted = [f'"{text}"' for text in self.texts]
            if quoted:
                answer.answer.append(dns.rrset.from_text(question.question[0].name, 1, "IN", "TXT", *quoted))
            await self._socket.sendto(answer.to_wire(), sender)


async def test_a_contact_by_texts_is_found_where_they_say_now_and_again_when_they_change(nursery, monkeypatch):
    async with opened() as boot:
        where = boot.addresses()[0]
        server = NameServer([f"dnsaddr=/ip4/127.0.0.1/tcp/1/p2p/{boot.peer_id}"])
        server_port = await nursery.start(server.serve)

        def resolver() -> dns.asyncresolver.Resolver:
            made = dns.asyncresolver.Resolver(configure=False)
            made.nameservers, made.port = ["127.0.0.1"], server_port
            return made

        monkeypatch.setattr(parts, "SystemNames", lambda: SystemNames(resolver))
        address = f"/dnsaddr/boot.example/p2p/{boot.peer_id}"
        async with open_network(Identity.generate(), listen=(), initial_peers=[address], config=QUICK) as network:
            with pytest.raises(NoContactError) as nobody:
                await network.join()
            assert nobody.value.reasons[address] == "/ip4/127.0.0.1/tcp/1: connection refused"

            server.texts = ["v=spf1 -all", f"dnsaddr={where}"]

            await eventually(lambda: network.dial_reports[address] is None)
    nursery.cancel_scope.cancel()


async def test_others_dial_an_announced_name_and_are_told_of_nothing_else(monkeypatch):
    names = FakeNames()
    names.of["home.example"] = ["127.0.0.1"]
    monkeypatch.setattr(parts, "SystemNames", lambda: names)
    port = free_port()
    listen, announce = (f"/ip4/127.0.0.1/tcp/{port}",), (f"/dns4/home.example/tcp/{port}",)
    async with opened() as boot, opened(of=boot, listen=listen, announce=announce) as named, opened(of=boot) as other:
        await named.discovery.provide("here")
        assert not names.asked

        found: tuple[Contact, ...] = ()
        with trio.fail_after(PATIENCE_S):
            while not found:
                found = await other.discovery.find("here")

        assert [contact.addresses for contact in found if contact.peer_id == named.peer_id] == [announce]
        assert await other.messenger.request(named.peer_id, b"x") == b"x"
        assert set(names.asked) == {"home.example"}


@pytest.mark.parametrize(("protocol", "listen"), [("dns4", "/ip4/127.0.0.1/tcp/0"), ("dns6", "/ip6/::1/tcp/0")])
async def test_the_name_of_a_contact_that_fails_is_looked_up_again_until_it_leads_there(protocol, listen, monkeypatch):
    names = FakeNames()
    monkeypatch.setattr(parts, "SystemNames", lambda: names)
    async with opened(listen=(listen,)) as boot:
        _, _, here, _, port = boot.addresses()[0].partition("/p2p/")[0].split("/")
        names.of["boot.example"] = ["127.0.0.9" if protocol == "dns4" else "::ffff:127.0.0.9"]
        address = f"/{protocol}/boot.example/tcp/{port}/p2p/{boot.peer_id}"
        async with open_network(Identity.generate(), listen=(), initial_peers=[address], config=QUICK) as network:
            with pytest.raises(NoContactError) as nobody:
                await network.join()
            assert nobody.value.reasons[address] == "connection refused"

            names.of["boot.example"] = [here]
            await eventually(lambda: network.dial_reports[address] is None)
