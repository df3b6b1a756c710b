"""Peers of a network with a key: they find each other, and nobody else gets an answer."""

import pytest
import trio

from legion_p2p.core.dial_advice import NO_KEY, OTHER_KEY
from legion_p2p.core.priority import Priority
from legion_p2p.errors import NoContactError
from legion_p2p.net.limits import NetConfig
from tests.net.conftest import opened
from tests.waiting import PATIENCE_S

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def with_key(key: bytes) -> NetConfig:
    return NetConfig(redial_max_s=1.0, network_key=key)


async def test_peers_with_one_key_talk_over_streams_and_lanes():
    async with opened(config=with_key(KEY)) as a, opened(of=a, config=with_key(KEY)) as b:
        assert await b.messenger.request(a.peer_id, b"hello", Priority.CONTROL) == b"hello"
        bulk = bytes(1 << 20)
        assert await b.messenger.request(a.peer_id, bulk, Priority.ROUND) == bulk


@pytest.mark.parametrize(
    ("here", "there", "advice"),
    [(KEY, OTHER, OTHER_KEY), (KEY, b"", OTHER_KEY), (b"", KEY, NO_KEY)],
    ids=["another key", "there is none", "here is none"],
)
async def test_peers_of_another_network_get_no_answer_and_are_told_why(here: bytes, there: bytes, advice: str):
    async with opened(config=with_key(there)) as a:
        with pytest.raises(NoContactError) as refused:
            async with opened(of=a, config=with_key(here)):
                raise AssertionError("joined")

        assert advice in str(refused.value)
        assert not a.messenger.connected()


async def test_a_stranger_without_the_key_gets_no_byte_of_the_handshake():
    """It knows the protocol, and sends what begins a handshake without a key."""
    async with opened(config=with_key(KEY)) as a:
        _, _, host, _, port, *_ = a.addresses()[0].split("/")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            for line in (b"/multistream/1.0.0", b"/legion/noise-xxpsk0/1"):
                await stream.send_all(bytes([len(line) + 1]) + line + b"\n")
            seen = b""
            while b"xxpsk0/1\n" not in seen:
                seen += await stream.receive_some(4096)
            await stream.send_all((48).to_bytes(2, "big") + bytes(48))
            with trio.fail_after(PATIENCE_S):
                rest = b""
                while chunk := await stream.receive_some(4096):
                    rest += chunk

        assert rest == b""
