"""Trying initial peers, and finding out how others reach this machine and how fast it is: for a check-up, without a run."""

import trio

from legion_p2p.core.addresses import parse_peer_address
from legion_p2p.core.findings import ContactFacts, Finding, judge_contact, judge_mapping, judge_reach, judge_speed, no_speed
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.reach import OwnReach, Reach
from legion_p2p.core.wire import GetRuns, encode_checked
from legion_p2p.errors import NetworkError, NoContactError, RefusedError
from legion_p2p.net.envelope import OTHER_VERSION, VERSION
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.port_mapping import MappingOutcome
from legion_p2p.observe.human import short_id

REACH_S = 12.0  # contacts dial back within some seconds; a NAT that has to be looked at takes longer, and is left unknown
MAPPING_S = 8.0  # a gateway is asked for 2 s, and devices of UPnP answer within 3
ANSWER_S = 5.0
MAX_SPEED_TRIES = 4  # peers that are asked for a test of bandwidth


async def examine_network(contacts: tuple[str, ...], network_key: bytes = b"") -> list[Finding]:
    """Each initial peer, how this machine can be reached, and how fast it is. Raises: UsageError; NetworkError, if nothing can be
    listened on.
    """
    config = NetConfig(port_mapping=True, network_key=network_key)
    async with open_network(Identity.generate(), initial_peers=contacts, config=config) as network:
        try:
            await network.join()
        except NoContactError:
            return [
                judge_contact(address, ContactFacts(reason or "no answer")) for address, reason in network.dial_reports.items()
            ]
        findings = [await _contact(network, address, trouble) for address, trouble in network.dial_reports.items()]
        mapping = MappingOutcome(None)
        async with trio.open_nursery() as nursery:

            async def ask_routers() -> None:
                nonlocal mapping
                assert network.port_mapping is not None  # it was asked for
                with trio.move_on_after(MAPPING_S):
                    mapping = await network.port_mapping.outcome()

            nursery.start_soon(ask_routers)
            own = await _reach(network)
        is_public = own.reach is Reach.PUBLIC
        findings.append(judge_reach(own.reach.value, own.nat.value, own.why))
        findings.append(judge_mapping(mapping.port, mapping.by, mapping.is_needed, is_public))
        return [*findings, await _speed(network)]


async def _reach(network: Libp2pNetwork) -> OwnReach:
    """How others reach this machine, as far as that is found out in time."""
    found = trio.Event()

    def look(own: OwnReach) -> None:
        if own.reach is not Reach.UNKNOWN:
            found.set()

    network.reachability.changed.add(look)
    if network.reachability.own().reach is Reach.UNKNOWN:
        with trio.move_on_after(REACH_S):
            await found.wait()
    return network.reachability.own()


async def _contact(network: Libp2pNetwork, address: str, trouble: str | None) -> Finding:
    if trouble is not None:
        return judge_contact(address, ContactFacts(trouble))
    _, peer = parse_peer_address(address)
    messenger = network.messenger
    version, other_version = "", ""
    began = trio.current_time()
    try:
        with trio.fail_after(ANSWER_S):
            await messenger.request(peer, encode_checked(GetRuns()))
        version = str(VERSION)
    except RefusedError as refused:
        if refused.kind == OTHER_VERSION:
            other_version = str(refused)
        else:
            version = str(VERSION)
    except (NetworkError, trio.TooSlowError):
        pass
    rtt_s = messenger.rtt_s(peer)
    took_s = trio.current_time() - began
    return judge_contact(address, ContactFacts("", took_s if rtt_s is None else rtt_s, other_version, version))


async def _speed(network: Libp2pNetwork) -> Finding:
    """The bandwidth to the first initial peer that takes a test."""
    peers = [PeerId(parse_peer_address(address)[1]) for address, trouble in network.dial_reports.items() if trouble is None]
    reasons = []
    for peer in list(dict.fromkeys(peers))[:MAX_SPEED_TRIES]:
        try:
            speed = await network.measure_speed(peer)
        except NetworkError as failed:
            reasons.append(str(failed))
            continue
        return judge_speed(speed.up_bps, speed.down_bps, short_id(peer))
    return no_speed(reasons)
