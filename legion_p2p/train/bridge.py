"""A peer in a thread of its own, for callers in ordinary synchronous code, or in a notebook whose asyncio loop runs already.

If anything in that thread fails, the peer leaves its run, and the first failure is the cause of the ClosedError that every later
call raises. It is printed in one line when the script ends, for scripts that never called again.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol, TypeVar

import trio

from legion_p2p.concurrency.nurseries import root_of
from legion_p2p.errors import ClosedError, UsageError, describe_failure
from legion_p2p.observe.event_text import handing_over_text
from legion_p2p.observe.events import HANDING_OVER, Event
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.leaving import LEAVE_S

T = TypeVar("T")
Opener = Callable[[], AbstractAsyncContextManager[ActiveRun]]

POLL_S = 0.1
CLOSE_S = 5.0  # a peer with a small model has left after 2 s, on a busy machine; a larger one goes on leaving in the background
AT_EXIT_S = LEAVE_S + 5.0  # a thread that needs longer is left behind


class PeerAccess(Protocol):
    """How code outside the peer's thread reaches it."""

    @property
    def engine(self) -> ActiveRun:
        """The peer's part in its run. Reading plain attributes is safe from any thread; everything else goes through `call` or
        `post`."""

    @property
    def alive(self) -> bool:
        """The peer runs, and belongs to this process."""

    @property
    def cause(self) -> BaseException | None:
        """The failure that made the peer leave; None where it lives, or has left because it was asked to."""

    def closed(self, otherwise: str) -> ClosedError:
        """The error to raise, from `cause`, where the peer is needed and has left."""

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Run `fn` in the peer's thread soon, without waiting for it. Ignored once the peer has left.

        If it fails the peer leaves its run, as with any failure in that thread.
        """

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn` in the peer's thread and wait for its result. Raises: ClosedError, after the peer has left."""

    def check_may_wait(self) -> None:
        """Check that the peer goes on while the caller trains or waits. Raises: UsageError."""

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Leave the run in order, and wait for that, at most `wait_s`."""


class PeerInLoop:
    """A peer in the caller's own trio loop, whose end the caller sees to. Training happens in worker threads beside it."""

    def __init__(self, engine: ActiveRun) -> None:
        self.engine = engine
        self._pid = os.getpid()
        self._token = trio.lowlevel.current_trio_token()
        self._loop = threading.get_ident()

    @property
    def alive(self) -> bool:
        return self._pid == os.getpid() and not self.engine.presence.leaving

    @property
    def cause(self) -> BaseException | None:
        return self.engine.mailbox.cause

    def closed(self, otherwise: str) -> ClosedError:
        return ClosedError(self.engine.mailbox.closed or otherwise)

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(fn, *args)

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        if threading.get_ident() == self._loop:
            return fn(*args)
        try:
            return trio.from_thread.run_sync(fn, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise self.closed("this peer has left its run") from self.cause

    def check_may_wait(self) -> None:
        if threading.get_ident() == self._loop:
            raise UsageError("training here would hold up the network: await trio.to_thread.run_sync(train, opt)")

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Nothing: the end of the block leaves the run."""


class PeerThread:
    """Runs `opener()` under trio in a background thread until `close`.

    Returns once the peer is in its run; `given_up` is asked meanwhile and ends it with ClosedError. After a fork the child has no
    such thread: calls there raise ClosedError, and nothing of the parent's peer is touched.
    """

    def __init__(self, opener: Opener, given_up: Callable[[], bool] = lambda: False) -> None:
        self._pid = os.getpid()
        self._opener = opener
        self._ready = threading.Event()
        self._failure: BaseException | None = None  # that ended the thread, as it left trio
        self._cause: BaseException | None = None
        self._engine: ActiveRun | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, name="legion-peer", daemon=True)
        self._thread.start()
        try:
            while not self._ready.wait(POLL_S):
                if given_up():
                    raise ClosedError("stopped while joining")
        except BaseException:  # Ctrl+C while joining
            self.close()
            raise
        if self._failure is not None:
            self._thread.join(CLOSE_S)
            raise self._failure
        _open_threads.add(self)

    @property
    def engine(self) -> ActiveRun:
        if self._engine is None:
            raise ClosedError("this peer has not joined a run")
        return self._engine

    @property
    def alive(self) -> bool:
        return self._pid == os.getpid() and self._thread.is_alive()

    @property
    def cause(self) -> BaseException | None:
        return self._cause if self._cause is not None or self._engine is None else self._engine.mailbox.cause

    def closed(self, otherwise: str) -> ClosedError:
        return ClosedError((None if self._engine is None else self._engine.mailbox.closed) or otherwise)

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        self._check()
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._posted, fn, args)
        except trio.RunFinishedError:
            return

    def _posted(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except Exception as failed:  # trio would take it for a fault of its own, and end without leaving the run
            self._fail(failed)

    def _fail(self, failure: BaseException) -> None:
        """In the peer's thread: leave, and say why."""
        self._cause = self.cause or failure
        self.engine.mailbox.fail(failure)
        self._stop.set()

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        self._check()
        try:
            return trio.from_thread.run_sync(fn, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise self.closed("this peer has left its run") from self.cause

    def check_may_wait(self) -> None:
        pass

    def wait(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run the async `fn` in the peer's thread and wait for its result. Raises: ClosedError, after the peer has left."""
        self._check()
        try:
            return trio.from_thread.run(fn, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise self.closed("this peer has left its run") from self.cause

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Leave the run in order, and wait for that, at most `wait_s`. What takes longer goes on in the background: large shards
        on their way to their next owners. The end of the script waits for it.

        May be called twice, and from a forked child, where it does nothing.
        """
        if self._pid != os.getpid():
            return
        if self._token is not None and self._thread.is_alive():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._request_stop)
        self._thread.join(wait_s)
        if not self._thread.is_alive():
            _open_threads.discard(self)

    def _request_stop(self) -> None:
        # Once in the run, the way out is through the end of the block, so that there is still a network to say goodbye over.
        if self._engine is None:
            self._joining.cancel()
        else:
            self._stop.set()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError(f"this peer lives in process {self._pid}; a forked process needs one of its own")
        if self._token is None:
            raise ClosedError("this peer has not joined a run")

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as failed:  # whatever it is: it is raised in the thread that opened this one
            self._failure = failed
            if self._engine is not None:
                self._cause = self.cause or root_of(failed)
                self._engine.mailbox.fail(self._cause)
        finally:
            if self._cause is not None:
                _failed.append(self)
            self._ready.set()

    async def _main(self) -> None:
        self._joining = trio.CancelScope()
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        with self._joining:
            async with self._opener() as engine:
                self._engine = engine
                self._ready.set()
                await self._stop.wait()


_open_threads: set[PeerThread] = set()
_failed: list[PeerThread] = []


@atexit.register
def _close_all() -> None:
    """A script that just ends leaves its run in order; people are told where that takes long."""
    for thread in list(_open_threads):
        if thread.alive and thread._engine is not None:
            thread._engine.events.add_sink(_tell_of_hand_over)
        thread.close(AT_EXIT_S)
    for thread in _failed:
        if thread.cause is not None:
            print(f"legion_p2p: a peer left its run early: {describe_failure(thread.cause)}", file=sys.stderr, flush=True)
    _failed.clear()


def _tell_of_hand_over(event: Event) -> None:
    if event.name == HANDING_OVER:
        print(f"legion_p2p: {handing_over_text(event)}", file=sys.stderr, flush=True)
