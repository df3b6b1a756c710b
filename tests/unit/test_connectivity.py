"""What a peer notices of its own network: decisions only, in made-up time."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.connectivity import (
    AddressesChanged,
    CameBack,
    Change,
    Connectivity,
    ConnectivityConfig,
    ConnectivityWatch,
    Quiet,
    Sight,
    Slept,
    WentAway,
)

CONFIG = ConnectivityConfig(quiet_s=5.0, patience_s=5.0, slept_s=5.0, stopped_s=15.0)
HOME = frozenset({"192.168.1.5", "2001:db8::5"})


class World:
    """A peer's surroundings, that it looks at once a second."""

    def __init__(self) -> None:
        self.now = self.running_on = 100.0
        self.hosts = HOME
        self.received_bytes = 0
        self.n_connections = 3
        self.watch = ConnectivityWatch(self.sight(), CONFIG)

    def sight(self) -> Sight:
        return Sight(
            now=self.now, running_on=self.running_on, hosts=self.hosts, received_bytes=self.received_bytes,
            n_connections=self.n_connections,
        )  # fmt: skip

    def pass_s(self, seconds: int, received_bytes: int = 0) -> list[Change]:
        """So many looks; each finds so many bytes more."""
        changes: list[Change] = []
        for _ in range(seconds):
            self.now += 1.0
            self.running_on += 1.0
            self.received_bytes += received_bytes
            changes += self.watch.look(self.sight())
        return changes


def test_a_peer_that_hears_others_notices_nothing():
    world = World()

    assert world.pass_s(3600, received_bytes=1) == []
    assert world.watch.state is Connectivity.HEARING


def test_a_peer_without_connections_is_not_cut_off():
    world = World()
    world.n_connections = 0

    assert world.pass_s(3600) == []


def test_after_some_silence_the_others_are_asked_and_an_answer_ends_it():
    world = World()

    assert world.pass_s(4) == []
    assert world.pass_s(1) == [Quiet()]
    assert world.pass_s(4) == []
    assert world.pass_s(1, received_bytes=12) == []
    assert world.watch.state is Connectivity.HEARING


def test_a_peer_that_nobody_answers_is_cut_off_within_ten_seconds():
    world = World()

    changes = world.pass_s(10)

    assert changes == [Quiet(), WentAway(10.0)]
    assert world.pass_s(60) == []


def test_a_cut_off_peer_whose_connections_were_given_up_stays_so_until_something_arrives():
    world = World()
    world.pass_s(10)
    world.n_connections = 0

    assert world.pass_s(50) == []
    assert world.watch.state is Connectivity.AWAY
    assert world.pass_s(1, received_bytes=40) == [CameBack(61.0)]
    assert world.pass_s(4) == []


def test_a_machine_that_slept_is_told_from_a_process_that_was_stopped():
    world = World()
    world.running_on += 180

    assert world.pass_s(1) == [Slept(181.0, is_machine=True)]

    world.now += 20
    world.running_on += 20

    assert world.pass_s(1) == [Slept(21.0, is_machine=False)]


def test_a_busy_machine_looks_late_without_having_slept():
    world = World()
    world.now += 10.0
    world.running_on += 10.0

    assert world.pass_s(1, received_bytes=1) == []


def test_nobody_is_blamed_for_silence_while_this_peer_stood_still():
    world = World()
    world.pass_s(4)
    world.now += 600
    world.running_on += 600

    assert world.pass_s(1) == [Slept(601.0, is_machine=False)]
    assert world.pass_s(4) == []
    assert world.pass_s(1) == [Quiet()]


def test_another_address_is_noticed_with_what_is_gone_and_what_is_new():
    world = World()
    world.hosts = frozenset({"10.0.0.7", "2001:db8::5"})

    assert world.pass_s(1, received_bytes=1) == [AddressesChanged(gone=("192.168.1.5",), new=("10.0.0.7",))]
    assert world.pass_s(1, received_bytes=1) == []

    world.hosts = frozenset()

    assert world.pass_s(1, received_bytes=1) == [AddressesChanged(gone=("10.0.0.7", "2001:db8::5"), new=())]
    assert world.watch.is_cut_off

    world.hosts = HOME

    assert world.pass_s(1, received_bytes=1) == [AddressesChanged(gone=(), new=("192.168.1.5", "2001:db8::5"))]
    assert not world.watch.is_cut_off


def test_a_machine_without_addresses_whose_peers_are_all_on_it_is_not_cut_off():
    world = World()
    world.hosts = frozenset()
    world.n_connections = 0
    world.watch = ConnectivityWatch(world.sight(), CONFIG)

    assert world.pass_s(60) == []
    assert not world.watch.is_cut_off


def test_a_machine_that_wakes_up_elsewhere_has_slept_first():
    world = World()
    world.running_on += 3600
    world.hosts = frozenset({"10.0.0.7"})

    assert [type(change) for change in world.pass_s(1)] == [Slept, AddressesChanged]


steps = st.lists(
    st.tuples(st.sampled_from([1.0, 1.0, 1.0, 2.0, 30.0]), st.sampled_from([0.0, 0.0, 100.0]), st.booleans(), st.integers(0, 2)),
    max_size=200,
)


@given(steps)
def test_going_away_and_coming_back_alternate_and_silence_comes_before(steps):
    world = World()
    told: list[Change] = []
    for passed_s, slept_s, hears, n_connections in steps:
        world.now += passed_s
        world.running_on += passed_s + slept_s
        world.received_bytes += hears
        world.n_connections = n_connections
        told += world.watch.look(world.sight())

    crossings = [change for change in told if isinstance(change, WentAway | CameBack)]
    assert all(isinstance(change, WentAway) == (i % 2 == 0) for i, change in enumerate(crossings))
    for i, change in enumerate(told):
        if isinstance(change, WentAway):
            assert any(isinstance(earlier, Quiet) for earlier in told[:i])
            assert change.silent_s >= CONFIG.quiet_s + CONFIG.patience_s
