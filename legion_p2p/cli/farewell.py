"""What `legion-peer` prints at its end: the result, and how to come back."""

import shlex
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from legion_p2p.cli.peer_options import Job
from legion_p2p.core.addresses import is_circuit, parse_peer_address, split_address, split_circuit
from legion_p2p.core.roles import Role
from legion_p2p.errors import UsageError
from legion_p2p.observe import human
from legion_p2p.observe.status import MemberStatus, Status
from legion_p2p.observe.words import is_alone

if TYPE_CHECKING:
    from legion_p2p.train.outcome import Outcome

MAX_CONTACTS = 2  # addresses in the command that comes back: one may be gone by then


def farewell_lines(job: Job, outcome: "Outcome", status: Status | None, wall_s: float) -> list[str]:
    """The result, and how to come back."""
    ends = {
        "steps": "did its steps in",
        "minutes": "used its minutes in",
        "target": "reached the target of",
        "together": "stayed until all were done in",
    }
    verb = ends.get(outcome.reason, "left")
    did = f"{human.whole_text(outcome.steps)} steps, {human.count_text(outcome.tokens)} tokens in"
    if not Role(job.peer.role).trains:
        did = "helped for"
    lines = [f"{verb} run {human.clean(run_name(job, status))}: {did} {human.seconds_text(wall_s)}"]
    if outcome.val_loss is not None:
        lines.append(f"validation loss of the common model: {human.loss_text(outcome.val_loss)}")
    if outcome.average_val_loss is not None:
        where = f", better: it is in {outcome.average_saved_to}" if outcome.average_saved_to else ""
        lines.append(f"validation loss of its average: {human.loss_text(outcome.average_val_loss)}{where}")
    if outcome.best_val_loss is not None:
        where = f", better: it is in {outcome.best_saved_to}" if outcome.best_saved_to else ""
        lines.append(f"validation loss where evaluations found it best: {human.loss_text(outcome.best_val_loss)}{where}")
    if Role(job.peer.role).trains and outcome.steps:
        used = "unknown (--peak-tflops says what the device can do)" if outcome.mfu is None else human.percent_text(outcome.mfu)
        lines.append(f"model FLOPs utilisation {used}")
    if outcome.digest:
        lines.append(f"common model {outcome.digest}")
    if job.entry.initial_peers and status is not None and status.run is not None and is_alone(status):
        lines.append("nobody else was in the run when this peer left: it was the last")
    lines.append(f"sent {human.bytes_text(outcome.sent_bytes)}, received {human.bytes_text(outcome.received_bytes)}")
    if job.training.out and not outcome.save_problem:
        lines.append(f"written to {job.training.out}")
    return [*lines, *_how_to_come_back(job, outcome, status)]


def _how_to_come_back(job: Job, outcome: "Outcome", status: Status | None) -> list[str]:
    # By its id: another run may have the name.
    run = human.clean(status.run.id if status is not None and status.run is not None else run_name(job, status))
    contacts = contacts_to_come_back(job.entry.initial_peers, outcome.connected, status)
    command = ["legion-peer", "--run", run, *(["--role", job.peer.role] if job.peer.role != "auto" else [])]
    if contacts:
        return [f"to come back: {shlex.join([*command, '--initial-peers', *contacts])}"]
    if _others(status):
        return [f"to come back, ask another member for an address: {shlex.join([*command, '--initial-peers', 'ADDR'])}"]
    if job.peer.store.path:
        return [f"nobody else is in the run; to go on with it: {shlex.join([*command, '--store', job.peer.store.path])}"]
    return ["nobody else was in the run: it has ended with this peer"]


def run_name(job: Job, status: Status | None) -> str:
    """The run's name as far as it is known."""
    return status.run.name if status is not None and status.run is not None else job.entry.name


def contacts_to_come_back(given: Sequence[str], connected: Sequence[str], status: Status | None) -> tuple[str, ...]:
    """Addresses that work from here: of those that were given the ones that were connected at the end, else members'."""
    alive = tuple(address for address in given if parse_peer_address(address)[1] in connected)
    if alive or status is None:
        return alive[:MAX_CONTACTS]
    hosts = [host for address in status.addresses if (host := _host(address)) is not None]
    found = (dialable_address(member, hosts) for member in _others(status))
    return tuple(human.clean(address) for address in found if address)[:MAX_CONTACTS]


def dialable_address(member: MemberStatus, our_hosts: Sequence[str]) -> str:
    """The member's address with which it can be reached from here, its peer id included; empty where there is none.

    Loopback is of the machine that says it: it counts only for a member that has another host in common with this peer, or where
    this peer has loopback addresses alone. A member that cannot be dialed has circuits, which lead to it through a relay.
    """
    circuits = [circuit for address in member.addresses if (circuit := _circuit(address))]
    if circuits and member.reach in ("punchable", "relayed"):
        return f"{circuits[0]}/p2p/{member.peer_id}"
    hosts = {address: host for address in member.addresses if (host := _host(address)) is not None}
    here = bool(our_hosts) and all(map(_is_loopback, our_hosts))
    here = here or any(host in our_hosts for host in hosts.values() if not _is_loopback(host))
    ranked = sorted((_rank(host), address) for address, host in hosts.items() if here or not _is_loopback(host))
    if not ranked:
        return f"{circuits[0]}/p2p/{member.peer_id}" if circuits else ""
    where, _ = split_address(ranked[0][1])
    return f"{where}/p2p/{member.peer_id}"


def _others(status: Status | None) -> list[MemberStatus]:
    if status is None:
        return []
    return [m for m in status.members if m.peer_id != status.peer_id and m.liveness.upper() == "ALIVE" and m.addresses]


def _circuit(address: str) -> str:
    """A circuit that a member announces, without the member's id; empty for anything else."""
    if not is_circuit(address):
        return ""
    try:
        return str(split_circuit(address)[0])
    except UsageError:
        return ""


def _host(address: str) -> str | None:
    """The host in an address that can be dialed; None for what a stranger announces and nobody could dial."""
    try:
        where, _ = split_address(address)
    except UsageError:
        return None
    return None if where.endswith("/tcp/0") else where.split("/")[2]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _rank(host: str) -> int:
    """Addresses that more of the world can dial come first."""
    try:
        address = ip_address(host)
    except ValueError:
        return 3 if host == "localhost" else 0
    return 3 if address.is_loopback else 2 if address.is_link_local else 1 if address.is_private else 0
