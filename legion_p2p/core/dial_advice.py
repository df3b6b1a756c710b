"""What would help against dials that failed, in words for people."""

import re
from collections.abc import Iterable, Mapping

from legion_p2p.core.addresses import is_circuit
from legion_p2p.core.dial_order import Nearness, Network, nearness

MAX_ADVICE = 3  # pieces of advice in one message: the first that applies to each address, and no more than can be read


def advice(reasons: Mapping[str, str], networks: Iterable[Network]) -> tuple[str, ...]:
    """`reasons`: by address, why dialing it failed. `networks`: those that this machine is in."""
    here = tuple(networks)
    told = (_advice(address, reason, here) for address, reason in reasons.items())
    return tuple(dict.fromkeys(text for text in told if text))[:MAX_ADVICE]


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
