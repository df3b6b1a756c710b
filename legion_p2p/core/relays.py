"""Which peer represents a shard towards other regions: its owner, or a relay: a member with much upload that volunteered.

A relay holds the same reference, bit for bit, so it can tell the other region how the shard stands without a byte from the owner;
the owner gets from it only what the shard moved by. (To pass the owner's own messages on would cost it as much as sending them.)

All compute it alike, from announcements. It is decided shard by shard, by rendezvous weighted by upload, so one volunteer that
comes or goes changes only its own share. Where no peer has volunteered, or nothing was measured, every owner represents itself.
"""

import math
from collections.abc import Mapping, Sequence

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import ranking

MIN_GAIN = 4.0  # a volunteer's upload, of the owner's: below it another peer between the two would cost more than it brings


def representative_of(run_id: str, shard: int, owner: Announcement, members: Sequence[Announcement]) -> PeerId:
    """The peer that syncs with other regions about this shard. `members`: those of the owner's region."""
    weights = {peer_of(a): _steps(a.upload_bps) for a in _relays_for(owner, members)}
    ranked = ranking(f"legion/relay/{run_id}/{owner.region}/{shard}", weights)
    return ranked[0] if ranked else peer_of(owner)


def represented_share(peer: PeerId, members: Sequence[Announcement], weights: Mapping[PeerId, float]) -> float:
    """The share of its region's shards that `peer` represents, as to be expected by the weights of their owners."""
    represented = 0.0
    for owner in members:
        representatives = [peer_of(a) for a in _relays_for(owner, members)] or [peer_of(owner)]
        represented += weights.get(peer_of(owner), 0.0) * representatives.count(peer) / len(representatives)
    return represented / math.fsum(weights.values()) if weights else 0.0


def _relays_for(owner: Announcement, members: Sequence[Announcement]) -> list[Announcement]:
    if owner.relay or not owner.upload_bps:
        return []
    least = MIN_GAIN * _steps(owner.upload_bps)
    return [a for a in members if a.relay and a.ready and a.peer_id != owner.peer_id and _steps(a.upload_bps) >= least]


def _steps(upload_bps: float) -> float:
    """Rounded down to a power of two: a measurement that wavers should not change the representative."""
    return 2.0 ** math.floor(math.log2(upload_bps)) if upload_bps >= 1 else 0.0
