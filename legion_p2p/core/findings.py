"""What a check-up of a machine finds: a line for each thing looked at, and what helps where it is not well.

The judgements are functions of facts: whoever asks the machine or the network passes in what came of it.
"""

from collections.abc import Sequence
from enum import Enum

import msgspec

MIN_DISK_BYTES = 1e9  # below, not even one checkpoint of a small model and its journal fit
FEW_DISK_BYTES = 5e9
MIN_FILES = 256  # 64 connections of two sockets each, and Python's own files
FEW_FILES = 1024  # what systems usually allow; a crowd of members needs more
MIN_MEMORY_BYTES = 1e9  # a peer with the smallest model takes half of it
FEW_MEMORY_BYTES = 3e9
SLOW_S = 1.0  # of a round trip: rounds of seconds begin to wait for it


class Health(Enum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but less well than it could."""
    PROBLEM = "problem"
    """A peer cannot work like this."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    health: Health
    text: str
    """What was seen."""
    remedy: str = ""
    """What helps; empty where nothing has to."""


def ok(name: str, text: str) -> Finding:
    return Finding(name, Health.OK, text)


def warning(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, Health.WARNING, text, remedy)


def problem(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, Health.PROBLEM, text, remedy)


def has_problem(findings: Sequence[Finding]) -> bool:
    return any(finding.health is Health.PROBLEM for finding in findings)


def judge_disk(free_bytes: float, folder: str) -> Finding:
    text = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    remedy = "free some space, or name another place with --store FOLDER; --store none keeps no checkpoints"
    if free_bytes < MIN_DISK_BYTES:
        return problem("disk", text, remedy)
    return warning("disk", text, remedy) if free_bytes < FEW_DISK_BYTES else ok("disk", text)


def judge_files(limit: int | None) -> Finding:
    """`limit`: of files and connections that a process may have open; None: none, or not known."""
    if limit is None:
        return ok("open files", "no limit")
    text = f"{limit} may be open"
    remedy = "raise the limit: ulimit -n 4096, or LimitNOFILE=4096 of a service"
    if limit < MIN_FILES:
        return problem("open files", text, remedy)
    return warning("open files", text, remedy) if limit < FEW_FILES else ok("open files", text)


def judge_memory(free_bytes: float, bound_by: str) -> Finding:
    text = f"{free_bytes / 1e9:.1f} GB may be used ({bound_by})"
    remedy = "end other programs, or raise the limit; legion-peer --dry-run tells what a run takes"
    if free_bytes < MIN_MEMORY_BYTES:
        return problem("memory", text, remedy)
    return warning("memory", text, remedy) if free_bytes < FEW_MEMORY_BYTES else ok("memory", text)


def judge_clock(year: int, built_year: int, is_synchronized: bool | None) -> Finding:
    """`built_year`: of this program; `is_synchronized`: by the system's own word, None where it says nothing."""
    remedy = "set the clock, and let the system keep it: timedatectl set-ntp true"
    if year < built_year:
        return problem("clock", f"it says {year}, which is before this program was made", remedy)
    if is_synchronized is False:
        return warning("clock", "the system does not keep it by a time server; tokens of private runs expire by it", remedy)
    return ok("clock", "kept by a time server" if is_synchronized else "plausible")


def judge_addresses(hosts: Sequence[str]) -> Finding:
    """`hosts`: of this machine, without loopback."""
    if hosts:
        return ok("addresses", ", ".join(hosts))
    return problem("addresses", "this machine has no address but loopback", "connect it to a network")


def judge_contact(address: str, trouble: str | None, rtt_s: float | None, speaks: bool | None) -> Finding:
    """An initial peer. `trouble`: why it cannot be reached; `speaks`: it takes requests of this version, None: not known."""
    name = "initial peer"
    if trouble is not None:
        return problem(name, f"{address}: {trouble}", "check that it runs, its address, and that no firewall is between")
    if speaks is False:
        return problem(
            name, f"{address}: it answers, but in another version of the protocol", "install the newest version on both"
        )
    delay = "" if rtt_s is None else f", {1000 * rtt_s:.0f} ms"
    if rtt_s is not None and rtt_s > SLOW_S:
        return warning(name, f"{address}: answers{delay}", "enter through a peer that is nearer")
    return ok(name, f"{address}: answers{delay}")


def judge_reach(reach: str, nat: str, why: str) -> Finding:
    text = f"{reach}, NAT {nat}" + (f": {why}" if why else "")
    if reach == "relayed":
        return warning("reach", text, "forward a port of the router to this machine, and name it with --announce")
    if reach == "unknown":
        return warning("reach", text, "nobody has tried to dial this machine yet; ask again with --initial-peers, or in a minute")
    return ok("reach", text)
