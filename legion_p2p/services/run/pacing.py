"""How many local steps this peer does and which of the run's codecs it uses, by its speed, its connection, the run's progress."""

from functools import lru_cache

import msgspec

from legion_p2p.core.adapt import Choice, CodecCost, Load, choose, recipients
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.pace import at_least, local_steps, ramped, run_step, while_joined
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.observe.events import Events
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor import codec

LEAST_STRETCH = 1.2  # what lies below is within the error of the measurement
LAST_PUSH_S = 1.0  # that all last pushes together may take to send
GUESSED_BPS = 10e6  # while nothing was measured
NO_LOAD = Load(0, 0)


class Pacer:
    """Decides again whenever something is known that may change the choice."""

    def __init__(self, rounds: RoundSpec, shards: ShardService, events: Events) -> None:
        self.local_steps = ramped(rounds.ramp_from, rounds.local_steps, rounds.ramp_steps, 0)
        self.run_step = 0
        """The step of the run, by all that was known at the last decision."""
        self._rounds = rounds
        self._shards = shards
        self._events = events
        self._choice = Choice(rounds.push_codec, rounds.update_codec)
        self._is_last = False

    def update(self, step: int, step_s: float, others: "list[Announcement]", bandwidth: Bandwidth) -> None:
        """`step` is that of the run, `step_s` this peer's own; `others` are the announcements of all that count as members."""
        rounds = self._rounds
        theirs = [a.run_step for a in others if a.ready]
        self.run_step = run_step(step, theirs)
        if rounds.synchronous:  # all wait for all: a member that did more steps in a round would count for more than its tokens
            self.local_steps = ramped(rounds.ramp_from, rounds.local_steps, rounds.ramp_steps, max([step, *theirs]))
            return
        step_times = [step_s, *(a.step_s for a in others if a.training)]
        reference = ramped(rounds.ramp_from, rounds.local_steps, rounds.ramp_steps, self.run_step)
        reference = at_least(reference, rounds.local_steps, step_times)
        least, most = min(rounds.min_local_steps, reference), max(rounds.max_local_steps, reference)
        steps = local_steps(reference, step_s, step_times[1:], least, most)
        upload_bps = bandwidth.known_upload_bps
        if upload_bps is None and not theirs:  # answers are not measured, but whoever gets them says how fast they come
            upload_bps = max((a.download_bps for a in others if a.download_bps), default=None)
            if upload_bps is None and others:
                self.local_steps = while_joined(steps, step_s, most)
                return
        load = NO_LOAD if upload_bps is None else self._load(others)  # it takes the trees of all shards; nothing follows without
        choice, self.local_steps = paced(rounds, steps, most, step_s, load, upload_bps, self._choice)
        if (choice.push_codec, choice.update_codec) != (self._choice.push_codec, self._choice.update_codec):
            self._events.emit("link.adapted", **msgspec.structs.asdict(choice), local_steps=self.local_steps)
            self._shards.states.update_codec = choice.update_codec
            if not self._is_last:
                self._shards.states.push_codec = choice.push_codec
        self._choice = choice

    def push_last(self, others: "list[Announcement]", bandwidth: Bandwidth) -> None:
        """What this peer pushes from now on is the last: what compression leaves out of it would be lost. So it goes in the
        densest codec that the connection carries in a moment.
        """
        self._is_last = True
        budget = LAST_PUSH_S * (bandwidth.known_upload_bps or GUESSED_BPS)
        costs = sorted(_costs(*self._rounds.allowed_push_codecs()), key=lambda cost: cost.bits_per_element)
        elements = self._load(others).push_elements
        now = codec.get(self._shards.states.push_codec).bits_per_element
        for cost in costs:
            if now < cost.bits_per_element and elements * cost.bits_per_element <= budget:
                self._shards.states.push_codec = cost.name

    def _load(self, others: "list[Announcement]") -> Load:
        """Updates to members that do not go first take up only what is left over: see core.contribution. Where members pass
        updates on, what this peer passes on counts as well (core.forwarding)."""
        owned = {shard: self._shards.plan.size(shard) for shard in self._shards.owned()}
        here = [a for a in others if a.region == self._shards.region]
        followers = [peer_of(a) for a in here if a.ready]
        me = self._shards.me
        n_updates = 0
        for shard, size in owned.items():
            n_first = len(self._shards.replicas[shard].chain.first([me, *followers]) - {me})
            n_updates += size * recipients(n_first, len(followers), len(here) - len(followers))
        copies = self._shards.forwarder.copies_in_a_round()
        if copies is not None:
            n_updates = round(copies * self._shards.plan.numel / self._shards.plan.n_shards)
        return Load(self._shards.plan.numel - sum(owned.values()) if followers else 0, n_updates)


def paced(
    rounds: RoundSpec, steps: int, most: int, step_s: float, load: Load, upload_bps: float | None, now: Choice
) -> tuple[Choice, int]:
    """What to send in, and how many local steps a round has then, from `steps` to `most`: see `core.adapt.choose`.

    A synchronous run changes nothing: all wait for each other in any case.
    """
    if rounds.synchronous:
        return now, steps
    pushes = _costs(rounds.push_codec, *rounds.push_codecs)
    updates = _costs(rounds.update_codec, *rounds.update_codecs)
    choice = choose(pushes, updates, load, steps * step_s, upload_bps, now, most / steps)
    if choice.stretch < LEAST_STRETCH:
        choice = msgspec.structs.replace(choice, stretch=1.0)
    return choice, min(round(steps * choice.stretch), most)


@lru_cache(maxsize=64)
def _costs(*names: str) -> tuple[CodecCost, ...]:
    return tuple(CodecCost(name, codec.get(name).bits_per_element) for name in dict.fromkeys(names))
