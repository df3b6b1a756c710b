"""Noticing that the clock was set: by how much, and never because of a look that came late, a sleep, or a slow clock."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.clock_watch import JUMP_S, ClockWatch

DRIFT = 0.0005  # the most by which NTP slows down or speeds up a clock


def test_a_clock_that_is_set_is_noticed_once_with_its_direction() -> None:
    watch = ClockWatch(1000.0, 0.0)

    assert watch.look(1005.0, 5.0) is None
    assert watch.look(4610.0, 10.0) == 3600.0
    assert watch.look(4615.0, 15.0) is None
    assert watch.look(1020.0, 20.0) == -3600.0


def test_a_machine_that_slept_for_a_night_has_not_set_its_clock() -> None:
    watch = ClockWatch(1000.0, 0.0)

    assert watch.look(1000.0 + 8 * 3600, 8 * 3600.0) is None


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 3000.0),  # until the next look; beyond, drift itself would come to a jump
            st.floats(-DRIFT, DRIFT),
            st.one_of(st.just(0.0), st.floats(2 * JUMP_S, 1e8), st.floats(-1e8, -2 * JUMP_S)),
        )
    )
)
def test_every_jump_and_nothing_else_is_told(looks: list[tuple[float, float, float]]) -> None:
    wall, running = 1.7e9, 0.0
    watch = ClockWatch(wall, running)

    for passed_s, drift, jump_s in looks:
        wall, running = wall + passed_s * (1 + drift) + jump_s, running + passed_s
        told = watch.look(wall, running)
        assert (told is not None) == bool(jump_s)
        assert told is None or abs(told - jump_s) < JUMP_S
