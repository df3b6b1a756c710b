"""A page for as long as its peer or node runs: its token, and the file beside the key that says where it is."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import trio

from legion_p2p.concurrency.nurseries import TaskStatus, open_flat_nursery
from legion_p2p.config import DASHBOARD_PORTS
from legion_p2p.files.paths import user_path
from legion_p2p.web.feed import Obey
from legion_p2p.web.guard import new_token
from legion_p2p.web.page_blocks import WebPage
from legion_p2p.web.page_server import serve_page

ADDRESS_SUFFIX = ".dashboard"


def ports_of(choice: str) -> tuple[int, ...]:
    """Where a page is served, as `--dashboard` says: yes, no, or a port. Empty: nowhere."""
    if choice == "no":
        return ()
    return (int(choice),) if choice.isdecimal() else (*DASHBOARD_PORTS, 0)


async def host_page(
    make: Callable[[], WebPage],
    *,
    ports: Iterable[int],
    key_file: str = "",
    obey: Obey | None = None,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the page until cancelled. `await nursery.start(...)` returns the address to open, which ends in the token.

    With a key file, the address is in a file beside it meanwhile, which its owner alone can read. Raises: NetworkError.
    """
    token = new_token()
    async with open_flat_nursery() as nursery:

        async def serve(task_status: TaskStatus[str]) -> None:
            await serve_page(make, token=token, obey=obey, ports=ports, task_status=task_status)

        where = await nursery.start(serve)
        address = f"http://{where}/#{token}"
        with noted(address, key_file):
            task_status.started(address)
            await trio.sleep_forever()


@contextlib.contextmanager
def noted(address: str, key_file: str) -> Iterator[None]:
    """The address in `peer.dashboard` beside `peer.key`, mode 0600, until the end of the block. A folder that takes no file is no
    reason not to serve: the address was printed."""
    if not key_file:
        yield
        return
    key = user_path(key_file)
    path = key.with_name(f"{key.stem}{ADDRESS_SUFFIX}")
    is_ours = _write_private(path, address + "\n")
    try:
        yield
    finally:
        if is_ours:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> bool:
    """A new file of mode 0600, never one that another user has made: existing links and open files do not reach it."""
    try:
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:
        return False
    with os.fdopen(file, "w", encoding="ascii") as written:
        written.write(text)
    return True
