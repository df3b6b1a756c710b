"""What legion-peer says at its end: the command that comes back has the run's id and addresses that work, or none."""

import msgspec
import pytest

from legion_p2p.cli.farewell import contacts_to_come_back, dialable_address, farewell_lines
from legion_p2p.cli.peer_options import Job
from legion_p2p.config import Peer, RunChoice, Store, Training
from legion_p2p.core.identity import Identity
from legion_p2p.observe.status import MemberStatus, RunStatus, Status
from legion_p2p.train.outcome import Outcome

ME, OTHER, GONE = (Identity(bytes([i]) * 32).peer_id for i in (1, 2, 3))
RUN = "bafkrei" + "a" * 52
LOOPBACK, HOME, OUTSIDE = "/ip4/127.0.0.1/tcp/33577", "/ip4/192.168.1.7/tcp/33577", "/ip4/9.9.9.9/tcp/4710"


def member(*addresses: str, liveness: str = "ALIVE") -> MemberStatus:
    return MemberStatus(OTHER, "home", liveness, 1, 10.0, addresses=addresses)


def status(*members: MemberStatus, addresses: tuple[str, ...] = (LOOPBACK, HOME)) -> Status:
    me = MemberStatus(ME, "home", "ALIVE", 1, 10.0, addresses=addresses)
    ours = tuple(f"{address}/p2p/{ME}" for address in addresses)
    return Status(ME, ours, RunStatus(RUN, "stories"), "home", "done", 9, (me, *members), (), 0, 0, None, ())


def last_line(status: Status, *, given: tuple[str, ...] = (), connected: tuple[str, ...] = (), store: str = "") -> str:
    job = Job(RunChoice("stories", given), Peer(store=Store(store)), Training(), True, True, False)
    return farewell_lines(job, Outcome(9, 9, None, "", "stopped", connected=connected), status, 1.0)[-1]


def test_the_run_is_named_by_its_id_for_another_one_may_have_its_name() -> None:
    assert last_line(status(member(OUTSIDE))) == f"to come back: legion-peer --run {RUN} --initial-peers {OUTSIDE}/p2p/{OTHER}"


def test_of_the_addresses_that_were_given_those_are_offered_that_were_connected_at_the_end() -> None:
    alive, dead = f"{OUTSIDE}/p2p/{OTHER}", f"{HOME}/p2p/{GONE}"

    assert contacts_to_come_back((dead, alive), (OTHER,), status()) == (alive,)
    assert contacts_to_come_back((dead,), (OTHER,), status(member(HOME))) == (f"{HOME}/p2p/{OTHER}",)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ((LOOPBACK,), ("127.0.0.1", "192.168.1.9"), ""),  # of another machine, or not to be told from it
        ((LOOPBACK,), ("127.0.0.1",), LOOPBACK),  # all of it happens on this machine
        ((LOOPBACK, HOME), ("127.0.0.1", "192.168.1.7"), HOME),  # this machine as well
        ((LOOPBACK, HOME, OUTSIDE), ("127.0.0.1", "192.168.1.9"), OUTSIDE),
        ((LOOPBACK, "/dns4/peer.example/tcp/1"), ("192.168.1.9",), "/dns4/peer.example/tcp/1"),
        (("/ip6/fe80::1/tcp/1", HOME), ("192.168.1.9",), HOME),
        ((f"{OUTSIDE}/p2p/{OTHER}",), ("192.168.1.9",), OUTSIDE),
        (("/ip4/203.0.113.7/tcp/0", "nonsense", ""), ("192.168.1.9",), ""),
        ((LOOPBACK,), (), ""),
    ],
)
def test_an_address_is_offered_only_if_it_can_be_dialed_from_here(
    theirs: tuple[str, ...], ours: tuple[str, ...], expected: str
) -> None:
    assert dialable_address(member(*theirs), ours) == (f"{expected}/p2p/{OTHER}" if expected else "")


def test_where_no_address_works_it_says_whom_to_ask_or_that_nobody_is_left() -> None:
    hidden = status(member(LOOPBACK))
    alone = status(member(OUTSIDE, liveness="DEAD"))

    assert last_line(hidden) == f"to come back, ask another member for an address: legion-peer --run {RUN} --initial-peers ADDR"
    assert last_line(alone) == "nobody else was in the run: it has ended with this peer"
    assert last_line(alone, store="my store") == (
        f"nobody else is in the run; to go on with it: legion-peer --run {RUN} --store 'my store'"
    )


def test_what_a_stranger_announces_cannot_become_a_command() -> None:
    evil = status(member("/dns4/x;reboot/tcp/1", "/ip4/1.2.3.4/tcp/1\n/p2p/x"))

    assert "reboot" not in last_line(evil) and "\n" not in last_line(evil)


def test_the_last_one_to_leave_is_told() -> None:
    job = Job(RunChoice("stories", (f"{OUTSIDE}/p2p/{OTHER}",)), Peer(), Training(), True, True, False)
    outcome = Outcome(9, 9, None, "", "stopped", connected=())

    alone, accompanied = (farewell_lines(job, outcome, shown, 1.0) for shown in (status(), status(member(OUTSIDE))))

    last = "nobody else was in the run when this peer left: it was the last"
    assert last in alone and last not in accompanied


def test_through_a_relay_a_peer_came_and_comes_back() -> None:
    circuit = f"{OUTSIDE}/p2p/{GONE}/p2p-circuit"
    hidden = msgspec.structs.replace(member(HOME, circuit), reach="relayed")

    assert contacts_to_come_back((f"{circuit}/p2p/{OTHER}",), (OTHER,), status()) == (f"{circuit}/p2p/{OTHER}",)
    assert dialable_address(hidden, ["192.168.1.9"]) == f"{circuit}/p2p/{OTHER}"
    assert dialable_address(member(circuit), ["192.168.1.9"]) == f"{circuit}/p2p/{OTHER}"
    assert dialable_address(member("/p2p-circuit", f"nonsense{circuit}"), ["192.168.1.9"]) == ""
