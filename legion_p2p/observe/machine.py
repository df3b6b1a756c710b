"""What this machine is doing, as far as it can be known: facts for those that decide."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

import psutil

from legion_p2p.core.manners import ConditionsConfig, MachineFacts
from legion_p2p.observe.memory import used_memory

UNKNOWN = (AttributeError, OSError, NotImplementedError, ValueError, RuntimeError)
"""What psutil raises for a sensor that a platform has no function for, that the system hides, or that shows nonsense."""

AHEAD_S = 5.0  # that a time may lie ahead: file systems round
MIN_LOOK_S = 0.5  # shares over less are mostly rounding: the system counts in hundredths of a second


def n_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Machine:
    """Asks the operating system, as far as the conditions need it."""

    def __init__(self, config: ConditionsConfig) -> None:
        self._config = config
        self._seen: tuple[float, float, float] | None = None
        self._share: float | None = None

    def look(self) -> MachineFacts:
        """What it does now. A look at most reads some files of the system."""
        config = self._config
        return MachineFacts(
            others_share=self._others_share() if config.only_idle else None,
            input_age_s=input_age_s() if config.only_idle else None,
            on_battery=None if config.on_battery else on_battery(),
            temperature_c=None if config.max_temperature_c is None else temperature_c(),
            memory_bytes=None if config.max_memory_bytes is None else float(used_memory()),
        )

    def _others_share(self) -> float | None:
        """Share of all processors that other programs have taken since the last look."""
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        own = time.process_time()
        if self._seen is None:
            self._seen = (total, idle, own)
            return None
        passed, idled, ours = (now - before for now, before in zip((total, idle, own), self._seen, strict=True))
        if passed >= MIN_LOOK_S:
            self._seen = (total, idle, own)
            self._share = min(1.0, max(0.0, (passed - idled - ours) / passed))
        return self._share


def on_battery() -> bool | None:
    """Whether the machine runs on its battery; None where it has none, or does not tell."""
    with contextlib.suppress(*UNKNOWN):
        battery = psutil.sensors_battery()
        if battery is not None and battery.power_plugged is not None:
            return not battery.power_plugged
    return None


def temperature_c() -> float | None:
    """The hottest sensor of the machine; None where there is none. A sensor that shows what cannot be is left out."""
    with contextlib.suppress(*UNKNOWN):
        shown = [float(each.current) for sensors in psutil.sensors_temperatures().values() for each in sensors if each.current]
        return max((c for c in shown if 0 < c < 150), default=None)
    return None


def input_age_s() -> float | None:
    """Seconds since somebody typed or moved the mouse; None where that cannot be known.

    Known on Windows, and on POSIX for terminals of users that are logged in. A graphical session tells only programs that have a
    window.
    """
    if sys.platform == "win32":
        return _input_age_windows()
    ages = []
    with contextlib.suppress(OSError, RuntimeError):
        for user in psutil.users():
            if user.terminal and not user.terminal.startswith(":"):
                with contextlib.suppress(OSError):
                    ages.append(time.time() - os.stat(f"/dev/{user.terminal}").st_atime)
    return youngest(ages)


def youngest(ages: Sequence[float]) -> float | None:
    """The least of the ages; None where there is none. One that lies ahead was written before the clock was set back: it tells
    nothing.
    """
    return min((max(0.0, age) for age in ages if age > -AHEAD_S), default=None)


def _input_age_windows() -> float | None:
    import ctypes

    class LastInput(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("tick_ms", ctypes.c_uint))

    windows = getattr(ctypes, "windll", None)
    last = LastInput(ctypes.sizeof(LastInput), 0)
    if windows is None or not windows.user32.GetLastInputInfo(ctypes.byref(last)):
        return None
    return float((windows.kernel32.GetTickCount() - last.tick_ms) & 0xFFFFFFFF) / 1000
