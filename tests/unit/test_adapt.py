"""What a peer sends, by what its connection carries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.adapt import JOINING, KEEP, SHARE, Choice, CodecCost, Load, choose, recipients

DENSE, MIDDLE, SPARSE = CodecCost("dense", 8.0), CodecCost("middle", 0.5), CodecCost("sparse", 0.1)
ALL = (MIDDLE, DENSE, SPARSE)
LOAD = Load(push_elements=1_000_000, update_elements=0)
NOW = Choice("middle", "middle")


def chosen(upload_bps: float | None, now: Choice = NOW, max_stretch: float = 10.0) -> Choice:
    return choose(ALL, (MIDDLE,), LOAD, 1.0, upload_bps, now, max_stretch)


def test_a_fast_connection_takes_the_densest_codec_and_a_slow_one_the_sparsest() -> None:
    assert chosen(1e9).push_codec == "dense"
    assert chosen(2e6).push_codec == "middle"
    assert chosen(0.5e6) == Choice("sparse", "middle")


def test_where_even_the_sparsest_does_not_fit_rounds_become_longer_up_to_what_the_run_allows() -> None:
    assert chosen(0.1e6) == Choice("sparse", "middle", pytest.approx(2.0))
    assert chosen(0.1e6, max_stretch=1.5).stretch == 1.5


def test_where_nothing_is_known_nothing_changes() -> None:
    assert chosen(None) is NOW
    assert choose(ALL, ALL, LOAD, 0.0, 1e6, NOW) is NOW
    assert choose(ALL, ALL, Load(0, 0), 1.0, 1e6, NOW) is NOW


def test_a_denser_codec_must_fit_with_room_to_spare_but_a_fitting_one_stays() -> None:
    just = 8e6 / SHARE
    assert chosen(just).push_codec == "middle"
    assert chosen(just * KEEP * 1.01).push_codec == "dense"
    assert chosen(just * 1.01, Choice("dense", "middle")).push_codec == "dense"


def test_an_owner_pays_for_every_member() -> None:
    few, many = Load(1_000_000, 1_000_000), Load(1_000_000, 100_000_000)
    assert choose(ALL, ALL, few, 1.0, 40e6, NOW).update_codec == "dense"
    assert choose(ALL, ALL, many, 1.0, 40e6, NOW).update_codec == "sparse"


def test_neither_pushes_nor_updates_are_thinned_out_for_the_density_of_the_other() -> None:
    codecs = tuple(CodecCost(name, bits) for name, bits in (("int8", 8.0), ("int4", 4.0), ("top512", 0.9), ("top64", 0.15)))
    both = Load(push_elements=1_000_000, update_elements=1_000_000)

    def of(bits: float) -> Choice:
        return choose(codecs, codecs, both, 1.0, bits / SHARE * 1.01, Choice("int8", "int8"))

    assert of(16e6) == Choice("int8", "int8")
    assert of(8.2e6) == Choice("int4", "int4")  # and not int8 one way, and next to nothing the other
    assert of(4.9e6) == Choice("int4", "top512")
    assert of(1.8e6) == Choice("top512", "top512")
    assert of(0.3e6) == Choice("top64", "top64")


@given(st.floats(1e3, 1e10), st.floats(0.01, 100), st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_is_chosen_fits_or_is_the_least_there_is(upload_bps: float, round_s: float, pushed: int, updated: int) -> None:
    costs = {cost.name: cost.bits_per_element for cost in ALL}
    made = choose(ALL, ALL, Load(pushed, updated), round_s, upload_bps, NOW, 5.0)
    bits = pushed * costs[made.push_codec] + updated * costs[made.update_codec]

    assert 1.0 <= made.stretch <= 5.0
    if pushed + updated and bits > SHARE * upload_bps * round_s:
        assert (made.push_codec, made.update_codec) == ("sparse", "sparse")


def test_rounds_take_account_of_a_member_that_nobody_else_would_count() -> None:
    assert recipients(n_first=0, n_ready=0, n_joining=0) == 0
    assert recipients(n_first=0, n_ready=3, n_joining=0) == 1
    assert recipients(n_first=0, n_ready=0, n_joining=3) == JOINING


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 1000))
def test_a_crowd_that_joins_costs_those_that_go_first_nothing(n_first: int, n_others: int, n_joining: int) -> None:
    assert recipients(n_first, n_first + n_others, n_joining) == n_first
