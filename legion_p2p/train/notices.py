"""What a user has to know while training goes on: an event, and a line on stderr where nobody listens to events."""

import sys

import torch

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.observe.events import Events

MAX_TOLD_MEMBERS = 64  # of whose trouble this peer tells: a stranger may invent any number of members


def show(events: Events, text: str) -> None:
    """Print what has just become an event, unless a listener shows events."""
    if not events.are_shown:
        print(f"legion_p2p: {text}", file=sys.stderr, flush=True)


class DivergedMembers:
    """Tells of members that announce that their training has diverged: their pushes are missed, and here is why."""

    def __init__(self, me: PeerId, events: Events) -> None:
        self._me = me
        self._events = events
        self._told: set[str] = set()

    def heard(self, announcement: Announcement) -> None:
        """An announcement came in."""
        peer = announcement.peer_id
        if not announcement.trouble:
            self._told.discard(peer)
        elif peer != self._me and peer not in self._told and len(self._told) < MAX_TOLD_MEMBERS:
            self._told.add(peer)
            text = f"member {peer} pushes nothing any more: {announcement.trouble}"
            self._events.error("member.diverged", text, peer=peer)
            show(self._events, text)


def text_of_divergence(inner: torch.optim.Optimizer) -> str:
    """What has happened, and what helps."""
    state = "the optimizer's state holds such numbers and will make them again" if _is_poisoned(inner) else "it will happen again"
    return (
        f"training diverged: the parameters became NaN or infinite, twice in a row, and were taken back to the common model; "
        f"{state}. Lower the rate, skip steps whose gradients are not finite, and empty the state once the parameters are finite "
        "again: opt.state.clear()"
    )


def _is_poisoned(inner: torch.optim.Optimizer) -> bool:
    values = [v for state in inner.state.values() if isinstance(state, dict) for v in state.values()]
    return any(isinstance(v, torch.Tensor) and v.is_floating_point() and not bool(torch.isfinite(v).all()) for v in values)
