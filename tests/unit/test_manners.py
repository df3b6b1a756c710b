"""When a peer may train: the machine of conditions, the month's volume, what is counted, and the service that looks."""

import os
import threading
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.config import Manners as MannersOptions
from legion_p2p.config import PeerConfig
from legion_p2p.core.caps import Caps
from legion_p2p.core.control import SetLimits, Wish
from legion_p2p.core.manners import (
    BUSY_S,
    FREE_S,
    INPUT_S,
    SPENT_BPS,
    ConditionsConfig,
    MachineFacts,
    TrainingConditions,
)
from legion_p2p.core.traffic_ledger import MovedBytes
from legion_p2p.core.volume import MAX_MONTHS, MonthlyVolume, VolumeMeter
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.net.volume import SocketVolume, is_wide
from legion_p2p.observe import machine
from legion_p2p.observe.machine import Machine
from legion_p2p.services.run.control import ControlService
from legion_p2p.services.run.manners import LOOK_EVERY_S, SAVE_EVERY_S, MannersService
from legion_p2p.store.volume_file import VolumeFile
from legion_p2p.train.niceness import NICE, lower_priority
from tests.context_of import context_of
from tests.parts_of import identity_of

IDLE = ConditionsConfig(only_idle=True)


def test_without_conditions_nothing_pauses() -> None:
    facts = MachineFacts(1.0, 0.0, True, 120.0, 1e12, 1e15)

    assert ConditionsConfig().asks_nothing and TrainingConditions(ConditionsConfig()).look(facts, 0.0) == ()


def test_what_the_machine_cannot_tell_does_not_pause() -> None:
    config = ConditionsConfig(True, False, 60.0, 1e9, 1e9)

    assert TrainingConditions(config).look(MachineFacts(), 0.0) == ()


def test_battery_pauses_where_the_user_says_so() -> None:
    manners = TrainingConditions(ConditionsConfig(on_battery=False))

    assert manners.look(MachineFacts(on_battery=True), 0.0) == ("on battery",)
    assert manners.look(MachineFacts(on_battery=False), 1.0) == ()


def test_a_machine_is_free_once_other_programs_have_rested_for_a_while_and_busy_when_they_last() -> None:
    manners, seen = TrainingConditions(IDLE), {}
    shares = [(0.0, 0.0), (FREE_S - 1, 0.0), (FREE_S, 0.0), (100.0, 0.9), (101.0, 0.1), (102.0, 0.9), (102.0 + BUSY_S, 0.9)]

    for now, share in shares:
        seen[now] = bool(manners.look(MachineFacts(others_share=share), now))

    assert seen == {0.0: True, FREE_S - 1: True, FREE_S: False, 100.0: False, 101.0: False, 102.0: False, 102.0 + BUSY_S: True}


def test_somebody_at_the_keyboard_pauses_at_once_and_for_two_minutes() -> None:
    manners = TrainingConditions(IDLE)
    for now in (0.0, FREE_S):
        manners.look(MachineFacts(others_share=0.0), now)

    assert manners.look(MachineFacts(0.0, 1.0), FREE_S + 2) == ("the machine is in use",)
    assert manners.look(MachineFacts(0.0, INPUT_S), FREE_S + 4) == ()


def test_heat_and_memory_have_a_second_bound_so_that_nothing_flaps() -> None:
    hot, large = (
        TrainingConditions(ConditionsConfig(max_temperature_c=80.0)),
        TrainingConditions(ConditionsConfig(max_memory_bytes=8e9)),
    )

    told = [hot.look(MachineFacts(temperature_c=c), 0.0) for c in (80.0, 81.0, 76.0, 75.0, 79.0)]
    taken = [bool(large.look(MachineFacts(memory_bytes=n), 0.0)) for n in (8e9, 8.1e9, 7.9e9, 7.5e9, 7.9e9)]

    assert told == [(), ("81 degrees, 80 allowed",), ("76 degrees, 80 allowed",), (), ()]
    assert taken == [False, True, True, False, False]


def test_a_month_that_is_used_up_is_a_reason_with_its_size() -> None:
    manners = TrainingConditions(ConditionsConfig(monthly_bytes=100e9))
    spent = MachineFacts(month_bytes=100e9)

    assert manners.look(spent, 0.0) == ("this month's 100 GB are used up",) and manners.is_spent(spent)
    assert not manners.is_spent(MachineFacts(month_bytes=99e9))


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.none() | st.floats(0, 1)), max_size=60))
def test_a_busy_machine_is_never_called_free_before_it_has_rested_for_the_whole_time(
    looks: list[tuple[float, float | None]],
) -> None:
    manners, now, rested_since, was_free = TrainingConditions(IDLE), 0.0, None, False

    for passed, share in looks:
        now += passed
        free = not manners.look(MachineFacts(others_share=share), now)
        if share is None:
            rested_since, was_free = None, free
            continue
        rested_since = (rested_since if rested_since is not None else now) if share < 0.25 else None
        if free and not was_free:
            assert rested_since is not None and now - rested_since >= FREE_S - 1e-6
        was_free = free


# the volume of a month


@given(st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(["2026-11", "2026-12"])), max_size=30))
def test_each_month_has_what_a_counter_grew_by_in_it_even_if_the_clock_is_set_back(looks: list[tuple[int, str]]) -> None:
    meter, counted, expected = VolumeMeter(MonthlyVolume()), 0, {"2026-11": 0, "2026-12": 0}

    for grown, now in looks:
        counted += grown
        expected[now] += grown
        assert meter.look(counted, now) == MonthlyVolume(now, expected[now])


def test_a_clock_that_knows_no_end_of_months_does_not_make_the_meter_grow() -> None:
    meter = VolumeMeter(MonthlyVolume())

    for year in range(2000, 2100):
        meter.look(0, f"{year}-01")

    assert len(meter._others) == MAX_MONTHS


def test_input_before_the_clock_was_set_back_tells_nothing() -> None:
    assert machine.youngest([30.0, -3600.0]) == 30.0
    assert machine.youngest([-1.0]) == 0.0 and machine.youngest([-3600.0]) is None and machine.youngest([]) is None


def test_the_volume_is_kept_over_a_restart_and_a_damaged_file_is_reported(tmp_path: Path) -> None:
    file = VolumeFile.beside(str(tmp_path / "peer.key"))

    assert file.load() == MonthlyVolume()
    file.save(MonthlyVolume("2026-11", 12))
    assert VolumeMeter(file.load()).look(5, "2026-11") == MonthlyVolume("2026-11", 17)
    (tmp_path / "peer.volume.json").write_text('{"month": "soon"}')
    with pytest.raises(StoreError, match="remove it to count from nothing"):
        file.load()


@pytest.mark.parametrize(
    ("host", "wide"),
    [
        ("203.0.113.7", False),  # reserved for documentation, which Python calls private
        ("8.8.8.8", True), ("2606:4700::1111", True), ("100.64.0.1", True), ("192.168.1.2", False), ("10.1.2.3", False),
        ("127.0.0.1", False), ("::1", False), ("fe80::1", False), ("fd00::1", False), ("::ffff:192.168.1.2", False),
        ("::ffff:8.8.8.8", True), ("a name", True),
    ],
)  # fmt: skip
def test_the_local_network_is_not_counted(host: str, wide: bool) -> None:
    class Sock:
        def getpeername(self) -> tuple[str, int]:
            return host, 4710

    volume = SocketVolume()
    meter = volume.meter(Sock())  # type: ignore[arg-type]
    meter.sent(600)
    meter.received(400)

    counted = volume.counted()
    assert is_wide(host) is wide and volume.wide_bytes == 1000 * wide
    assert counted.total == MovedBytes(600, 400) and counted.local == MovedBytes(600 * (not wide), 400 * (not wide))
    assert list(counted.by_hour.values()) == [MovedBytes(600, 400)]


# what the machine tells


def test_a_look_asks_only_for_what_a_condition_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(machine, "on_battery", lambda: asked.append("battery") or True)
    monkeypatch.setattr(machine, "temperature_c", lambda: asked.append("temperature") or 50.0)
    monkeypatch.setattr(machine, "input_age_s", lambda: asked.append("input") or 1.0)

    assert Machine(ConditionsConfig(monthly_bytes=1.0)).look() == MachineFacts() and asked == []
    assert Machine(ConditionsConfig(on_battery=False)).look() == MachineFacts(on_battery=True)
    assert Machine(ConditionsConfig(max_temperature_c=60.0)).look() == MachineFacts(temperature_c=50.0)
    assert asked == ["battery", "temperature"]


def test_what_this_machine_says_is_a_fact_or_nothing() -> None:
    battery, heat, age = machine.on_battery(), machine.temperature_c(), machine.input_age_s()
    facts = Machine(ConditionsConfig(only_idle=True, max_memory_bytes=1.0)).look()

    assert battery in (None, True, False) and (heat is None or 0 < heat < 150) and (age is None or age >= 0)
    assert facts.others_share is None and facts.memory_bytes is not None and facts.memory_bytes > 1e6


def test_the_share_of_other_programs_leaves_out_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    times = namedtuple("times", "user system idle iowait")
    looks = iter([times(0, 0, 0, 0), times(6, 2, 2, 0)])  # 8 of 10 s of the processors were taken
    ours = iter([0.0, 3.0])
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: next(looks))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(ours))
    asked = Machine(IDLE)

    first, second = asked.look(), asked.look()

    assert first.others_share is None and second.others_share == pytest.approx(0.5)


# the service


class Kept:
    def __init__(self, volume: MonthlyVolume) -> None:
        self.volume = volume
        self.saves: list[MonthlyVolume] = []

    def load(self) -> MonthlyVolume:
        return self.volume

    def save(self, volume: MonthlyVolume) -> None:
        self.saves.append(volume)


async def test_the_service_pauses_squeezes_and_saves_and_a_new_month_sets_free(autojump_clock: object) -> None:
    ctx = context_of(
        identity_of("me"),
        None,
        config=PeerConfig(manners=ConditionsConfig(on_battery=False, monthly_bytes=1000.0)),  # type: ignore[arg-type]
    )
    control, kept = ControlService(ctx), Kept(MonthlyVolume("2026-11", 900))
    caps: list[Caps] = []
    control.caps_changed.add(caps.append)
    facts, counted, month = [MachineFacts(on_battery=True)], [0], ["2026-11"]
    service = MannersService(ctx, control, lambda: facts[0], lambda: counted[0], lambda: month[0], kept)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run_forever)
        await trio.sleep(LOOK_EVERY_S / 2)
        assert (control.wish, control.status().reasons) == (Wish.PAUSE, ("on battery",))
        facts[0], counted[0] = MachineFacts(on_battery=False), 100
        await trio.sleep(LOOK_EVERY_S)
        assert control.status().reasons == ("this month's 1e-06 GB are used up",)
        control.obey(SetLimits(upload="1gbit"))
        assert caps == [Caps(SPENT_BPS, SPENT_BPS), Caps(SPENT_BPS, SPENT_BPS)]
        month[0] = "2026-12"
        await trio.sleep(SAVE_EVERY_S)
        assert control.wish is Wish.TRAIN and caps[-1] == Caps(upload_bps=1e9)
        nursery.cancel_scope.cancel()

    assert kept.saves[0] == kept.saves[-1] == MonthlyVolume("2026-12", 0)


def test_the_options_come_to_conditions_and_what_cannot_be_is_refused() -> None:
    options = MannersOptions(when="idle", on_battery="no", max_temperature=80, max_memory="8gb", monthly="100gb")  # type: ignore[arg-type]

    assert options.conditions() == ConditionsConfig(True, False, 80.0, 8e9, 100e9)
    for wrong in ({"when": "never"}, {"max_cpu": "0%"}, {"monthly": "much"}, {"max_temperature": -1.0}, {"priority": "high"}):
        with pytest.raises(UsageError):
            MannersOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(
    not (Path("/proc/self/task").exists() and hasattr(os, "fork")),
    reason="only Linux tells the threads of torch from those of Python",
)
def test_training_threads_get_a_low_priority_and_those_of_the_network_keep_theirs() -> None:
    if os.fork() == 0:  # what is lowered cannot be raised again
        ended, network = threading.Event(), []
        thread = threading.Thread(target=lambda: (network.append(threading.get_native_id()), ended.wait()))
        thread.start()
        while not network:
            time.sleep(0.001)
        before = os.getpriority(os.PRIO_PROCESS, network[0])
        lowered = lower_priority()
        mine, theirs = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.getpriority(os.PRIO_PROCESS, network[0])
        os._exit(0 if lowered and mine == max(before, NICE) and theirs == before else 1)
    _, how = os.wait()

    assert os.waitstatus_to_exitcode(how) == 0
