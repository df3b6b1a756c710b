"""A peer without a run, for tests of NATs: talks to others, and says in JSON lines how it reaches them and how they reach it.

Arguments: a seed for its identity, the addresses of initial peers, and after `--talk-to` the seeds of peers to send requests to;
or after `--send` the seed of one peer, and how many megabytes to send to it. Loads no torch.
"""

import json
import sys

import trio

from legion_p2p.core.identity import Identity
from legion_p2p.core.priority import Priority
from legion_p2p.core.relay_ledger import RelayLimits
from legion_p2p.errors import LegionError
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.network import Libp2pNetwork

SERVED_KEY = "reach-test"


def identity_of(seed: str) -> Identity:
    return Identity(seed.encode().ljust(32, b"."))


def say(**what: object) -> None:
    print(json.dumps({"at": round(trio.current_time(), 2), **what}), flush=True)


async def answer(peer: str, body: bytes) -> bytes:
    return body[:1000]


async def tell_own_reach(network: Libp2pNetwork) -> None:
    told = None
    while True:
        own = network.reachability.own()
        if own != told:
            told = own
            say(reach=own.reach.value, nat=own.nat.value, why=own.why, relays=len(own.relays), circuits=own.circuits,
                circuits_here=sum("/p2p-circuit" in address for address in network.addresses()))  # fmt: skip
        await trio.sleep(0.1)


async def talk(network: Libp2pNetwork, seed: str) -> None:
    """Requests without end; says each other kind of connection, and each failure after the first answer."""
    peer = identity_of(seed).peer_id
    kind, n_answers = None, 0
    while True:
        if peer not in network.messenger.connected():
            await network.discovery.find(SERVED_KEY)
        try:
            with trio.fail_after(20):
                await network.messenger.request(peer, b"x" * 1000)
        except (LegionError, trio.TooSlowError) as failed:
            say(failed=str(failed), to=seed, after=n_answers)
            await trio.sleep(0.5)
            continue
        n_answers += 1
        if n_answers % 100 == 0:
            say(still=True, to=seed, n_answers=n_answers)
        now = network.reachability.connection(peer)
        if now.kind is not kind:
            kind = now.kind
            say(kind=kind.value, to=seed, relay=now.relay, n_answers=n_answers)
        await trio.sleep(0.1)


async def send(network: Libp2pNetwork, seed: str, n_megabytes: int) -> None:
    """One request of a megabyte after the other; says how long all took, and by which way they went."""
    peer = identity_of(seed).peer_id
    while peer not in network.messenger.connected():
        await network.discovery.find(SERVED_KEY)
    await network.messenger.request(peer, b"", Priority.ROUND)
    say(sending=n_megabytes)
    began = trio.current_time()
    n_sent = 0
    while n_sent < n_megabytes:
        try:
            await network.messenger.request(peer, bytes(1_000_000), Priority.ROUND)
        except LegionError as failed:  # as a service does, it tries again
            say(failed=str(failed), to=seed, after=n_sent)
            await trio.sleep(0.5)
        else:
            n_sent += 1
    say(sent=n_megabytes, took_s=round(trio.current_time() - began, 2), kind=network.reachability.connection(peer).kind.value)


async def main(seed: str, initial: list[str], how: str, to: list[str]) -> None:
    async with open_network(identity_of(seed), initial_peers=initial, config=NetConfig(relay=RelayLimits())) as network:
        network.messenger.serve(answer)
        await network.join()
        say(joined=seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_own_reach, network)
            nursery.start_soon(network.discovery.provide, SERVED_KEY)
            if how == "--send":
                nursery.start_soon(send, network, to[0], int(to[1]))
            for other in to if how == "--talk-to" else ():
                nursery.start_soon(talk, network, other)


if __name__ == "__main__":
    own, *rest = sys.argv[1:]
    at = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    trio.run(main, own, rest[:at], "".join(rest[at : at + 1]), rest[at + 1 :])
