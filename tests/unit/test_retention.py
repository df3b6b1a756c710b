"""Which checkpoints stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.retention import Retention, kept, parse_retention
from legion_p2p.errors import ConfigError


def at(step: int) -> Cid:
    return Cid.of(str(step).encode(), DAG_CBOR)


def steps_kept(steps: range | list[int], keep: Retention) -> list[int]:
    stay = kept({at(step): step for step in steps}, keep)
    return sorted(step for step in steps if at(step) in stay)


def test_the_last_few_and_one_of_every_span_stay() -> None:
    assert steps_kept(range(10, 500, 10), Retention(last=3, every=100)) == [10, 100, 200, 300, 400, 470, 480, 490]
    assert steps_kept(range(10, 50, 10), Retention(last=2)) == [30, 40]
    assert steps_kept([5, 105, 110, 320], Retention(every=100)) == [5, 105, 320]


@given(st.sets(st.integers(0, 1000), max_size=20), st.integers(0, 5), st.integers(0, 50))
def test_the_newest_always_stays_and_pruning_again_changes_nothing(steps: set[int], last: int, every: int) -> None:
    keep = Retention(last, every)
    once = steps_kept(sorted(steps), keep)

    assert set(once) <= steps and len(once) >= min(len(steps), max(1, last))
    assert not steps or max(steps) in once
    assert steps_kept(once, keep) == once


@pytest.mark.parametrize(
    ("text", "keep"), [("last=3,every=100", Retention(3, 100)), ("every=7", Retention(0, 7)), (" last=1 ", Retention(1, 0))]
)
def test_a_policy_is_read(text: str, keep: Retention) -> None:
    assert parse_retention(text) == keep


@pytest.mark.parametrize(
    "text", ["", "last", "last=", "last=-1", "last=x", "first=1", "last=1,last=2", "last=0", "every=0", "last=10001"]
)
def test_what_is_no_policy_or_keeps_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_retention(text)
