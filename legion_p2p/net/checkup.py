"""Trying initial peers, and finding out how others reach this machine: for a check-up, without a run."""

import trio

from legion_p2p.core.addresses import parse_peer_address
from legion_p2p.core.findings import Finding, judge_contact, judge_reach
from legion_p2p.core.identity import Identity
from legion_p2p.core.reach import OwnReach, Reach
from legion_p2p.core.wire import GetRuns, encode_checked
from legion_p2p.errors import NetworkError, NoContactError, RefusedError
from legion_p2p.net.host import open_network
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.wire import OTHER_VERSION

REACH_S = 12.0  # contacts dial back within some seconds; a NAT that has to be looked at takes longer, and is left unknown
ANSWER_S = 5.0


async def examine_network(contacts: tuple[str, ...]) -> list[Finding]:
    """Each initial peer, and how this machine can be reached. Raises: UsageError; NetworkError, if nothing can be listened on."""
    async with open_network(Identity.generate(), initial_peers=contacts) as network:
        try:
            await network.join()
        except NoContactError:
            return [judge_contact(address, reason or "no answer", None, None) for address, reason in network.dial_reports.items()]
        findings = [await _contact(network, address, trouble) for address, trouble in network.dial_reports.items()]
        found = trio.Event()

        def look(own: OwnReach) -> None:
            if own.reach is not Reach.UNKNOWN:
                found.set()

        network.reachability.changed.add(look)
        if network.reachability.own().reach is Reach.UNKNOWN:
            with trio.move_on_after(REACH_S):
                await found.wait()
        own = network.reachability.own()
        return [*findings, judge_reach(own.reach.value, own.nat.value, own.why)]


async def _contact(network: Libp2pNetwork, address: str, trouble: str | None) -> Finding:
    if trouble is not None:
        return judge_contact(address, trouble, None, None)
    _, peer = parse_peer_address(address)
    messenger = network.messenger
    speaks: bool | None = None
    began = trio.current_time()
    try:
        with trio.fail_after(ANSWER_S):
            await messenger.request(peer, encode_checked(GetRuns()))
        speaks = True
    except RefusedError as refused:
        speaks = refused.kind != OTHER_VERSION
    except (NetworkError, trio.TooSlowError):
        pass
    rtt_s = messenger.rtt_s(peer)
    return judge_contact(address, None, rtt_s if rtt_s is not None else trio.current_time() - began, speaks)
