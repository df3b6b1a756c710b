"""Which peer goes on with a unit whose owner is gone, and which of two owners is right.

A peer that stands by asks the living members what they hold before it takes over. One of them owns the unit -> it stays as it is.
Another one stands by with a better claim -> that one takes over. A claim is the better one with the later version, then the
higher term, then the larger name: all that compare the same claims come to the same answer. So where a network fell into two
parts that both went on, the unit of the part that made more steps prevails.
"""

from collections.abc import Mapping

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import UnitHeld

Claim = tuple[int, int, PeerId]


def claim_of(peer: PeerId, held: UnitHeld) -> Claim:
    """How strong it is; of two, the larger one prevails."""
    return held.version, held.term, peer


def takes_over(me: PeerId, mine: UnitHeld, others: Mapping[PeerId, UnitHeld]) -> bool:
    """Whether this peer, which stands by, becomes the owner now."""
    if any(held.role == "owner" for held in others.values()):
        return False
    rivals = [claim_of(peer, held) for peer, held in others.items() if held.role == "standby"]
    return all(claim_of(me, mine) > rival for rival in rivals)


def owner_that_prevails(me: PeerId, mine: UnitHeld, others: Mapping[PeerId, UnitHeld]) -> PeerId:
    """Which of several peers that all believe to own a unit is right; `me` is one of them."""
    owners = {peer: claim_of(peer, held) for peer, held in others.items() if held.role == "owner"}
    return max({**owners, me: claim_of(me, mine)}.items(), key=lambda one: one[1])[0]
