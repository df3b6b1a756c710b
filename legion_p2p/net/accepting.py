"""Accepting connections where file descriptors are scarce.

trio's own loop writes a traceback ten times a second when the process may open no more files. This one says so once, with the
limit and the remedy, waits, and leaves descriptors for what the peer itself opens.
"""

import errno
from collections.abc import Awaitable, Callable

import trio

from legion_p2p.core.places import Places
from legion_p2p.net.limits import MAX_CONNECTIONS, MAX_HANDSHAKES
from legion_p2p.net.tally import Tally

RESERVED_DESCRIPTORS = 64  # for this peer itself: its store writes 16 blocks at once, the status has 17, libraries have the rest
MIN_SOCKETS = 8  # that are used however low the limit is
SCARCE_PAUSE_S = 1.0  # until it is tried again
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Warn = Callable[[str], None]
"""Told in a line what a person should know."""


def descriptor_limit() -> int | None:
    """How many files this process may have open, after asking for as many as it is allowed; None: nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + MAX_HANDSHAKES + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # macOS takes no more than its OPEN_MAX
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def max_sockets(limit: int | None) -> int:
    """How many connections a process may have if it may open this many files."""
    wanted = MAX_CONNECTIONS + MAX_HANDSHAKES
    return wanted if limit is None else min(wanted, max(MIN_SOCKETS, limit - RESERVED_DESCRIPTORS))


def scarce_text(limit: int | None, n_most: int) -> str:
    """What to tell when there are no more descriptors, or no more connections are taken because of them."""
    told = "no limit of its own" if limit is None else f"{limit} files"
    return (
        f"this process may open {told}, so it takes at most {n_most} connections and turns others away; "
        "to take more, start it with a higher limit: ulimit -n 4096 (LimitNOFILE=4096 in a systemd unit)"
    )


class Scarcity:
    """Tells once that connections are turned away, and again only after it was over."""

    def __init__(self, limit: int | None, warn: Warn, tally: Tally) -> None:
        self._limit = limit
        self._warn = warn
        self._tally = tally
        self._has_told = False
        self.max_sockets = max_sockets(limit)
        self.places = Places(self.max_sockets)
        """Those that connections of others take."""

    def admits(self, n_open: int) -> bool:
        """Whether another connection is accepted while this many are open."""
        if n_open < self.max_sockets:
            if n_open < self.max_sockets // 2:
                self._has_told = False
            return True
        self._tally.n_refused += 1
        if self.max_sockets < MAX_CONNECTIONS + MAX_HANDSHAKES:  # a crowd beyond the usual bound is nobody's misconfiguration
            self.tell()
        return False

    def tell(self) -> None:
        if not self._has_told:
            self._has_told = True
            self._warn(scarce_text(self._limit, self.max_sockets))


async def accept_forever(
    listener: trio.SocketListener, handle: Callable[[trio.SocketStream], Awaitable[None]], scarcity: Scarcity
) -> None:
    """Give every connection to `handle`, each in a task of its own, until cancelled or until the listener is closed.

    It is closed at the end: its port would stay taken until the garbage collector finds it.
    """
    async with listener, trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as failed:
                if failed.errno not in SCARCE:  # the other side has gone before it was accepted
                    await trio.lowlevel.checkpoint()
                    continue
                scarcity.tell()
                await trio.sleep(SCARCE_PAUSE_S)
                continue
            nursery.start_soon(handle, stream)
