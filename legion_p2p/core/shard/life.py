"""One shard at one peer: its machines, asked in turn.

Bringing this peer's own changes to the owner goes on all the time. Beside that, one thing is done at a time, in this order:

    ownership changed     -> take the shard over, or hand it over
    somebody is ahead     -> fetch the updates in between, or the whole shard
    the round is complete -> combine it

Never happens: a round closes while something is being fetched, because its result should follow what others hold already; a shard
is taken over while it is still being handed over.
"""

from legion_p2p.core.chain import Chain
from legion_p2p.core.forwarding.overdue import Inquire
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import RoundConfig
from legion_p2p.core.shard import follower_events, owner, push_events
from legion_p2p.core.shard.follower import Follower
from legion_p2p.core.shard.handover import Handover
from legion_p2p.core.shard.life_events import Owners, Shared
from legion_p2p.core.shard.owner import Owner
from legion_p2p.core.shard.provisional import Provisional
from legion_p2p.core.shard.push import PushQueue, PushState
from legion_p2p.core.shard.stall import Stalled, StallWatch

Effect = Inquire | push_events.Effect | Stalled | follower_events.Fetch | owner.Effect
Job = follower_events.Fetch | owner.Effect
"""What is done one at a time."""


class ShardLife:
    """Composes the machines of one shard."""

    def __init__(self, me: PeerId, chain: Chain, config: RoundConfig, announce_s: float) -> None:
        """`announce_s`: between two announcements of a member."""
        self.chain = chain
        self.provisional = Provisional(chain)
        self.push = PushQueue(me, chain.version, chain.newest(me))
        self.follower = Follower(me, chain, announce_s)
        self.owner = Owner(me, chain, config)
        self.stall = StallWatch(me, config, self.owner.pace)
        self.handover = Handover(me)
        self.doing: Job | None = None

    def handle(self, event: Shared, now: float) -> None:
        """Take in what concerns all machines. What concerns one is told to it alone."""
        self.push.handle(event, now)
        self.owner.handle(event, now)
        self.follower.handle(event, now)
        self.stall.handle(event, now)
        if isinstance(event, Owners):
            self.handover.handle(event, now)

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        self.push.handle_timeout(now)
        self.owner.handle_timeout(now)
        self.follower.handle_timeout(now)
        is_held = self.push.state is PushState.HELD
        self.stall.look(self.push.packed is not None, now, in_transit=not is_held or self.follower.is_behind)

    def poll(self) -> Effect | None:
        """The next thing to do; None when there is nothing, or it has to wait until `done`."""
        effect = self.push.poll() or self.stall.poll() or self.follower.poll_inquiry()
        if effect is not None or self.doing is not None:
            return effect
        job: Job | None = None if self.owner.has_to_change else self.follower.poll()
        self.doing = self.owner.poll() if job is None else job
        return self.doing

    def done(self) -> None:
        """The last job has been carried out."""
        self.doing = None

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None while only an event changes anything."""
        deadlines = [self.push.next_deadline(), self.stall.next_deadline()]
        if self.doing is None:
            deadlines += (self.owner.next_deadline(), self.follower.next_deadline())
        return min((at for at in deadlines if at is not None), default=None)
