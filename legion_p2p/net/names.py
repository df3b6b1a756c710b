"""Names of the DNS: asking for them, and connecting to any of the addresses that one has.

Addresses are asked of the operating system, which knows /etc/hosts and the names of a LAN as well. Nothing is kept: a name whose
address has changed is right at the next attempt.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, zip_longest
from typing import Protocol

import dns.asyncresolver
import dns.exception
import trio

from legion_p2p.core.dnsaddr import DnsaddrSearch, name_of
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import NetworkError
from legion_p2p.net.limits import DIAL_STAGGER_S

FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
MAX_HOSTS = 8  # of one name that are tried: a service with more has others that work
TEXT_TIMEOUT_S = 4.0  # for the texts of one name: a name server that is there answers in less than a second


class Names(Protocol):
    """Who answers questions about names."""

    async def hosts(self, name: str, family: int) -> Sequence[str]:
        """The IP addresses of a name, the preferred ones first. Raises: OSError."""
        ...

    async def texts(self, name: str) -> Sequence[str]:
        """Its text records; none where it has none. Raises: NetworkError."""
        ...


class SystemNames:
    """The names as this machine is set up to ask for them."""

    def __init__(self, resolver: Callable[[], dns.asyncresolver.Resolver] = dns.asyncresolver.Resolver) -> None:
        """`resolver`: made for each question, because the name servers are others in another network."""
        self._resolver = resolver

    async def hosts(self, name: str, family: int) -> Sequence[str]:
        found = await trio.socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
        return tuple(str(address[0]) for *_, address in found)

    async def texts(self, name: str) -> Sequence[str]:
        try:
            answer = await self._resolver().resolve(name, "TXT", lifetime=TEXT_TIMEOUT_S, raise_on_no_answer=False)
        except dns.exception.DNSException as failed:
            raise NetworkError(f"the texts of {name} cannot be looked up: {failed or type(failed).__name__}") from failed
        records = answer.rrset or ()
        return tuple(b"".join(record.strings).decode(errors="replace") for record in records)


Connect = Callable[[str, int], Awaitable[trio.SocketStream]]
"""Connects to an IP address and a port. Raises: OSError."""


async def resolve(names: Names, protocol: str, host: str) -> list[str]:
    """The IP addresses to try, of a host in a multiaddr; at least one. Raises: OSError."""
    if protocol not in FAMILIES:
        return [host]
    found = list(dict.fromkeys(await names.hosts(host, FAMILIES[protocol])))
    if not found:
        raise OSError(f"{host} has no address")
    return _alternating(found)[:MAX_HOSTS]


async def open_stream(
    names: Names, protocol: str, host: str, port: int, connect: Connect = trio.open_tcp_stream
) -> trio.SocketStream:
    """Connect to a host, or to the first address of a name that answers; each gets a head start over the next.

    Raises: OSError, that of the preferred address.
    """
    chosen = await resolve(names, protocol, host)
    failures: dict[str, OSError] = {}
    won: list[trio.SocketStream] = []
    async with trio.open_nursery() as race:

        async def attempt(ip: str, lost: trio.Event) -> None:
            try:
                won.append(await connect(ip, port))
                race.cancel_scope.cancel()
            except OSError as failed:
                failures[ip] = failed
                lost.set()

        for ip in chosen:
            lost = trio.Event()
            race.start_soon(attempt, ip, lost)
            with trio.move_on_after(DIAL_STAGGER_S):
                await lost.wait()
    for late in won[1:]:  # two that were connected in the same instant
        await trio.aclose_forcefully(late)
    if won:
        return won[0]
    raise failures[chosen[0]]


def _alternating(hosts: Sequence[str]) -> list[str]:
    """Both families in turn, beginning with that of the first: where one of them leads nowhere, the other is tried soon."""
    first = [host for host in hosts if (":" in host) == (":" in hosts[0])]
    second = [host for host in hosts if host not in first]
    return [host for host in chain.from_iterable(zip_longest(first, second)) if host is not None]


async def addresses_by_texts(names: Names, host: str, peer: PeerId) -> tuple[str, ...]:
    """What `/dnsaddr/HOST/p2p/PEER_ID` leads to now. Raises: NetworkError, if that is nothing."""
    search = DnsaddrSearch(host, peer)
    failure: NetworkError | None = None
    while (question := search.next_question()) is not None:
        name, depth = question
        try:
            search.take(await names.texts(name_of(name)), depth)
        except NetworkError as failed:
            failure = failure or failed
    if not search.addresses:
        raise failure or NetworkError(f"the texts of {name_of(host)} name no address of {peer} that can be dialed")
    return tuple(search.addresses)
