"""One shard at one peer, and at several: what is done first, and that nothing is lost or counted twice."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.chain import Chain, Step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import Contribution, RoundConfig, Verdict
from legion_p2p.core.shard import follower_events, owner, push, push_events
from legion_p2p.core.shard.life import ShardLife
from legion_p2p.core.shard.life_events import Advanced, Owners
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader
from tests.unit.shard.chains import advance, chain_at, mark

ME, A, B = (PeerId(name) for name in ("me", "a", "b"))
ALL = RoundConfig(quorum=1.0)


def life_of(peer: PeerId, chain: Chain | None = None) -> ShardLife:
    return ShardLife(peer, chain or chain_at(0), ALL, announce_s=2.0)


def owning_life() -> ShardLife:
    life = life_of(ME)
    life.owner.handle(owner.Expected((A,)), 0.0)
    life.handle(Owners(Ownership(ME, None)), 0.0)
    assert life.poll() == owner.Claim()
    life.owner.handle(owner.Claimed(), 0.0)
    life.done()
    return life


def test_ownership_comes_before_fetching_and_fetching_before_closing() -> None:
    life = owning_life()
    life.owner.push(Contribution(A, 0, 0, 1, 1.0), 1.0)
    life.follower.handle(follower_events.Announced(B, mark(4)), 1.0)
    life.handle(Owners(Ownership(B, None)), 1.0)

    jobs = []
    for _ in range(2):
        jobs.append(life.poll())
        life.owner.release()
        life.done()

    assert jobs == [owner.Release(), follower_events.Fetch(B)]


def test_a_round_closes_only_after_what_others_hold_was_fetched() -> None:
    life = owning_life()
    life.owner.push(Contribution(A, 0, 0, 1, 1.0), 1.0)
    life.follower.handle(follower_events.Announced(B, mark(4)), 1.0)

    assert life.poll() == follower_events.Fetch(B) and life.poll() is None
    assert life.next_deadline() is None, "nothing else is done meanwhile"
    life.follower.handle(follower_events.FetchEnded(B, came_forward=False), 2.0)
    life.done()

    assert life.poll() == owner.Close()


def test_this_peers_own_changes_wait_for_nothing() -> None:
    life = owning_life()
    life.follower.handle(follower_events.Announced(B, mark(4)), 1.0)
    assert life.poll() == follower_events.Fetch(B)

    life.push.handle(push_events.Offered("change", 0, 1, 1), 1.0)
    assert isinstance(life.poll(), push_events.Compress)
    life.push.handle(push_events.CompressDone("body"), 1.0)
    life.handle_timeout(1.0)

    assert isinstance(life.poll(), push_events.Enter)


def test_it_wants_to_be_asked_again_at_the_earliest_of_its_deadlines() -> None:
    life = life_of(ME)
    life.handle(Owners(Ownership(A, None)), 0.0)
    life.follower.handle(follower_events.Announced(A, mark(1)), 1.0)
    assert life.next_deadline() == 3.0

    life.push.handle(push_events.Offered("change", 0, 1, 1), 2.0)
    life.poll()
    life.push.handle(push_events.CompressDone("body"), 2.0)

    assert life.next_deadline() == 2.0


class Swarm:
    """Several peers' machines, and messages between them that are delayed, lost and overtaken. One chain: whoever takes the shard
    over knows every version that was made."""

    def __init__(self, names: str) -> None:
        self.now = 0.0
        self.lives = {PeerId(name): life_of(PeerId(name)) for name in names}
        self.updates: list[UpdateHeader] = []
        self.on_the_way: list[tuple[PeerId, PeerId, object]] = []
        self.offered: Counter[PeerId] = Counter()
        self.settled: Counter[PeerId] = Counter()
        for life in self.lives.values():
            life.owner.handle(owner.Expected(tuple(self.lives)), 0.0)
        self.own(PeerId(names[0]))

    def own(self, peer: PeerId) -> None:
        for life in self.lives.values():
            life.handle(Owners(Ownership(peer, None)), self.now)
        self.work()

    def offer(self, peer: PeerId) -> None:
        life = self.lives[peer]
        if life.push.is_idle:
            self.offered[peer] += 1
            life.push.handle(push_events.Offered("change", life.chain.version, 1, 1), self.now)
            self.work()

    def deliver(self, at: int) -> None:
        sender, target, message = self.on_the_way.pop(at % len(self.on_the_way))
        life = self.lives[target]
        if isinstance(message, push_events.Packed):
            self.on_the_way.append((target, sender, self.answer(life, sender, message)))
        elif isinstance(message, UpdateHeader):
            self.take(life, message)
        else:
            life.push.handle(message, self.now)  # type: ignore[arg-type]
        self.work()

    def answer(self, life: ShardLife, sender: PeerId, packed: push_events.Packed) -> push_events.Event:
        if life.chain.includes(sender, packed.seq):
            return push_events.Accepted(packed.seq, life.chain.version, included=True)
        verdict = life.owner.push(Contribution(sender, packed.seq, packed.version, 1, self.now), self.now)
        if verdict is None:
            return push_events.Redirected(packed.seq, None)
        return push_events.Accepted(packed.seq, life.chain.version, verdict is Verdict.INCLUDED)

    def take(self, life: ShardLife, header: UpdateHeader) -> None:
        step = life.chain.judge(header)
        if step is Step.APPLY:
            self.apply(life, header)
        elif step is Step.BEHIND:
            life.follower.handle(follower_events.Shown(PeerId(header.owner), proved=True), self.now)

    def apply(self, life: ShardLife, header: UpdateHeader, *, followed: bool = True) -> None:
        life.chain.applied(header, Update(b"", b"", b""))
        newest = life.chain.newest(life.push._me)
        life.handle(Advanced(header.version, newest, header.included, followed), self.now)

    def catch_up(self, life: ShardLife) -> None:
        for header in self.updates[life.chain.version :]:
            self.apply(life, header)

    def work(self) -> None:
        for peer, life in self.lives.items():
            life.handle_timeout(self.now)
            while (effect := life.poll()) is not None:
                self.carry_out(peer, life, effect)
                life.handle_timeout(self.now)

    def carry_out(self, peer: PeerId, life: ShardLife, effect: object) -> None:
        match effect:
            case push_events.Compress():
                life.push.handle(push_events.CompressDone("body"), self.now)
            case push_events.SendPush(target, packed):
                self.on_the_way.append((peer, target, packed))
            case push_events.Enter(packed):
                life.push.handle(self.answer(life, peer, packed), self.now)
            case push_events.Settle(failure):
                assert failure is None
                self.settled[peer] += 1
            case push_events.Ask(source):
                life.follower.handle(follower_events.Shown(source), self.now)
            case follower_events.Fetch(source):
                before = life.chain.version
                self.catch_up(life)
                life.follower.handle(follower_events.FetchEnded(source, life.chain.version > before), self.now)
                life.done()
            case owner.Claim():
                self.catch_up(life)
                life.owner.handle(owner.Claimed(), self.now)
                life.done()
            case owner.Release():
                life.owner.release()
                life.push.handle(push_events.RoundGivenUp(), self.now)
                life.owner.handle(owner.Released(), self.now)
                life.done()
            case owner.Close():
                self.close(peer, life)
                life.done()

    def close(self, peer: PeerId, life: ShardLife) -> None:
        closed = life.owner.close(self.now)
        assert closed is not None and life.chain.version == len(self.updates)
        included = tuple(Inclusion(c.peer, c.seq) for c in closed.contributions)
        scratch = Chain(life.chain.version, life.chain.digest, 1 << 20)
        header = advance(scratch, peer, included)
        self.updates.append(header)
        self.apply(life, header, followed=False)
        self.on_the_way += [(peer, send.peer, header) for send in life.owner.publish(header.version, tuple(self.lives))]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.work()


STEPS = st.one_of(
    st.tuples(st.just("offer"), st.integers(0, 2)),
    st.tuples(st.just("deliver"), st.integers(0, 20)),
    st.tuples(st.just("lose"), st.integers(0, 20)),
    st.tuples(st.just("own"), st.integers(0, 2)),
    st.tuples(st.just("time"), st.sampled_from([0.1, 1.0, 11.0])),
)


@given(st.lists(STEPS, max_size=60))
def test_in_any_order_of_events_each_contribution_comes_into_one_update_and_is_settled_once(steps) -> None:
    swarm = Swarm("abc")
    names = list(swarm.lives)

    for kind, n in steps:
        match kind:
            case "offer":
                swarm.offer(names[n])
            case "own":
                swarm.own(names[n])
            case "time":
                swarm.pass_time(n)
            case _ if swarm.on_the_way:
                if kind == "deliver":
                    swarm.deliver(n)
                else:
                    swarm.on_the_way.pop(n % len(swarm.on_the_way))
    for life in swarm.lives.values():  # the lost requests of a push end by their deadline
        if life.push.state is push.PushState.SENT and life.push.packed is not None:
            life.push.handle(push_events.Unanswered(life.push.packed.seq), swarm.now)
    for _ in range(40):
        for name in names:
            swarm.offer(name) if not swarm.offered[name] else None
        while swarm.on_the_way:
            swarm.deliver(0)
        for life in swarm.lives.values():
            swarm.catch_up(life)
        swarm.pass_time(2.0)
        training = tuple(name for name in names if not swarm.lives[name].push.is_idle)
        for life in swarm.lives.values():
            life.owner.handle(owner.Expected(training), swarm.now)
        swarm.work()

    included = Counter((i.peer, i.seq) for header in swarm.updates for i in header.included)
    assert set(included.values()) == {1}, "none counts twice"
    assert Counter(peer for peer, _ in included) == swarm.offered, "none is lost"
    assert swarm.settled == swarm.offered, "each is settled once"
    assert len({header.version for header in swarm.updates}) == len(swarm.updates)
