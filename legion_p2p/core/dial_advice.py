"""What would help against dials that failed, in words for people."""

import re
from collections.abc import Iterable, Mapping

from legion_p2p.core.addresses import is_circuit
from legion_p2p.core.dial_order import Nearness, Network, nearness

OTHER_KEY = "this peer has a network key (--network-key): the peers that it dials must have the same one, and may have none"
NO_KEY = "those peers may have a network key: ask for the file, and give it with --network-key"
MAX_ADVICE = 3  # pieces of advice in one message: the first that applies to each address, and no more than can be read


def advice(reasons: Mapping[str, str], networks: Iterable[Network], *, has_key: bool = False) -> tuple[str, ...]:
    """`reasons`: by address, why dialing it failed. `networks`: those that this machine is in. `has_key`: of a network."""
    here = tuple(networks)
    told = [_advice(address, reason, here) for address, reason in reasons.items()]
    if any(_is_of_another_network(reason, has_key) for reason in reasons.values()):
        told.insert(0, OTHER_KEY if has_key else NO_KEY)
    return tuple(dict.fromkeys(text for text in told if text))[:MAX_ADVICE]


def _is_of_another_network(reason: str, has_key: bool) -> bool:
    """What a peer that has another network key does, or one of which only one side has a key."""
    return (has_key and "closed by the other side" in reason) or ("noise" in reason and "is not spoken there" in reason)


def _advice(address: str, reason: str, networks: tuple[Network, ...]) -> str:
    _, family, host, _, port, *_ = address.split("/")
    if is_circuit(address):
        if "the relay" in reason:
            return "a relay that the address names cannot be reached: ask its peer for its present addresses"
        return "the relay answers, and has no place for that peer or lost it: ask the peer for its present addresses"
    if "has another id" in reason:
        return f"the node at {host} has another key than the address says: ask for its present address"
    if "resolved" in reason:
        return f"check the spelling of {host}, and that this machine can resolve names"
    if "refused" in reason:
        return f"nothing listens on port {port} of {host}: start the node, or ask which port it has"
    if re.search("network is unreachable|no route", reason):
        return f"this machine has no way to {host}: check its network" + (", or give an IPv4 address" if family == "ip6" else "")
    if "no answer" in reason and nearness(address, networks, False) is Nearness.BEHIND:
        return f"{host} is an address within another network: ask for a public address, or one that leads through a relay"
    if "no answer" in reason:
        return f"{host} may be off, or a firewall or router before it does not let port {port} through"
    return ""
