"""Who owns each unit of a sharded run, and who stands by: balanced by bytes, because owners hold what nobody else does.

The strongest claim by rendezvous hashing owns, as in other runs (core/rendezvous.py), as long as that peer has room: of what all
own it takes at most its share and half of the largest unit. So few peers and few units are not at the mercy of chance, and a
peer that comes or goes moves little more than its share. Every member that may own counts the same.
"""

from collections.abc import Mapping, Sequence

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership, log_hashes


def place_units(run_id: str, region: str, sizes: Sequence[int], weights: Mapping[PeerId, float]) -> tuple[Ownership, ...]:
    """Owner and standby of each unit among the members of positive weight. `sizes`: elements of each unit."""
    peers = sorted(peer for peer, weight in weights.items() if weight > 0)
    if not peers:
        return (Ownership(None, None),) * len(sizes)
    hashes = [log_hashes(run_id, region, len(sizes), peer) for peer in peers]
    share, slack = sum(sizes) / len(peers), max(sizes) / 2
    owned, held = [0] * len(peers), [0] * len(peers)
    placed: dict[int, Ownership] = {}
    for unit in sorted(range(len(sizes)), key=lambda unit: (-sizes[unit], unit)):
        size = sizes[unit]
        ranked = sorted(range(len(peers)), key=lambda peer: (-1 / hashes[peer][unit], peers[peer]), reverse=True)
        owner = _first_with_room(ranked, owned, size, share + slack)
        owned[owner] += size
        held[owner] += size
        others = [peer for peer in ranked if peer != owner]
        if not others:
            placed[unit] = Ownership(peers[owner], None)
            continue
        standby = _first_with_room(others, held, size, 2 * share + slack)
        held[standby] += size
        placed[unit] = Ownership(peers[owner], peers[standby])
    return tuple(placed[unit] for unit in range(len(sizes)))


def _first_with_room(ranked: Sequence[int], load: Sequence[int], size: int, most: float) -> int:
    """The first that has room; where none has, the one with the least load."""
    for peer in ranked:
        if load[peer] + size <= most:
            return peer
    return min(ranked, key=lambda peer: load[peer])
