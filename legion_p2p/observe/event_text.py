"""Events in words, for a person to read."""

from typing import Any

from legion_p2p.observe import human
from legion_p2p.observe.events import DASHBOARD, HANDING_OVER, PHASE, Event
from legion_p2p.observe.status import Status
from legion_p2p.observe.words import alone_text, own_left_text, privacy_text

MAX_VALUE_CHARS = 300
MAX_COMMAND_CHARS = 2000


JOIN_WITH = "run.join_with"
"""The event that carries the command with which others join."""


def rounds_of(status: Status) -> int:
    """Rounds as a person counts them, each averaging every shard once; `status.rounds` counts those of every shard."""
    if status.shards:
        return max(shard.version for shard in status.shards)
    return status.last_round.version if status.last_round else 0


def progress_text(status: Status) -> str:
    """How far a peer is, in one line."""
    target = f"/{human.whole_text(status.target_steps)}" if status.target_steps else ""
    alive = sum(member.liveness.lower() == "alive" for member in status.members)
    parts = [f"step {human.whole_text(status.step)}{target}"]
    if status.loss is not None:
        parts.append(f"loss {human.loss_text(status.loss)}")
    parts.append(f"{human.count_text(status.tokens_per_s)} tokens/s")
    if status.mfu is not None:
        parts.append(f"MFU {human.percent_text(status.mfu)}")
    if alive == len(status.members):
        parts.append((alone_text(status) or "alone in the run") if alive == 1 else f"{alive} members")
    else:
        parts.append(f"{alive} of {len(status.members)} members alive")
    if status.last_round and len(status.members) > 1:
        averaged = human.percent_text(status.last_round.averaged_fraction)
        parts.append(f"{human.whole_text(rounds_of(status))} rounds, last averaged {averaged}")
    parts.append(f"sent {human.bytes_text(status.sent_bytes)}, received {human.bytes_text(status.received_bytes)}")
    if status.privacy is not None:
        parts.append(privacy_text(status.privacy))
    if own_left_text(status):
        parts.append(own_left_text(status))
    return "; ".join(parts)


def describe(event: Event) -> str:
    """One event as a line: `07:58:45 round closed: shard 3, averaged fraction 66.7 %, sent 1.2 MB`."""
    if event.name == JOIN_WITH:  # to be pasted, so as it is
        command = human.clean(str(event.fields.get("command", "")), MAX_COMMAND_CHARS)
        return f"{human.clock_text(event.at)} others join with: {command}"
    if event.name == DASHBOARD:
        return f"{human.clock_text(event.at)} dashboard: {event.private or event.fields.get('address', '')}"
    if event.name == HANDING_OVER:
        return f"{human.clock_text(event.at)} {handing_over_text(event)}"
    if event.name == PHASE:
        return f"{human.clock_text(event.at)} {human.clean(str(event.fields.get('text', '')), MAX_VALUE_CHARS)}"
    words = human.clean(event.name.replace(".", " ").replace("_", " "))
    fields = dict(event.fields)
    text = human.clean(human.short_ids(str(fields.pop("text", ""))), MAX_VALUE_CHARS)
    rest = ", ".join(field_text(name, value) for name, value in fields.items() if value is not None)
    told = "; ".join(part for part in (text, rest) if part)
    mark = "error: " if event.is_error else ""
    return f"{human.clock_text(event.at)} {mark}{words}{': ' + told if told else ''}"


def handing_over_text(event: Event) -> str:
    """How long leaving will take."""
    n_shards, remaining_s = int(event.fields["n_shards"]), event.fields["remaining_s"]
    what = f"{human.whole_text(n_shards)} shard{'s' * (n_shards != 1)}, {human.bytes_text(event.fields['left_bytes'])}"
    time_text = "" if remaining_s is None else f", about {human.duration_text(max(1.0, round(remaining_s)))}"
    return f"handing over {what}{time_text}; Ctrl+C leaves at once"


def field_text(name: str, value: Any) -> str:
    """A field with the unit that its name carries (`sent_bytes`, `wall_s`, `averaged_fraction`)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    label = name.replace("_", " ")
    if number and name.endswith("_bytes"):
        return f"{label[:-6]} {human.bytes_text(value)}"
    if number and name.endswith("_per_s"):
        return f"{label[:-6]}/s {human.count_text(value)}"
    if number and name.endswith("_s"):
        return f"{label[:-2]} {_span_text(value)}"
    if number and name.endswith("fraction"):
        return f"{label} {human.percent_text(value)}"
    if number and name.endswith("loss"):
        return f"{label} {human.loss_text(value)}"
    if number and name.startswith("n_"):
        return f"{human.whole_text(value) if isinstance(value, int) else f'{value:.4g}'} {label[2:]}"
    if isinstance(value, bool):
        return label if value else f"not {label}"
    if isinstance(value, int):
        return f"{label} {human.whole_text(value)}"
    if isinstance(value, float):
        return f"{label} {value:.4g}"
    return f"{label} {human.clean(_plain(value), MAX_VALUE_CHARS)}"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return human.short_ids(value)
    if isinstance(value, tuple | list | set | frozenset):
        return " ".join(map(_plain, value)) or "none"
    return str(value)


def _span_text(seconds: float) -> str:
    if abs(seconds) < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if abs(seconds) < 100 else human.seconds_text(seconds)
