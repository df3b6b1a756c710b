"""What a page keeps of a peer's events: the same from a running peer and from its file, and never without bounds."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.round import LATE
from legion_p2p.observe.advice import ADVICE
from legion_p2p.observe.catalogue import EVENTS
from legion_p2p.observe.events import Event
from legion_p2p.observe.metrics import encode_event
from legion_p2p.observe.status import FailedPush
from legion_p2p.web.curve import SLACK_S, SteadyTime
from legion_p2p.web.record import MAX_MARKS, MAX_NAMED, MAX_POINTS, MAX_ROUNDS, MAX_STORED, MAX_TROUBLES, RunRecord


def heard(*events: Event) -> RunRecord:
    record = RunRecord()
    for event in events:
        record(event)
    return record


def closed(at: float, failed=(), **fields) -> Event:
    usual = {"shard": 1, "version": 2, "n_included": 3, "n_expected": 3 + len(failed), "averaged_fraction": 0.75}
    return Event("round.closed", at, {**usual, **fields, "failed": list(failed)})


def test_curves_have_the_time_since_the_beginning_and_the_step() -> None:
    record = heard(
        Event("run.joined", 100.0, {"name": "stories"}),
        Event("step", 101.0, {"step": 5, "loss": 3.0, "tokens_per_s": 10.0}),
        Event("eval", 102.5, {"step": 9, "val_loss": 2.5}),
    )

    assert record.run == "stories"
    loss, held_out = record.line("loss", "mine"), record.line("val_loss", "held out")
    assert (loss.x, loss.y, loss.step) == ((1.0,), (3.0,), (5.0,))
    assert (held_out.x, held_out.y, held_out.step) == ((2.5,), (2.5,), (9.0,))


def test_curves_go_on_where_they_were_when_the_clock_is_set_back() -> None:
    record = heard(*(Event("step", at, {"step": at % 100, "loss": 2.0}) for at in (5000.0, 5010.0, 1420.0, 1430.0, 5050.0)))

    assert record.line("loss", "mine").x == (0.0, 10.0, 10.0 + 10.0, 10.0 + 10.0 + 3620.0)


@given(st.lists(st.floats(-1e9, 1e9), max_size=50))
def test_the_line_of_times_goes_back_by_no_more_than_two_threads_need(times: list[float]) -> None:
    steady = SteadyTime()

    line = [steady.of(at) for at in times]

    assert all(after >= max(line[:i], default=-math.inf) - SLACK_S - 1e-3 for i, after in enumerate(line))


def test_a_member_that_comes_or_goes_is_a_mark_at_the_step_of_that_moment() -> None:
    record = heard(
        Event("step", 10.0, {"step": 4, "loss": 1.0}),
        Event("member.changed", 12.0, {"peer": "12D3KooWabcdefgh", "before": "absent", "after": "ALIVE"}),
        Event("member.changed", 13.0, {"peer": "12D3KooWabcdefgh", "before": "ALIVE", "after": "SUSPECT"}),
        Event("step", 20.0, {"step": 9, "loss": 1.0}),
        Event("member.changed", 21.0, {"peer": "12D3KooWabcdefgh", "before": "SUSPECT", "after": "DEAD"}),
    )

    marks = record.marks()

    assert [(mark.x, mark.text, mark.step) for mark in marks] == [(2.0, "abcdefgh is here", 4.0), (11.0, "abcdefgh is gone", 9.0)]


def test_rounds_tell_who_was_missing_and_why() -> None:
    record = heard(closed(1.0), closed(2.0, [FailedPush("peer-a", LATE)]), closed(3.0, [FailedPush("peer-a", "NaN\x1b[2J")]))

    newest = record.rounds()[0]
    assert newest.missing == (("peer-a", "NaN [2J"),)
    assert (record.n_rounds, record.n_complete, record.averaged) == (3, 1, 2.25)
    assert record.missed() == [("peer-a", 2)]


def test_what_a_file_has_is_what_was_heard() -> None:
    events = [
        Event("run.created", 1.0, {"name": "stories"}),
        Event("step", 2.0, {"step": 1, "loss": 4.0, "tokens_per_s": 5.0}),
        closed(3.0, [FailedPush("peer-a", LATE)]),
        Event("checkpoint.stored", 4.0, {"step": 3, "cid": "bafy", "wall_s": 0.5}),
        Event("member.dead", 5.0, {"text": "peer-a does not answer", "peer": "peer-a"}, is_error=True),
    ]

    def as_read(event: Event) -> Event:
        fields = json.loads(encode_event(event))
        return Event(fields.pop("event"), fields.pop("at"), fields, fields.pop("error", False))

    live, read = heard(*events), heard(*map(as_read, events))

    for what in ("rounds", "stored", "troubles", "marks", "missed"):
        assert getattr(live, what)() == getattr(read, what)()
    assert live.line("loss", "x") == read.line("loss", "x")
    assert live.stored()[0].cid == "bafy" and live.troubles()[0].event == "member.dead"


def test_everything_is_bounded() -> None:
    record = RunRecord()
    for i in range(3 * MAX_POINTS):
        record(Event("step", float(i), {"step": i, "loss": 1.0, "tokens_per_s": 1.0}))
    for i in range(2 * MAX_NAMED):
        record(closed(float(i), [FailedPush(f"peer-{i}-{k}", "why") for k in range(2)]))
        record(Event("member.changed", float(i), {"peer": f"p{i}", "before": "absent", "after": "ALIVE"}))
        record(Event("checkpoint.stored", float(i), {"step": i, "cid": str(i), "wall_s": 1.0}))
        record(Event("sync.failed", float(i), {"text": "x"}, is_error=True))

    assert len(record.line("loss", "x").x) <= MAX_POINTS
    assert len(record.rounds()) == MAX_ROUNDS and record.n_rounds == 2 * MAX_NAMED
    assert len(record.marks()) == MAX_MARKS and len(record.stored()) == MAX_STORED and len(record.troubles()) == MAX_TROUBLES
    assert len(record.missed()) == MAX_NAMED


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "3", True, [], 10**400])
def test_a_value_that_is_no_finite_number_is_no_point(value: object) -> None:
    record = heard(Event("step", 1.0, {"step": value, "loss": value, "tokens_per_s": value}))

    assert record.line("loss", "x").y == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["step", "loss", "failed", "peer", "before", "after", "cid", "shard", "version", "text", "name", "val_loss", "n_bytes"]


@given(st.sampled_from([kind.name for kind in EVENTS]), st.dictionaries(st.sampled_from(FIELDS), json_values), st.booleans())
def test_no_line_of_a_file_can_break_the_record(name: str, fields: dict, is_error: bool) -> None:
    record = heard(Event(name, 1.0, fields, is_error))

    assert record.rounds() is not None and record.marks() is not None and record.line("val_loss", "x") is not None


def test_every_error_event_says_what_can_be_done() -> None:
    assert set(ADVICE) == {kind.name for kind in EVENTS if kind.is_error}, "observe/advice.py has a line for each error event"
    assert all(text[0].isupper() and text.endswith(".") for text in ADVICE.values())
