"""Sockets that a forked process must not keep open.

A child of a process with a live peer (a DataLoader's worker, say) inherits all of the peer's sockets. As long as it lived, the
death of its parent would look to everybody else like mere silence, and the parent's ports would stay taken.
"""

import os
import weakref
from typing import Protocol


class Detachable(Protocol):
    """A socket."""

    def detach(self) -> int:
        """Give its file descriptor away; negative where it has none any more."""


_open: "weakref.WeakSet[Detachable]" = weakref.WeakSet()


def keep_from_children(sock: Detachable) -> None:
    """Close `sock` in every process that is forked from now on; here it stays open."""
    _open.add(sock)


def _close_inherited() -> None:
    for sock in list(_open):
        # Not close(): that would tell trio, which does not run here.
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
