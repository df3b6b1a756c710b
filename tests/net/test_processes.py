"""Peers that end or stop without a word: other processes, for only those can be killed properly."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
import trio

from legion_p2p.core.priority import Priority
from legion_p2p.errors import UnreachableError
from tests.net.conftest import eventually, opened
from tests.waiting import PATIENCE_S

ECHO = """
import sys, trio
from legion_p2p.core.identity import Identity
from legion_p2p.net.host import open_network

async def echo(peer, body):
    if body == b"never":
        await trio.sleep_forever()
    return body

async def main():
    async with open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"]) as network:
        network.messenger.serve(echo)
        print(network.addresses()[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
async def other(forks):
    process = forks.popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    try:
        address = await trio.to_thread.run_sync(process.stdout.readline)
        yield process, address.strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_killed_peer_is_unreachable_at_once(other):
    process, address = other
    peer = address.rpartition("/")[2]
    async with opened(initial_peers=[address]) as network:
        assert await network.messenger.request(peer, b"hello") == b"hello"
        errors = []

        async def ask():
            with pytest.raises(UnreachableError) as error:
                await network.messenger.request(peer, b"never")
            errors.append(error.value)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.1)
                process.kill()

        assert len(errors) == 1
        await eventually(lambda: peer not in network.messenger.connected())


async def test_a_stopped_peer_does_not_answer_until_it_goes_on(other):
    process, address = other
    peer = address.rpartition("/")[2]
    async with opened(initial_peers=[address]) as network:
        await network.messenger.request(peer, b"hello")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with trio.move_on_after(1.0) as patience:
                await network.messenger.request(peer, b"anybody?")
            assert patience.cancelled_caught
        finally:
            os.kill(process.pid, signal.SIGCONT)

        with trio.fail_after(PATIENCE_S):
            assert await network.messenger.request(peer, b"again") == b"again"


async def test_a_stopped_peer_holds_up_neither_the_loop_nor_leaving(other):
    process, address = other
    peer = address.rpartition("/")[2]
    try:
        with trio.fail_after(PATIENCE_S):
            async with opened() as friend, opened(initial_peers=[address]) as network:
                await network.messenger.request(peer, b"hello")
                network.messenger.add_addresses(friend.peer_id, friend.messenger.addresses())
                os.kill(process.pid, signal.SIGSTOP)
                async with trio.open_nursery() as nursery:
                    # more than all buffers in between take
                    nursery.start_soon(_try, network, peer, bytes(30 << 20))
                    for n in range(20):
                        assert await network.messenger.request(friend.peer_id, b"%d" % n) == b"%d" % n
                    nursery.cancel_scope.cancel()
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def _try(network, peer, body):
    with contextlib.suppress(UnreachableError):
        await network.messenger.request(peer, body, priority=Priority.ROUND)
