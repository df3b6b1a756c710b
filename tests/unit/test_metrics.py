"""Sinks and human units: what a file, a machine and a person get of the same events."""

import io
import json
import os
import signal
import sys
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import UsageError
from legion_p2p.observe import human
from legion_p2p.observe.event_text import describe
from legion_p2p.observe.events import HANDING_OVER, Event, Events
from legion_p2p.observe.metrics import BURST, PROGRESS_EVERY_S, JsonlSink, JsonSink, PlainSink
from legion_p2p.observe.status import MemberStatus, RoundStatus, Status

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PEER = "12D3KooWRndVhVZPCiQwHBBBdg769GyrPUW13zxwqQyf9r3ANaba"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain(clock=None, **kwargs):
    stream = io.StringIO()
    return PlainSink(stream, monotonic=clock or Clock(), **kwargs), stream


def status(step=1, **kwargs):
    members = (MemberStatus("a", "home", "ALIVE", step, 10.0), MemberStatus("b", "home", "DEAD", 0, 0.0))
    base = {
        "peer_id": "a", "addresses": (), "run": None, "region": "home", "state": "training", "step": step, "members": members,
        "shards": (), "sent_bytes": 0, "received_bytes": 0, "last_round": None, "errors": (),
    }  # fmt: skip
    return Status(**{**base, **kwargs})


def test_every_event_is_one_line_of_the_file_at_once(tmp_path):
    events = Events(wall_time=lambda: 12.5)
    path = tmp_path / "deep" / "er" / "metrics.jsonl"

    with JsonlSink(path) as sink:
        events.add_sink(sink)
        events.emit("round.closed", shard=3, loss=float("nan"), peers=("a", "b"))
        events.error("push.refused", "too\nlong", peer="x")
        lines = path.read_text().splitlines()

    assert [json.loads(line) for line in lines] == [
        {"event": "round.closed", "at": 12.5, "shard": 3, "loss": None, "peers": ["a", "b"]},
        {"event": "push.refused", "at": 12.5, "error": True, "text": "too\nlong", "peer": "x"},
    ]


def test_numbers_of_numpy_stay_numbers_and_the_rest_becomes_words(tmp_path):
    numpy = pytest.importorskip("numpy")
    stream = io.StringIO()

    JsonSink(stream)(
        Event("x", 1.0, {"loss": numpy.float64(2.5), "n": numpy.int32(3), "path": tmp_path, "bad": ValueError("no")})
    )

    assert json.loads(stream.getvalue()) == {"event": "x", "at": 1.0, "loss": 2.5, "n": 3, "path": str(tmp_path), "bad": "no"}


def test_a_second_life_appends_and_repairs_the_line_that_a_kill_tore(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event":"old"}\n{"event":"ha')

    with JsonlSink(path) as sink:
        sink(Event("new", 1.0, {}))

    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"event":"old"}', '{"event":"ha']
    assert json.loads(lines[2])["event"] == "new"


def test_the_file_is_not_inherited_by_programs_that_are_started(tmp_path):
    with JsonlSink(tmp_path / "metrics.jsonl") as sink:
        assert not os.get_inheritable(sink._fd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_hurts_nobody():
    told = []
    events = Events()
    sink = JsonlSink("/dev/full", report=told.append)
    events.add_sink(sink)

    for i in range(5):
        events.emit("step", i=i)

    sink.close()
    assert len(told) == 1 and "No space left on device" in told[0]
    assert sink in events._sinks


@pytest.mark.skipif(resource is None, reason="this system limits no file by its size")
def test_after_a_disk_that_filled_in_the_middle_of_a_line_the_next_line_stands_alone(tmp_path):
    told = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "metrics.jsonl"
    with JsonlSink(path, report=told.append) as sink:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            for _ in range(6):
                sink(Event("abc", 1.0, {"n": 1}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        sink(Event("last", 2.0, {}))

    lines = path.read_text().splitlines()
    assert len(told) == 1
    assert [json.loads(line)["event"] for line in (*lines[:3], lines[-1])] == ["abc", "abc", "abc", "last"]


def test_a_folder_that_cannot_be_made_is_a_usage_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match=r"cannot write .*file/metrics\.jsonl"):
        JsonlSink(tmp_path / "file" / "metrics.jsonl")


def test_events_after_closing_are_ignored_and_threads_do_not_mix_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)

    def write(n):
        for i in range(50):
            sink(Event("step", 1.0, {"thread": n, "i": i, "pad": "x" * 200}))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    sink.close()
    sink(Event("late", 1.0, {}))

    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 200


def test_a_person_reads_words_and_units():
    event = Event("round.closed_late", 0.0, {
        "shard": 3, "averaged_fraction": 2 / 3, "sent_bytes": 1_234_567, "wall_s": 0.0123, "tokens_per_s": 81234.5,
        "loss": 2.34567, "n_pushes": 7, "peer": PEER, "failed": (PEER, "x"), "synchronous": False, "nothing": None,
    })  # fmt: skip

    line = describe(event)

    assert line[8:] == (
        " round closed late: shard 3, averaged fraction 66.7 %, sent 1.23 MB, wall 12.3 ms, tokens/s 81.2k, loss 2.3457, "
        "7 pushes, peer 9r3ANaba, failed 9r3ANaba x, not synchronous"
    )


def test_a_strangers_text_cannot_act_on_the_terminal():
    line = describe(Event("push.refused", 0.0, {"text": "bad \x1b[2J\r\nname", "peer": "\x07[red]x\u202e"}, is_error=True))

    assert "\x1b" not in line and "\n" not in line and "\r" not in line and "\x07" not in line and "\u202e" not in line
    assert "error: push refused: bad" in line


def test_who_leaves_says_how_long_handing_over_takes():
    fields = {"n_shards": 3, "left_bytes": 12_300_000, "remaining_s": 11.7}

    line = describe(Event(HANDING_OVER, 0.0, fields))

    assert line.endswith(" handing over 3 shards, 12.3 MB, about 12 s; Ctrl+C leaves at once")
    assert " handing over 1 shard, 12.3 MB; " in describe(Event(HANDING_OVER, 0.0, fields | {"n_shards": 1, "remaining_s": None}))


def test_a_crowd_of_one_kind_does_not_hide_the_rest():
    clock = Clock()
    sink, stream = plain(clock)

    for _ in range(20):
        sink(Event("member.changed", 0.0, {}))
    sink(Event("shard.handed_over", 0.0, {"shard": 1}))
    clock.now += PROGRESS_EVERY_S
    sink(Event("member.changed", 0.0, {}))

    lines = stream.getvalue().splitlines()
    assert len(lines) == BURST + 2
    assert lines[-1].endswith(f"member changed (and {20 - BURST} more like it)")


def test_errors_always_show_even_where_all_else_is_quiet():
    sink, stream = plain(quiet=True)

    for _ in range(20):
        sink(Event("x", 0.0, {"text": "no"}, is_error=True))
        sink(Event("y", 0.0, {}))
        sink.progress(status())

    assert len(stream.getvalue().splitlines()) == 20


def test_progress_is_told_often_at_first_and_less_than_twice_a_minute_over_an_hour():
    clock = Clock()
    sink, stream = plain(clock)
    came = []

    for tick in range(3601):
        before = len(stream.getvalue())
        sink.progress(status(step=tick))
        if len(stream.getvalue()) > before:
            came.append(tick)
        clock.now += 1.0

    assert came[:7] == [0, 10, 20, 30, 40, 50, 60]
    assert {later - sooner for sooner, later in pairwise(came) if sooner >= 600} == {60}
    assert len(came) < 90


def test_progress_is_told_every_ten_seconds_and_only_when_something_moved():
    clock = Clock()
    sink, stream = plain(clock)

    for tick in range(60):
        sink.progress(status(step=min(tick, 30), loss=2.5, target_steps=5000, remaining_s=61.0, rounds=4,
                             last_round=RoundStatus(1, 2, 0.75), sent_bytes=12_000_000, tokens_per_s=12345.0))  # fmt: skip
        clock.now += 1.0

    lines = stream.getvalue().splitlines()
    assert [line.split(";")[0].split("step ")[1] for line in lines] == ["0/5,000", "10/5,000", "20/5,000", "30/5,000"]
    assert lines[-1][9:] == (
        "step 30/5,000; loss 2.5000; 12.3k tokens/s; 1 of 2 members alive; 2 rounds, last averaged 75.0 %; "
        "sent 12.0 MB, received 0 B; about 1:01 left"
    )


def test_a_terminal_that_is_not_utf8_gets_question_marks_and_no_exception():
    raw = io.BytesIO()
    sink = PlainSink(io.TextIOWrapper(raw, encoding="ascii", write_through=True))

    sink(Event("run.joined", 0.0, {"name": "größe"}))

    assert raw.getvalue().endswith(b"run joined: name gr??e\n")


def test_json_lines_reach_a_pipe_at_once():
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines, os.fdopen(writer, "w") as stream:
        JsonSink(stream)(Event("x", 1.0, {}))

        assert json.loads(lines.readline()) == {"event": "x", "at": 1.0}


class Flushed(io.StringIO):
    """A stream whose lines are there once it is flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()
        self.n_flushes = 0
        self.there = ""

    def flush(self) -> None:
        super().flush()
        self.n_flushes += 1
        self.there = self.getvalue()
        self.came.set()


def test_rounds_that_close_often_wake_the_reader_rarely_and_none_is_lost():
    stream = Flushed()
    sink = JsonSink(stream, Clock())

    for n in range(50):
        sink(Event("round.closed", 1.0, {"shard": n}))
    assert stream.n_flushes == 1  # of the first: one that comes alone is not late

    stream.came.clear()
    assert stream.came.wait(60)
    assert [json.loads(line)["shard"] for line in stream.there.splitlines()] == list(range(50))
    assert stream.n_flushes == 2


def test_what_is_rarer_than_rounds_is_there_at_once_with_all_before_it():
    stream = Flushed()
    sink = JsonSink(stream, Clock())

    for name in ("round.closed", "round.closed", "step"):
        sink(Event(name, 1.0, {}))

    assert [json.loads(line)["event"] for line in stream.there.splitlines()] == ["round.closed", "round.closed", "step"]


def test_a_late_line_that_cannot_be_written_is_told_of_with_the_next_event():
    stream = Flushed()
    sink = JsonSink(stream, Clock())
    sink(Event("round.closed", 1.0, {}))
    told = threading.Event()

    def fail() -> None:
        told.set()
        raise BrokenPipeError

    stream.flush = fail
    sink(Event("round.closed", 1.0, {}))
    assert told.wait(60)

    with pytest.raises(BrokenPipeError):
        sink(Event("round.closed", 1.0, {}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"),
     (600e6, "600 MB"), (2.5e15, "2.50 PB"), (float("nan"), "-")],
)  # fmt: skip
def test_bytes_in_decimal_units(value, text):
    assert human.bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (11229, "3:07:09"), (200000, "2 d 07:33"), (-3, "0:00"),
                        (float("inf"), "-")],
)  # fmt: skip
def test_seconds_as_a_clock(value, text):
    assert human.seconds_text(value) == text


def test_less_than_all_is_never_called_all():
    assert human.percent_text(0.99999) == "99.9 %"
    assert human.percent_text(1) == "100 %"
    assert human.percent_text(0) == "0 %"


@given(st.one_of(st.floats(), st.integers(-(10**30), 10**30)))
def test_any_number_can_be_told(value):
    for tell in (human.bytes_text, human.count_text, human.percent_text, human.seconds_text, human.loss_text):
        if isinstance(value, float) or abs(value) < 10**15:
            assert tell(value)


@given(st.text())
def test_cleaned_text_never_controls_a_terminal(text):
    safe = human.clean(text, 20)

    assert len(safe) <= 20 and all(c.isprintable() for c in safe)


def test_a_sink_that_breaks_is_dropped_by_events_and_training_goes_on(capsys):
    events = Events()
    stream = io.StringIO()
    events.add_sink(JsonSink(stream))
    stream.close()

    events.emit("x")
    events.emit("y")

    assert capsys.readouterr().err.count("dropped") == 1
    assert sys.stderr is not None
