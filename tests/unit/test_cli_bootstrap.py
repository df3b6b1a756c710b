"""legion-bootstrap: what it says, how often, and to whom its addresses are of use."""

import pytest

from legion_p2p.cli.bootstrap import Options, bootstrap
from legion_p2p.cli.node_log import DAY_S, MAX_CONTACT_LINES, ContactLines, DailyLine, reach_lines
from legion_p2p.core.addresses import AddressScope, parse_endpoint, scope_of
from legion_p2p.core.identity import Identity
from legion_p2p.errors import UsageError
from legion_p2p.observe.status import ContactStatus, ServiceStatus, Status

PEER = Identity(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("/ip4/8.8.8.8/tcp/1", AddressScope.ANYWHERE), ("/ip6/2a00:1450::1/tcp/1", AddressScope.ANYWHERE),
        ("/dns4/a.example/tcp/1", AddressScope.ANYWHERE),
        ("/ip4/192.168.1.2/tcp/1", AddressScope.NETWORK), ("/ip4/10.0.0.1/tcp/1", AddressScope.NETWORK),
        ("/ip4/100.64.0.1/tcp/1", AddressScope.NETWORK),
        ("/ip6/fd00::1/tcp/1", AddressScope.NETWORK), ("/ip4/127.0.0.1/tcp/1", AddressScope.MACHINE),
        ("/ip6/::1/tcp/1", AddressScope.MACHINE), ("/dns/localhost/tcp/1", AddressScope.MACHINE),
    ],
)  # fmt: skip
def test_it_is_known_from_where_an_address_can_be_dialed(address, reach):
    assert scope_of(f"{address}/p2p/{PEER}") is reach


def test_it_says_which_addresses_are_of_use_to_whom():
    lines = reach_lines([f"/ip4/192.168.1.2/tcp/4710/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/4710/p2p/{PEER}"], 4710)

    assert lines[0] == "others in this network can dial /ip4/192.168.1.2/tcp/4710"
    assert lines[1] == "others on this machine can dial /ip4/127.0.0.1/tcp/4710"
    assert "forward TCP port 4710" in lines[2] and "--announce /ip4/PUBLIC_ADDRESS/tcp/4710" in lines[2]
    assert reach_lines([f"/ip4/8.8.8.8/tcp/4710/p2p/{PEER}"], 4710) == ["others anywhere can dial /ip4/8.8.8.8/tcp/4710"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


NOTHING_DONE = ServiceStatus()


def status(n_connected: int = 0, service: ServiceStatus = NOTHING_DONE, uptime_s: float = 0.0, *problems: str) -> Status:
    return Status(
        peer_id=PEER, addresses=(), run=None, region="", state="bootstrap node", step=0, members=(), shards=(), sent_bytes=0,
        received_bytes=0, last_round=None, errors=(), n_connected=n_connected, service=service, uptime_s=uptime_s,
        contacts=tuple(ContactStatus("/ip4/8.8.8.8/tcp/1", problem) for problem in problems),
    )  # fmt: skip


def test_the_first_peer_is_told_at_once_and_then_there_is_a_line_a_day():
    daily = DailyLine(0.0)

    lines = [(at, daily.look(status(int(at) // 10 % 7), at)) for at in range(0, int(3.5 * DAY_S), 10)]

    assert [at for at, line in lines if line] == [10, DAY_S, 2 * DAY_S, 3 * DAY_S]
    assert "first peer" in lines[1][1]


def test_the_line_of_a_day_counts_that_day_alone():
    daily = DailyLine(0.0)
    first = ServiceStatus(n_connections=1200, n_refused=3, n_questions=50_000, relayed_bytes=2_000_000)
    second = ServiceStatus(n_connections=1500, n_refused=3, n_questions=90_000, relayed_bytes=7_000_000)

    daily.look(status(1), 10)
    lines = [daily.look(status(12, first, DAY_S), DAY_S), daily.look(status(1, second, 2 * DAY_S, "", "no answer"), 2 * DAY_S)]

    assert lines == [
        "up 24 h, 12 peers connected; today 1,200 connections, 3 refused, 50,000 questions answered, 2.00 MB relayed",
        "up 2 days, 1 peer connected; today 300 connections, 0 refused, 40,000 questions answered, 5.00 MB relayed; "
        "1 of 2 other bootstrap nodes cannot be reached",
    ]


def test_a_node_that_nobody_visits_still_says_once_a_day_that_it_lives():
    daily = DailyLine(0.0)

    told = [daily.look(status(), at) is not None for at in (0.0, 3600.0, DAY_S, DAY_S + 60, 2 * DAY_S)]

    assert told == [False, False, True, False, True]


def test_another_node_that_comes_and_goes_does_not_fill_the_log():
    clock, lines = Clock(), []
    contacts = ContactLines(lines.append, clock)

    for minute in range(3 * 24 * 60):
        clock.now_s = 60.0 * minute
        contacts(f"{PEER}: connected")

    assert len(lines) == 3 * MAX_CONTACT_LINES
    assert "no more of this for a day" in lines[MAX_CONTACT_LINES - 1]


@pytest.mark.parametrize(
    ("text", "where"),
    [("9100", ("127.0.0.1", 9100)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:0", ("::1", 0)), ("here:80", ("here", 80))],
)
def test_where_metrics_are_served_is_a_port_or_a_host_and_a_port(text, where):
    assert parse_endpoint(text) == where


@pytest.mark.parametrize("text", ["x", ":9100", "9100:", "host:99999", "::1:9100", "host:-1", ""])
def test_what_is_no_place_for_metrics_is_refused_with_the_form(text):
    with pytest.raises(UsageError, match=r"HOST:PORT, as in 127\.0\.0\.1:9100"):
        parse_endpoint(text)


def test_a_node_without_a_key_of_its_own_is_refused_because_nobody_would_find_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=r"--identity none.*key file"):
        bootstrap(Options(identity="none"))
    assert not list(tmp_path.iterdir())
