"""mDNS below `net/lan.py`, by zeroconf: one service for each peer, whose name is its peer id.

The service is our own, not libp2p's `_p2p._udp`: on a LAN with IPFS nodes every one of them would be dialed in vain. zeroconf
runs in threads of its own and bounds what it keeps of others; what comes from there is only a name and some bytes.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from zeroconf import Error as MdnsError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

SERVICE = "_legion-p2p._tcp.local."
QUESTION_MS = 1500  # for the texts of a service whose name is known; most come in the same packet
CLOSE_S = 2.0  # for saying goodbye
MAX_WAITING = 64  # names that are not looked at yet; more are dropped, and come again when they are announced again

T = TypeVar("T")

logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # warns of what neighbours send, and of interfaces without multicast


class MdnsSession:
    """One peer on the LANs that this machine is in now."""

    def __init__(self, zeroconf: Zeroconf) -> None:
        self._zeroconf = zeroconf
        self._send, self.heard = trio.open_memory_channel[tuple[str, bool]](MAX_WAITING)
        """Names of services, and whether each is there or said goodbye."""
        self._token = trio.lowlevel.current_trio_token()

    def browse(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called by zeroconf, in its thread."""
        is_there = state_change is not ServiceStateChange.Removed
        try:
            self._token.run_sync_soon(self._take, name.removesuffix(f".{SERVICE}"), is_there)
        except trio.RunFinishedError:
            return

    def _take(self, name: str, is_there: bool) -> None:
        try:
            self._send.send_nowait((name, is_there))
        except trio.WouldBlock:
            return

    async def said_by(self, name: str) -> bytes:
        """The text records of a service; nothing where it gives none."""
        info = ServiceInfo(SERVICE, f"{name}.{SERVICE}")
        await _in_thread(lambda: info.request(self._zeroconf, QUESTION_MS))
        return info.text or b""


@asynccontextmanager
async def open_mdns(hosts: Sequence[str], name: str, port: int, said: bytes) -> AsyncIterator[MdnsSession]:
    """Announce a service with these text records on the interfaces with these addresses, and hear of others.

    Raises: OSError, where this machine does not let it.
    """
    try:
        zeroconf = await trio.to_thread.run_sync(lambda: Zeroconf(interfaces=list(hosts)))
    except MdnsError as failed:
        raise OSError(str(failed)) from failed
    session = MdnsSession(zeroconf)
    browser = ServiceBrowser(zeroconf, SERVICE, handlers=[session.browse])

    def close() -> None:
        browser.cancel()
        zeroconf.close()

    try:
        # with addresses, because zeroconf goes on asking for a service that has none
        info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", port=port, properties=said, parsed_addresses=list(hosts))
        try:
            await _in_thread(lambda: zeroconf.register_service(info, cooperating_responders=True))
        except MdnsError as failed:
            raise OSError(str(failed)) from failed
        yield session
    finally:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
            await _in_thread(close)


async def _in_thread(fn: Callable[[], T]) -> T:
    """Its result. Where the caller is cancelled, the thread goes on by itself, for at most the seconds that zeroconf waits."""
    return await trio.to_thread.run_sync(fn, abandon_on_cancel=True)  # type: ignore[call-arg]
