"""One event per thing that happened; watching never hurts what is watched."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.observe.events import MAX_ERRORS_KEPT, Event, Events


def test_every_sink_sees_every_event_in_order() -> None:
    events = Events(wall_time=lambda: 12.5)
    one: list[Event] = []
    other: list[Event] = []
    events.add_sink(one.append)
    events.emit("first", shard=3)
    events.add_sink(other.append)

    events.emit("second")

    assert one == [Event("first", 12.5, {"shard": 3}), Event("second", 12.5, {})]
    assert other == one[1:]


def test_an_error_stays_visible_and_is_an_event_as_well() -> None:
    events = Events(wall_time=lambda: 1.0)
    seen: list[Event] = []
    events.add_sink(seen.append)

    events.error("disk.full", "no space left", path="/tmp")

    assert list(events.errors) == seen == [Event("disk.full", 1.0, {"text": "no space left", "path": "/tmp"}, True)]
    assert seen[0].as_dict() == {"event": "disk.full", "at": 1.0, "error": True, "text": "no space left", "path": "/tmp"}


def test_what_is_no_error_is_not_kept() -> None:
    events = Events()

    events.emit("step")

    assert not events.errors


def test_the_errors_that_are_kept_are_the_newest_and_bounded() -> None:
    events = Events()

    for i in range(MAX_ERRORS_KEPT + 5):
        events.error("bad", str(i))

    assert [e.fields["text"] for e in events.errors] == [str(i) for i in range(5, MAX_ERRORS_KEPT + 5)]


def test_a_sink_that_fails_is_dropped_with_a_note_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    seen: list[Event] = []
    calls: list[str] = []

    def broken(event: Event) -> None:
        calls.append(event.name)
        raise OSError("disk full")

    events.add_sink(broken)
    events.add_sink(seen.append)

    events.emit("first")
    events.emit("second")

    assert calls == ["first"] and [e.name for e in seen] == ["first", "second"]
    assert capsys.readouterr().err.count("disk full") == 1


def test_a_person_is_told_by_sinks_that_show_what_happened_and_by_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    events.add_sink(lambda event: None, shows=False)
    assert not events.are_shown

    def shown(event: Event) -> None:
        raise ValueError("its terminal is gone")

    events.add_sink(shown)
    assert events.are_shown
    events.emit("step")

    assert not events.are_shown  # it was dropped
    assert "an event sink failed" in capsys.readouterr().err


def test_a_sink_may_emit_and_add_sinks_itself() -> None:
    events = Events()
    seen: list[str] = []

    def curious(event: Event) -> None:
        seen.append(event.name)
        if event.name == "first":
            events.add_sink(lambda e: seen.append(f"late {e.name}"))
            events.emit("inner")

    events.add_sink(curious)
    events.emit("first")

    assert seen == ["first", "inner", "late inner"]


def test_fields_may_be_called_name_and_text() -> None:
    events = Events()
    seen: list[Event] = []
    events.add_sink(seen.append)

    events.emit("run.created", name="tiny", self=1)

    assert seen[0].fields == {"name": "tiny", "self": 1}


def test_several_threads_may_emit_at_once() -> None:
    events = Events()
    seen: list[Event] = []
    events.add_sink(seen.append)

    threads = [threading.Thread(target=lambda: [events.error("e", "x") for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seen) == 1200 and len(events.errors) == MAX_ERRORS_KEPT


@given(
    st.text(),
    st.floats(0, 4e9),
    st.dictionaries(st.text(min_size=1).filter(lambda k: k not in ("event", "at", "error")), st.integers()),
)
def test_a_line_of_an_event_names_it_and_carries_all_its_fields(name: str, at: float, fields: dict[str, int]) -> None:
    line = Event(name, at, fields).as_dict()

    assert line["event"] == name and abs(line["at"] - at) < 1e-5
    assert {key: line[key] for key in fields} == fields
    assert "error" not in line
