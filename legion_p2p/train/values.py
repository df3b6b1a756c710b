"""Numbers from a training loop, on their way to the network's thread: converted and checked here, at the call.

What is wrong there would end the thread, or be refused by other peers, long after the line that is to blame.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from legion_p2p.core.wire import MAX_COUNT
from legion_p2p.errors import UsageError
from legion_p2p.services.run.progress import Progress

MAX_TOKENS_PER_STEP = 1 << 40  # four million such steps still fit into an announcement


def number(value: Any, name: str) -> float:
    """Anything with `__float__`: a tensor or array of one element, a number of numpy, a Fraction.

    Raises: UsageError, if it is none, or not finite.
    """
    if isinstance(value, str | bytes) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise UsageError(f"{name} is a {type(value).__name__}: a number is expected")
    try:
        converted = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as bad:  # a tensor of several elements, a complex one, 10**400
        shape = f" of shape {tuple(value.shape)}" if getattr(value, "shape", ()) else ""
        raise UsageError(f"{name} is a {type(value).__name__}{shape}: a single real number is expected") from bad
    if not math.isfinite(converted):
        raise UsageError(f"{name} is {converted}: a finite number is expected")
    return converted


def whole(value: Any, name: str, least: int = 0, most: int = MAX_COUNT) -> int:
    """The same for a whole number from `least` to `most`. Raises: UsageError."""
    if isinstance(value, int):
        converted = int(value)
    else:
        given = number(value, name)
        if given != int(given):
            raise UsageError(f"{name} is {given}: a whole number is expected")
        converted = int(given)
    if not least <= converted <= most:
        raise UsageError(f"{name} is {converted}: {least} to {most} are allowed")
    return converted


def seconds(value: Any, name: str) -> float | None:
    """A time to wait for, 0 or more; None, as infinity, is no limit. Raises: UsageError."""
    if value is None or (isinstance(value, float) and value == math.inf):
        return None
    converted = number(value, name)
    if converted < 0:
        raise UsageError(f"{name} is {converted}: 0 or more seconds are expected")
    return converted


def deadline_after(timeout_s: Any) -> float | None:
    """When that time is over, by time.monotonic(); None: never. Raises: UsageError."""
    limit_s = seconds(timeout_s, "timeout_s")
    return None if limit_s is None else time.monotonic() + limit_s


def is_over(deadline: float | None) -> bool:
    """Whether a deadline of `deadline_after` has passed."""
    return deadline is not None and time.monotonic() >= deadline


def loss_in(result: Any) -> float | None:
    """The loss in what a closure returned: the number itself, the first of several, or that named "loss"; None where there is
    none that is finite.
    """
    if isinstance(result, Mapping):
        result = result.get("loss")
    elif isinstance(result, tuple | list):
        result = result[0] if result else None
    elif not hasattr(result, "__float__") and hasattr(result, "loss"):
        result = result.loss
    try:
        return None if result is None else number(result, "loss")
    except UsageError:
        return None


_FLOATS = frozenset({"tokens_per_s", "step_s", "loss", "blocked_fraction", "remaining_s", "remaining_most_s", "mfu"})
_COUNTS = frozenset({"step", "tokens", "epoch", "target_steps", "run_step"})
_FLAGS = frozenset({"training", "done", "paused"})


def progressed(before: Progress, changes: Mapping[str, Any]) -> Progress:
    """`before` with these fields changed. Raises: UsageError, naming the field that is unknown or wrong."""
    converted: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in Progress.__struct_fields__:
            known = ", ".join(Progress.__struct_fields__)
            raise UsageError(f"{name!r} is nothing that a peer tells of itself: known are {known}")
        if value is None and name in ("loss", "target_steps", "remaining_s", "remaining_most_s", "mfu"):
            converted[name] = None
        elif name in _FLOATS:
            converted[name] = number(value, name)
        elif name in _COUNTS:
            converted[name] = whole(value, name)
        elif name in _FLAGS:
            converted[name] = bool(value)
        elif not isinstance(value, bytes if name == "chunks" else str):
            raise UsageError(f"{name} is a {type(value).__name__}: {'bytes' if name == 'chunks' else 'a string'} expected")
        else:
            converted[name] = value
    return msgspec.structs.replace(before, **converted)
