"""In which order the addresses of a peer are tried, by where this machine is.

Addresses that lead to a machine or a network that this one is in go first, then those that anybody can dial, then circuits. A
private address of some other network goes last: in most homes it belongs to somebody else, or to nobody, and only where networks
are routed to each other (a campus, a VPN) does it lead anywhere.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_address

from legion_p2p.core.addresses import is_circuit

Network = IPv4Network | IPv6Network


class Nearness(IntEnum):
    """The lower, the sooner it is tried."""

    HERE = 0
    """On this machine."""
    BESIDE = 1
    """In a network that this machine is in."""
    PUBLIC = 2
    CIRCUIT = 3
    BEHIND = 4
    """Private, in a network that this machine is not in."""
    NEVER = 5
    """Cannot lead to another machine from here."""


def nearness(address: str, networks: Iterable[Network], same_machine: bool) -> Nearness:
    """Of a multiaddr without a peer id. `networks`: those that this machine is in; `same_machine`: the peer is on this one."""
    if is_circuit(address):
        return Nearness.CIRCUIT
    family, host = address.split("/")[1:3]
    if family.startswith("dns"):
        return Nearness.PUBLIC if host != "localhost" else Nearness.HERE if same_machine else Nearness.NEVER
    ip = ip_address(host)
    if ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255" or (ip.version == 6 and ip.is_link_local):
        return Nearness.NEVER  # IPv6 link-local needs a zone
    if ip.is_loopback:
        return Nearness.HERE if same_machine else Nearness.NEVER
    if any(ip.version == network.version and ip in network for network in networks):
        return Nearness.BESIDE
    return Nearness.PUBLIC if ip.is_global else Nearness.BEHIND


def dial_order(addresses: Sequence[str], hosts: Iterable[str], networks: Sequence[Network]) -> tuple[tuple[str, Nearness], ...]:
    """The addresses worth trying, the best first. `hosts`: the IP addresses of this machine.

    Loopback addresses are tried of a peer on this machine: one that names an address of this machine, or loopback alone.
    """
    named = {address.split("/")[2] for address in addresses if not is_circuit(address)}
    same_machine = not named.isdisjoint(hosts) or named <= {"127.0.0.1", "::1", "localhost"}
    ranked = [(address, nearness(address, networks, same_machine)) for address in addresses]
    return tuple(sorted((entry for entry in ranked if entry[1] is not Nearness.NEVER), key=lambda entry: entry[1]))
