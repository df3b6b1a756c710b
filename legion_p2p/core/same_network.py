"""How much the members behind one network push together, in a run whose specification says `same_network = "bounded"`.

Keys cost nothing, but addresses in many networks cost something. So the pushes that an owner gets from one network (the /24 of
an IPv4 address, the /48 of an IPv6 one, as the owner sees the other end of the connection) together weigh no more than
NETWORK_PUSHES usual ones. A member behind a relay counts to the network of its relay. What members announce of themselves has no
part in it. Addresses of this machine and of private networks are not told apart: whoever has one of those is in the owner's own
LAN.

An owner numbers the networks that brought more than one push, and signs the numbers in the account of its update. So a peer that
computes the update again gets the same bits, and learns of no address. A member that is put together with others sees these as
well, and may know better: those that it sees in two networks are not both in its own. Members judge of their own network only. If
they judged of others, two liars could have an honest owner blamed: they would reach it from one network, and the rest from two.

Never happens: one network alone weighs less for it than it would otherwise; an address leaves the peer that saw it; liars that
are in no network of honest members have an owner blamed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv6Address, ip_address

from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import ConnectionKind, PeerConnection
from legion_p2p.core.reach_finder import network_of

NETWORK_PUSHES = 2.0  # usual pushes: a household with two machines loses nothing

Connection = Callable[[PeerId], PeerConnection]
"""What is known of the connection to a peer."""


def network_at(peer: PeerId, connection: Connection) -> str:
    """The network that a peer's pushes come from; empty where that is not known, or says nothing."""
    seen = connection(peer)
    if seen.kind is not ConnectionKind.RELAYED:
        return _public_network(seen.host)
    if seen.relay is None:
        return ""
    return _public_network(connection(seen.relay).host) or f"relay {seen.relay}"


def numbered(peers: Sequence[PeerId], connection: Connection) -> tuple[int, ...]:
    """Of each peer the number of its network, from 1 on; 0 where no other of them is in it."""
    networks = [network_at(peer, connection) for peer in peers]
    n_in = Counter(networks)
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(network, len(numbers) + 1) if network and n_in[network] > 1 else 0 for network in networks)


def shared_weights(weights: Sequence[float], numbers: Sequence[int]) -> tuple[float, ...]:
    """The weights of pushes, less where many come from one network."""
    if not any(numbers) or not weights:
        return tuple(weights)
    limit = NETWORK_PUSHES * sorted(weights)[(len(weights) - 1) // 2]
    total: dict[int, float] = {}
    for weight, number in zip(weights, numbers, strict=True):
        total[number] = total.get(number, 0.0) + weight
    return tuple(
        weight * min(1.0, limit / total[number]) if number else weight for weight, number in zip(weights, numbers, strict=True)
    )


def contradicted(me: PeerId, numbers: Mapping[PeerId, int], connection: Connection) -> tuple[PeerId, PeerId] | None:
    """Two peers that are said to be in one network with this one, and that it sees in two; None where there are none.

    Relays are not compared, nor addresses of different kinds: a machine may have one of each.
    """
    mine = numbers.get(me, 0)
    if not mine:
        return None
    first: dict[bool, tuple[PeerId, str]] = {}
    for peer, number in numbers.items():
        seen = connection(peer)
        network = "" if seen.kind is ConnectionKind.RELAYED else _public_network(seen.host)
        if number != mine or peer == me or not network:
            continue
        other, others = first.setdefault(":" in network, (peer, network))
        if others != network:
            return other, peer
    return None


def included_numbers(peers: Iterable[str], numbers: Sequence[int]) -> dict[PeerId, int]:
    """The numbers in an account, by member."""
    return dict(zip(map(PeerId, peers), numbers, strict=False))


def _public_network(host: str) -> str:
    if not host:
        return ""
    ip = ip_address(host.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return network_of(str(ip)) if ip.is_global else ""
