"""Ports for tests that must name one before anybody listens there."""

import random
import socket

BELOW_THE_SYSTEMS_OWN = range(12_000, 30_000)
"""Linux, macOS and Windows give higher ones to whoever names none: no other test takes these in the meantime."""

_random = random.SystemRandom()


def free_port() -> int:
    """One that nobody has at this moment, and that nobody gets by chance."""
    while True:
        port = _random.choice(BELOW_THE_SYSTEMS_OWN)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def free_ports(n: int) -> list[int]:
    """Several, in order."""
    found: set[int] = set()
    while len(found) < n:
        found.add(free_port())
    return sorted(found)
