"""What an owner that stops being one gives to the next one, and when that is done."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.shard.handover import (
    AGAIN_S,
    ATTEMPTS_OF_ONE_THAT_STAYS,
    MAX_ATTEMPTS,
    Begun,
    Confirm,
    Effect,
    Ended,
    Give,
    Given,
    Handover,
    HandoverState,
    Holds,
    Leaving,
    Look,
    Looked,
    NotGiven,
)
from legion_p2p.core.shard.life_events import Owners

ME, NEXT, OTHER = (PeerId(name) for name in ("me", "next", "other"))


def owned_by(owner: PeerId | None) -> Owners:
    return Owners(Ownership(owner, None))


def begun(*parts: str, owner: PeerId | None = NEXT, leaving: bool = False) -> Handover:
    machine = Handover(ME)
    machine.handle(owned_by(owner), 0.0)
    if leaving:
        machine.handle(Leaving(), 0.0)
    machine.handle(Begun(7, parts), 0.0)
    return machine


def after(machine: Handover, *events: object, now: float = 1.0) -> Effect | None:
    """What is to be done last, after these events, each an answer to the effect before."""
    effect = machine.poll()
    for event in events:
        machine.handle(event, now)
        effect = machine.poll()
    return effect


def test_parts_are_given_one_at_a_time_what_matters_most_first() -> None:
    machine = begun("residual", "momentum")

    assert after(machine) == Give(NEXT, "residual")
    machine.handle(Given(), 1.0)
    assert machine.poll() == Give(NEXT, "momentum") and machine.left == ("momentum",)
    machine.handle(Given(), 2.0)

    assert machine.poll() == Ended(NEXT, ()) and not machine.is_under_way


def test_with_nothing_to_give_it_is_over_at_once() -> None:
    assert after(begun()) == Ended(NEXT, ())


def test_a_peer_that_leaves_asks_whether_the_next_owner_has_the_newest_version() -> None:
    machine = begun("residual", leaving=True)

    assert after(machine, Given()) == Confirm(NEXT)
    machine.handle(Holds(6), 1.0)
    assert machine.poll() == Look(NEXT)
    assert after(machine, Looked()) is None and machine.next_deadline() == 1.0 + AGAIN_S
    machine.handle_timeout(1.0 + AGAIN_S)
    assert machine.poll() == Confirm(NEXT), "what has arrived is not given again"

    assert after(machine, Holds(7)) == Ended(NEXT, ())


@pytest.mark.parametrize("owner", [None, ME])
def test_where_no_other_peer_owns_the_shard_it_is_over(owner: PeerId | None) -> None:
    ended = after(begun("residual", owner=owner))

    assert isinstance(ended, Ended) and ended.left == ("residual",) and ended.target == owner and ended.reason


def test_after_a_failure_the_rest_goes_to_whoever_owns_the_shard_then() -> None:
    machine = begun("residual", "momentum", leaving=True)
    after(machine, Given(), NotGiven("no answer"))

    machine.handle(owned_by(OTHER), 1.0)
    after(machine, Looked())
    machine.handle_timeout(1.0 + AGAIN_S)

    assert machine.poll() == Give(OTHER, "momentum")


@pytest.mark.parametrize("may_change", [False, True])
def test_a_peer_that_stays_tries_again_only_where_the_other_side_may_change_its_mind(may_change: bool) -> None:
    effect = after(begun("residual"), NotGiven("no", may_change))

    assert effect == (Look(NEXT) if may_change else Ended(NEXT, ("residual",), "no"))


@pytest.mark.parametrize(("leaving", "attempts"), [(False, ATTEMPTS_OF_ONE_THAT_STAYS + 1), (True, MAX_ATTEMPTS)])
def test_it_gives_up_in_the_end(leaving: bool, attempts: int) -> None:
    machine, now, n = begun("residual", leaving=leaving), 0.0, 0
    while not isinstance(effect := machine.poll(), Ended):
        if isinstance(effect, Give):
            n += 1
            machine.handle(NotGiven("no", may_change=True), now)
        elif isinstance(effect, Look):
            machine.handle(Looked(), now)
        else:
            now += AGAIN_S
            machine.handle_timeout(now)

    assert n == attempts and effect.left == ("residual",) and effect.reason == "no"


def test_another_one_may_begin_after_it_ended() -> None:
    machine = begun("residual")
    after(machine, NotGiven("no"))

    machine.handle(Begun(9, ("momentum",)), 5.0)

    assert machine.poll() == Give(NEXT, "momentum")


def test_answers_to_what_was_not_asked_change_nothing() -> None:
    machine = Handover(ME)
    for event in (Given(), Holds(3), NotGiven("no"), Looked()):
        machine.handle(event, 0.0)

    assert machine.state is HandoverState.IDLE and machine.poll() is None


ANSWERS = st.sampled_from(
    [Given(), Holds(6), Holds(7), NotGiven("no"), NotGiven("no", may_change=True), Looked(), Leaving()]
    + [owned_by(owner) for owner in (NEXT, OTHER, ME, None)]
)


@given(st.lists(ANSWERS, max_size=40), st.booleans())
def test_in_any_order_of_events_it_ends_once_and_gives_no_part_after_it_arrived(events, leaving) -> None:
    machine, now = begun("residual", "momentum", "recent", leaving=leaving), 0.0
    arrived: list[str] = []
    n_ended = n_effects = 0

    def carry_out() -> Effect | None:
        nonlocal n_ended, n_effects
        effect = machine.poll()
        n_effects += effect is not None
        n_ended += isinstance(effect, Ended)
        if isinstance(effect, Give):
            assert effect.part not in arrived and effect.target not in (ME, None)
        if isinstance(effect, Ended):
            assert set(effect.left) | set(arrived) == {"residual", "momentum", "recent"}
        return effect

    def tell(event: object) -> None:
        before = machine.left
        machine.handle(event, now)
        arrived.extend(before[: len(before) - len(machine.left)])

    effect = carry_out()
    for event in events:
        now += AGAIN_S
        tell(event)
        machine.handle_timeout(now)
        effect = carry_out() or effect
        assert n_ended <= 1
    for _ in range(4 * MAX_ATTEMPTS):  # nobody answers any more
        if n_ended:
            break
        tell(Looked() if machine.state is HandoverState.LOOKING else NotGiven("no", may_change=True))
        now += AGAIN_S
        machine.handle_timeout(now)
        carry_out()
    assert n_ended == 1 and not machine.is_under_way and machine.poll() is None
