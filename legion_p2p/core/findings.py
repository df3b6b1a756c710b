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
SLOW_BPS = 1e6  # a push of a small model takes ten seconds, even if it is sparse
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


class ContactFacts(msgspec.Struct, frozen=True):
    """What came of trying an initial peer."""

    trouble: str = ""
    """Why it cannot be reached; empty: it answers."""
    rtt_s: float | None = None
    other_version: str = ""
    """What it says of its version, where that does not fit this one."""
    version: str = ""
    """Of the protocol, where it fits; empty: not known."""


def judge_contact(address: str, facts: ContactFacts) -> Finding:
    """An initial peer."""
    name, rtt_s = "initial peer", facts.rtt_s
    if facts.trouble:
        return problem(name, f"{address}: {facts.trouble}", "check that it runs, its address, and that no firewall is between")
    if facts.other_version:
        return problem(
            name, f"{address}: answers, but in another version of the protocol: {facts.other_version}",
            "install the newest version on both",
        )  # fmt: skip
    delay = "" if rtt_s is None else f", {1000 * rtt_s:.0f} ms"
    delay += f", version {facts.version} of the protocol" if facts.version else ""
    if rtt_s is not None and rtt_s > SLOW_S:
        return warning(name, f"{address}: answers{delay}", "enter through a peer that is nearer")
    return ok(name, f"{address}: answers{delay}")


def judge_reach(reach: str, nat: str, why: str) -> Finding:
    text = f"{reach}, NAT {nat}" + (f": {why}" if why else "")
    if reach == "relayed":
        return warning("reach", text, "forward a port of the router to this machine, and name it with --announce")
    if reach == "unknown":
        return warning(
            "reach", text, "ask again in a minute, with an initial peer of another network: one of this network proves nothing"
        )
    return ok("reach", text)


def judge_mapping(port: int | None, by: str, is_needed: bool, is_public: bool) -> Finding:
    """`port`: that a router forwards; `by`: the protocol by which it does; `is_public`: others dial this machine anyway."""
    name = "port mapping"
    if port is not None:
        return ok(name, f"the router forwards a port when it is asked, by {by}")
    if not is_needed:
        return ok(name, "not needed: this machine has no private address")
    text = "no router forwards a port: neither PCP, NAT-PMP nor UPnP was granted"
    if is_public:
        return ok(name, f"{text}; others reach this machine all the same")
    return warning(name, text, "turn on UPnP or NAT-PMP in the router, or forward a port by hand and name it with --announce")


def judge_speed(up_bps: float, down_bps: float, peer: str) -> Finding:
    """Bits per second, measured against `peer`."""
    text = f"{up_bps / 1e6:.1f} Mbit/s up, {down_bps / 1e6:.1f} Mbit/s down, against {peer}"
    if min(up_bps, down_bps) < SLOW_BPS:
        return warning(
            "bandwidth",
            text,
            "it works, with sparser pushes and longer rounds; a small model needs less, and so does --role client",
        )
    return ok("bandwidth", text)


def no_speed(reasons: Sequence[str]) -> Finding:
    """`reasons`: why no peer took a test."""
    why = "; ".join(dict.fromkeys(reasons)) or "no initial peer answers"
    return warning(
        "bandwidth", f"not measured: {why}", "ask again in a minute; legion-ctl status shows what the transfers of a peer reach"
    )  # fmt: skip
