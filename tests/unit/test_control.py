"""What a user asks of a running peer: the machine behind it, commands from outside, the handle for other threads."""

import os
import signal
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.cli.signals import Signals, pausing_signals
from legion_p2p.core.control import (
    BY_USER,
    MAX_COMMAND_BYTES,
    MAX_LIMIT_CHARS,
    MAX_PAUSE_S,
    Finish,
    Leave,
    Pause,
    Resume,
    SetLimits,
    TrainingControl,
    Wish,
    decode_command,
    encode_command,
    parse_cpu,
)
from legion_p2p.core.cpu_share import BURST_S, CpuShare
from legion_p2p.errors import DecodeError, UsageError
from legion_p2p.train.control import Control
from tests.waiting import PATIENCE_S


def test_a_pause_lasts_until_the_user_resumes() -> None:
    control = TrainingControl()

    control.handle(Pause(), 0.0)
    control.handle_timeout(1e9)
    paused = control.wish, control.reasons
    control.handle(Resume(), 1e9)

    assert paused == (Wish.PAUSE, (BY_USER,))
    assert (control.wish, control.reasons) == (Wish.TRAIN, ())


def test_a_pause_for_a_time_ends_when_it_is_over_and_not_before() -> None:
    control = TrainingControl()

    control.handle(Pause(7200.0), 100.0)
    control.handle_timeout(7299.9)
    before = control.wish, control.next_deadline(), control.remaining_s(7299.0)
    control.handle_timeout(7300.0)

    assert before == (Wish.PAUSE, 7300.0, 1.0)
    assert (control.wish, control.next_deadline(), control.remaining_s(7300.0)) == (Wish.TRAIN, None, None)


def test_a_second_pause_replaces_the_end_of_the_first() -> None:
    control = TrainingControl()

    control.handle(Pause(10.0), 0.0)
    control.handle(Pause(), 5.0)
    control.handle_timeout(20.0)

    assert control.wish is Wish.PAUSE and control.next_deadline() is None


def test_a_condition_pauses_as_well_and_each_reason_is_named() -> None:
    control = TrainingControl()

    control.hold(("on battery",))
    control.handle(Pause(), 0.0)
    both = control.reasons
    control.handle(Resume(), 1.0)
    left = control.wish, control.reasons
    control.hold(())

    assert both == (BY_USER, "on battery")
    assert left == (Wish.PAUSE, ("on battery",))
    assert control.wish is Wish.TRAIN


_COMMANDS = st.one_of(
    st.builds(Pause, st.none() | st.floats(0.1, MAX_PAUSE_S)), st.just(Resume()), st.just(Finish()), st.just(Leave())
)


@given(st.lists(st.one_of(_COMMANDS, st.tuples(st.sampled_from(["on battery", ""]))), max_size=30), st.booleans())
def test_whatever_is_asked_an_end_is_final_and_a_pause_has_a_reason(asked: list[Any], leaves: bool) -> None:
    control, now, ended = TrainingControl(), 0.0, Wish.TRAIN

    for each in asked:
        now += 1.0
        if isinstance(each, tuple):
            control.hold(tuple(filter(None, each)))
        else:
            control.handle(each, now)
        control.handle_timeout(now)
        assert (control.wish is Wish.PAUSE) == bool(control.reasons)
        assert not ended.ends or control.wish is ended or (ended is Wish.FINISH and control.wish is Wish.LEAVE)
        ended = control.wish


@given(
    st.one_of(
        _COMMANDS,
        st.builds(SetLimits, st.none() | st.sampled_from(["5mbit", "none"]), st.none() | st.just("1gbit"), st.just("50%")),
    )
)
def test_a_command_comes_out_as_it_went_in(command: Any) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b'{"type":"explode"}', b"\xff\xfe", b"[" * 4000, b'{"type":"pause","for_s":0}',
        b'{"type":"pause","for_s":' + str(MAX_PAUSE_S * 2).encode() + b"}",
        b'{"type":"limits","upload":"' + b"1" * (MAX_LIMIT_CHARS + 1) + b'"}',
        b'{"type":"resume","more":"' + b"x" * MAX_COMMAND_BYTES + b'"}',
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_command(body)


@pytest.mark.parametrize("limits", [{}, {"upload": "fast"}, {"download": "1bit"}, {"max_cpu": "0%"}, {"max_cpu": "200%"}])
def test_limits_that_cannot_be_are_refused_with_what_is_allowed(limits: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        SetLimits(**limits).check()
    with pytest.raises(UsageError):
        Control().limits(**limits)


def test_a_share_of_the_processors_is_a_percentage() -> None:
    assert parse_cpu("50%") == 0.5


# keeping to a share


def test_who_keeps_to_the_share_never_waits_and_who_takes_all_waits_as_long_as_it_worked() -> None:
    modest, greedy = CpuShare(0.5, 4), CpuShare(0.5, 4)
    modest.wait_s(0.0, 0.0)
    greedy.wait_s(0.0, 0.0)

    assert [modest.wait_s(2.0 * t, float(t)) for t in range(1, 5)] == [0.0] * 4
    assert greedy.wait_s(4.0 * 10, 10.0) == pytest.approx(10.0 - BURST_S)  # 40 s of CPU, of which 10 s allow 20 and a burst


def test_rest_is_not_saved_up_beyond_a_burst() -> None:
    share = CpuShare(0.5, 2)
    share.wait_s(0.0, 0.0)

    assert share.wait_s(0.0, 3600.0) == 0.0
    assert share.wait_s(10.0, 3605.0) == pytest.approx(10.0 - 5.0 - BURST_S)


@given(st.floats(0.05, 1.0), st.integers(1, 16), st.lists(st.floats(0.001, 5.0), min_size=1, max_size=40))
def test_over_time_the_share_is_kept_to_within_a_burst_and_a_step(share: float, n_cpus: int, steps: list[float]) -> None:
    account, now, used = CpuShare(share, n_cpus), 0.0, 0.0
    account.wait_s(used, now)

    for step_s in steps:
        now, used = now + step_s, used + step_s * n_cpus
        now += account.wait_s(used, now)

    assert used <= share * n_cpus * (now + BURST_S) + 1e-6


# the handle


class _Peer:
    """What a Control talks to."""

    def __init__(self) -> None:
        self.obeyed: list[Any] = []
        self.engine: Any = self
        self.control: Any = self

    def obey(self, command: Any) -> None:
        self.obeyed.append(command)

    def call(self, fn: Any, *args: Any) -> Any:
        return fn(*args)


def test_what_is_asked_before_a_peer_is_in_its_run_is_done_once_it_is() -> None:
    control, peer = Control(), _Peer()

    control.pause(60.0)
    control.limits(upload="5mbit")
    control.attach(peer)  # type: ignore[arg-type]
    control.resume()
    control.leave()

    assert peer.obeyed == [Pause(60.0), SetLimits("5mbit"), Resume(), Leave()]
    assert control.leaving and control.wait(0.0)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this platform has no such signals")
def test_signals_pause_and_resume_as_often_as_they_come() -> None:
    control, peer, done = Control(), _Peer(), threading.Event()
    control.attach(peer)  # type: ignore[arg-type]
    actions = pausing_signals(control)
    actions[signal.SIGUSR2] = lambda: (control.resume(), len(peer.obeyed) >= 4 and done.set())  # type: ignore[func-returns-value]

    with Signals(others=actions):
        for number in (signal.SIGUSR1, signal.SIGUSR2) * 2:
            n_before = len(peer.obeyed)
            os.kill(os.getpid(), number)
            while len(peer.obeyed) == n_before:  # two signals of one kind at once are one
                done.wait(0.01)
        assert done.wait(PATIENCE_S)

    assert peer.obeyed == [Pause(), Resume(), Pause(), Resume()]
