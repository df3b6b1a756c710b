"""The page of a bootstrap node: introductions, circuits, refusals, within bounds."""

import pytest

from legion_p2p.cli.bootstrap import dashboard_choice
from legion_p2p.core.identity import Identity
from legion_p2p.errors import UsageError
from legion_p2p.net.tally import MAX_INTRODUCTIONS, MAX_NAMED, Tally
from legion_p2p.observe.status import ConnectionStatus, ContactStatus, ServiceStatus, Status
from legion_p2p.web.node_page import MAX_ROWS, Introduced, NodeDetails, NodeRecord, OpenCircuit, node_page

IDS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 9)]


def status(**more) -> Status:
    usual = {
        "peer_id": IDS[0], "addresses": (f"/ip4/192.0.2.1/tcp/4710/p2p/{IDS[0]}",), "run": None, "region": "", "state": "x",
        "step": 0, "members": (), "shards": (), "sent_bytes": 1, "received_bytes": 2, "last_round": None, "errors": (),
        "n_connected": 3, "service": ServiceStatus(relayed_bytes=5_000_000, n_relay_refusals=4),
    }  # fmt: skip
    return Status(**(usual | more))


def block(page, id: str):
    return next(one for one in page.blocks if one.id == id)


def test_it_says_who_was_introduced_to_whom_the_newest_first() -> None:
    introductions = (Introduced(1.0, IDS[1], (IDS[2],)), Introduced(2.0, IDS[3], tuple(IDS)))

    rows = block(node_page(status(), NodeRecord(), NodeDetails(introductions=introductions)), "introductions").rows

    assert rows[1][1:] == (IDS[1][-8:], IDS[2][-8:])
    assert rows[0][1] == IDS[3][-8:] and rows[0][2].endswith("and 2 more")


def test_it_says_what_it_carries_and_what_it_refused_and_why() -> None:
    details = NodeDetails(
        connections=(ConnectionStatus(IDS[1], "direct", None, 0.02, 1e6),), reserved=frozenset({IDS[1]}),
        circuits=(OpenCircuit(IDS[1], IDS[2], 1, 10), OpenCircuit(IDS[3], IDS[1], 2, 9000)),
        refusals={"it carries 512 circuits": 3},
    )  # fmt: skip

    page = node_page(status(), NodeRecord(), details)

    assert [row[3] for row in block(page, "circuits").rows] == [9000, 10]
    assert block(page, "refusals").rows == (("it carries 512 circuits", 3),)
    assert block(page, "connections").rows[0][1:] == ("direct", 20.0, 1e6, "yes")
    assert "5.00 MB relayed" in block(page, "circuits").note


def test_where_nothing_is_relayed_it_says_so() -> None:
    told = block(node_page(status(service=ServiceStatus()), NodeRecord(), NodeDetails()), "circuits")

    assert told.text == "None. 0 B relayed since the start."


def test_it_says_over_time_how_many_peers_there_were_and_what_it_relayed() -> None:
    record = NodeRecord()
    for i in range(3):
        record.note(status(n_connected=i, service=ServiceStatus(relayed_bytes=10 * i)), 100.0 + 2 * i)

    page = node_page(status(), record, NodeDetails())

    assert block(page, "connected").lines[0].x == (0.0, 2.0, 4.0) and block(page, "connected").lines[0].y == (0.0, 1.0, 2.0)
    assert block(page, "relayed").lines[0].y[-1] == 20.0


def test_other_nodes_that_cannot_be_reached_are_a_notice() -> None:
    lost = status(contacts=(ContactStatus("/ip4/8.8.8.8/tcp/1", "refused"), ContactStatus("/ip4/8.8.4.4/tcp/1")))

    page = node_page(lost, NodeRecord(), NodeDetails())

    assert page.head.notices[0].text.startswith("1 of 2 other bootstrap nodes")
    assert page.head.control is None
    assert ("/ip4/8.8.8.8/tcp/1", "refused") in block(page, "others").rows


def test_a_crowd_makes_no_large_page() -> None:
    many = tuple(ConnectionStatus(f"12D3KooW{i:044d}", "direct") for i in range(1000))

    table = block(node_page(status(), NodeRecord(), NodeDetails(connections=many)), "connections")

    assert len(table.rows) == MAX_ROWS and table.n_more == 1000 - MAX_ROWS


def test_of_introductions_only_the_newest_are_kept() -> None:
    tally = Tally()

    for i in range(3 * MAX_INTRODUCTIONS):
        tally.introduced(IDS[0], [f"peer-{i}-{k}" for k in range(100)])

    tally.introduced(IDS[0], tally.introductions[0].named)

    assert len(tally.introductions) == MAX_INTRODUCTIONS
    assert all(len(one.named) == MAX_NAMED for one in tally.introductions)
    assert tally.introductions[-2].named[0].startswith(f"peer-{3 * MAX_INTRODUCTIONS - 1}-")
    assert tally.introductions[-1].named[0].startswith(f"peer-{2 * MAX_INTRODUCTIONS}-")


def test_where_the_page_is_served_is_yes_no_or_a_port() -> None:
    assert [dashboard_choice(text) for text in ("yes", "No", "47300")] == ["yes", "no", "47300"]
    for wrong in ("0", "70000", "maybe", "-1", ""):
        with pytest.raises(UsageError, match=r"--dashboard: .* give yes, no, or a port"):
            dashboard_choice(wrong)
