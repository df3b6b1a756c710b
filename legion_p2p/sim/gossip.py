"""Gossip in a simulated world: one peer's end of it. The world decides which peer hears what, and when."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from legion_p2p.errors import UsageError
from legion_p2p.net.buffer import Buffer
from legion_p2p.net.limits import MAX_GOSSIP_BYTES, MAX_TOPIC_CHARS
from legion_p2p.sim.fabric import Fabric, Station


class SimGossip:
    """See services.ports.Gossip."""

    def __init__(self, world: Fabric, network: Station) -> None:
        self._world = world
        self._network = network
        self._listeners: dict[str, list[tuple[Callable[[bytes], None], Callable[[bytes], bool]]]] = {}

    async def publish(self, topic: str, data: bytes) -> None:
        _check_topic(topic)
        if len(data) > MAX_GOSSIP_BYTES:
            raise UsageError(f"message of {len(data)} bytes, limit for gossip is {MAX_GOSSIP_BYTES}")
        await trio.lowlevel.checkpoint()
        if self._network.alive and not self._network.frozen:
            self._world.mail.publish(self._network, topic, bytes(data))

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        buffer = Buffer()
        try:
            async with self.listen(topic, buffer.put):
                yield buffer.receive
        finally:
            buffer.close()

    @asynccontextmanager
    async def listen(
        self, topic: str, heard: Callable[[bytes], None], is_valid: Callable[[bytes], bool] = lambda _: True
    ) -> AsyncIterator[None]:
        _check_topic(topic)
        listener = heard, is_valid
        self._listeners.setdefault(topic, []).append(listener)
        self._world.mail.peers_changed()
        try:
            yield
        finally:
            self._listeners[topic].remove(listener)
            if not self._listeners[topic]:
                del self._listeners[topic]
            self._world.mail.peers_changed()

    def wants(self, topic: str) -> bool:
        return topic in self._listeners

    def receive(self, topic: str, data: bytes) -> None:
        listeners = tuple(self._listeners.get(topic, ()))
        if all(is_valid(data) for _, is_valid in listeners):
            for heard, _ in listeners:
                heard(data)


def _check_topic(topic: str) -> None:
    if not 0 < len(topic) <= MAX_TOPIC_CHARS:
        raise UsageError(f"topic of {len(topic)} characters, 1 to {MAX_TOPIC_CHARS} are allowed")
