"""What a status says about the user's work, in words: which peers are late, and why this peer is alone."""

import shlex
from collections.abc import Sequence

from legion_p2p.core.answers import RoundScores, TaskScore
from legion_p2p.core.round import LATE
from legion_p2p.observe import human
from legion_p2p.observe.status import ConnectionStatus, FailedPush, MemberStatus, PrivacyStatus, ReachStatus, Status, TargetStatus

MAX_CONTACTS_SHOWN = 2


def join_command(run: str, addresses: Sequence[str]) -> str:
    """What others run to join through this peer."""
    return shlex.join(["legion-peer", "--run", run, "--initial-peers", *addresses])


def reason_text(failed: FailedPush, max_chars: int = 200) -> str:
    """Why a member is not in the last average. Being late loses nothing: the next round has it."""
    return "late by a round, counts in the next" if failed.reason == LATE else human.clean(failed.reason, max_chars)


def failed_text(failed: FailedPush, status: Status, max_chars: int = 200) -> str:
    """Which member is not in the last average, and why."""
    who = "this peer" if failed.peer_id == status.peer_id else human.short_id(failed.peer_id)
    is_late = failed.reason == LATE
    return f"{who}: {reason_text(failed)}" if is_late else f"not averaged: {who} ({reason_text(failed, max_chars)})"


def doing(member: MemberStatus) -> str:
    """What a member is at, in one word."""
    if member.liveness.upper() != "ALIVE":
        return member.liveness.lower()
    if member.role == "helper":
        return "helping" if member.ready else "joining"
    if member.paused:
        return "paused"
    if member.done:
        return "done"
    return "training" if member.training else "waiting" if member.ready else "joining"


def connection_text(connection: ConnectionStatus | None) -> str:
    """What the connection to a peer runs over; a dash where there is none."""
    if connection is None:
        return human.NOTHING
    if connection.kind == "relayed":
        return f"relayed via {human.short_id(connection.relay)}" if connection.relay else "relayed"
    return human.clean(connection.kind)


def reach_text(reach: ReachStatus) -> str:
    """How others reach this peer, why that is believed, and which relays are part of it."""
    told = human.clean(reach.reach) + (f": {human.clean(reach.why)}" if reach.why else "")
    if reach.relays:
        told += f"; relays that lead to it: {', '.join(map(human.short_id, reach.relays))}"
    if reach.circuits:
        told += f"; it relays for others, at most {human.whole_text(reach.circuits)} circuits"
    return told


def relayed_text(status: Status) -> str:
    """What a peer that only relays lead to should know; empty for others."""
    if status.reach.reach != "relayed":
        return ""
    through = ", ".join(map(human.short_id, status.reach.relays)) or "none yet"
    return f"others reach this peer through relays only ({through}): it owns shards only while too few others can be reached"


def privacy_text(privacy: PrivacyStatus) -> str:
    """What pushes have spent of this peer's privacy."""
    if privacy.epsilon is None:
        return "epsilon: nothing pushed yet"
    told = f"epsilon {privacy.epsilon:.3g} at delta {privacy.delta:g}, after {privacy.rounds:.1f} rounds"
    return f"{told}; {human.percent_text(privacy.clipped_share)} of the pushes were clipped"


def task_text(task: TaskScore) -> str:
    """How well the common model does in one task."""
    if task.acc is None:
        return f"{human.clean(task.task, 40)} unanswered"
    error = "" if task.stderr is None else f" ± {100 * task.stderr:.1f}"
    part = "" if task.n_answered == task.n else f" ({human.whole_text(task.n_answered)} of {human.whole_text(task.n)} answered)"
    return f"{human.clean(task.task, 40)} {100 * task.acc:.1f}{error} %{part}"


def scores_text(scores: RoundScores) -> str:
    """How well the common model does in the tasks of --eval-tasks."""
    return f"{', '.join(map(task_text, scores.tasks))}, at step {human.whole_text(scores.last_step)}"


def own_left_text(status: Status) -> str:
    """How long until what this peer's user asked for is done: a range, or about, or unknown; empty where it has no end."""
    least_s, most_s = status.remaining_s, status.remaining_most_s
    if least_s is None:
        return "time left unknown" if status.target_steps else ""
    if most_s is None:
        return f"about {human.seconds_text(least_s)} left"
    return _range_text(least_s, most_s)


def _range_text(least_s: float, most_s: float) -> str:
    least, most = human.seconds_text(least_s), human.seconds_text(most_s)
    return f"{least} left" if least == most else f"{least} to {most} left"


def left_text(target: TargetStatus) -> str:
    """How long until the run has come to its target, as a range."""
    if target.least_s is None or target.most_s is None:
        return "time left unknown"
    return _range_text(target.least_s, target.most_s)


def target_text(target: TargetStatus) -> str:
    """What ends the run, and when."""
    named = [
        f"{human.whole_text(target.steps)} steps" if target.steps else "",
        f"{human.count_text(target.tokens)} tokens ({human.count_text(target.run_tokens)} so far)" if target.tokens else "",
        f"a loss of {human.loss_text(target.loss)}" if target.loss else "",
    ]
    told = " or ".join(filter(None, named))
    return f"{told}: {human.clean(target.reached) or left_text(target)}"


def is_alone(status: Status) -> bool:
    """True if no other member of the run is alive, as far as this peer knows."""
    return not any(m.peer_id != status.peer_id and m.liveness.upper() != "DEAD" for m in status.members)


def alone_text(status: Status) -> str:
    """Why this peer trains alone, and what would help; empty where it does not."""
    if status.run is None or not is_alone(status):
        return ""
    return _why_alone(status) + _former_text(status)


def _former_text(status: Status) -> str:
    if not status.former:
        return ""
    shown = ", ".join(human.clean(address, 160) for address in status.former[:MAX_CONTACTS_SHOWN])
    more = f" and {len(status.former) - MAX_CONTACTS_SHOWN} more" if len(status.former) > MAX_CONTACTS_SHOWN else ""
    return f"; former members that the store remembers are tried as well: {human.short_ids(shown)}{more}"


def _why_alone(status: Status) -> str:
    unanswered = [contact for contact in status.contacts if contact.problem]
    if unanswered and len(unanswered) == len(status.contacts):
        shown = "; ".join(f"{human.clean(c.address, 160)}: {human.clean(c.problem, 80)}" for c in unanswered[:MAX_CONTACTS_SHOWN])
        more = f"; and {len(unanswered) - MAX_CONTACTS_SHOWN} more" if len(unanswered) > MAX_CONTACTS_SHOWN else ""
        return f"alone: no initial peer answers, they are tried again and again ({human.short_ids(shown)}{more})"
    if status.contacts:
        return "alone: the initial peers answer, and none of them knows another member"
    return "alone: others join with the command above, or with an address of this peer"


def n_lost(status: Status) -> int:
    """Of the peers that this one was given to enter through, those without a connection now."""
    return sum(bool(contact.problem) for contact in status.contacts)
