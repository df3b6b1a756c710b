"""The page of a peer: what it says of a status, what it leaves out, and that no status can make it large."""

import msgspec

from legion_p2p.config import Peer
from legion_p2p.core.answers import RoundScores, TaskScore
from legion_p2p.core.identity import Identity
from legion_p2p.observe.events import Event
from legion_p2p.observe.status import (
    BooksStatus,
    ConnectionStatus,
    ControlStatus,
    MemberStatus,
    ReachStatus,
    RunStatus,
    ShardStatus,
    ShardTrafficRow,
    Status,
    TargetStatus,
    TrafficRow,
)
from legion_p2p.web.feed import ClientState, encoded
from legion_p2p.web.page_blocks import Block, RowAction, Table, WebPage
from legion_p2p.web.peer_page import MAX_PEERS_LISTED, MAX_PEERS_MAPPED, MAX_SHARDS_LISTED, PeerFacts, peer_page, plain_bytes
from legion_p2p.web.record import RunRecord
from legion_p2p.web.settings import setting_rows

IDS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 6)]
NOW = 1000.0
FACTS = PeerFacts(n_params=1000)


def member(peer_id: str, **more) -> MemberStatus:
    usual = {"region": "home", "liveness": "ALIVE", "step": 10, "tokens_per_s": 100.0, "training": True, "ready": True}
    return MemberStatus(peer_id=peer_id, **(usual | more))


def status(**more) -> Status:
    usual = {
        "peer_id": IDS[0], "addresses": ("/ip4/192.0.2.7/tcp/1",), "run": RunStatus("bafkrei", "stories"), "region": "home",
        "state": "training", "step": 10, "members": (member(IDS[0], shards_owned=2), member(IDS[1], region="far")),
        "shards": (ShardStatus(0, 3, "ab" * 32, IDS[0], IDS[1]), ShardStatus(1, 3, "cd" * 32, IDS[1], None)),
        "sent_bytes": 1000, "received_bytes": 2000, "last_round": None, "errors": (), "loss": 2.5, "tokens": 640,
        "connections": (ConnectionStatus(IDS[1], "relayed", IDS[2], 0.12, 5e6),), "uptime_s": 7200.0,
    }  # fmt: skip
    return Status(**(usual | more))


def page(told: Status | None = None, record: RunRecord | None = None, facts: PeerFacts = FACTS) -> WebPage:
    return peer_page(told or status(), record or RunRecord(), facts, now=NOW)


def block(of: WebPage, id: str) -> Block:
    return next(one for one in of.blocks if one.id == id)


def facts_of(of: WebPage, id: str) -> dict[str, str]:
    return dict(block(of, id).rows)


def test_every_part_that_people_look_for_has_a_section() -> None:
    sections = list(dict.fromkeys(one.section for one in page().blocks))

    assert sections == [
        "Learning", "Peers", "Rounds", "Traffic", "Checkpoints", "My contribution", "Errors", "Settings",
    ]  # fmt: skip
    assert len({one.id for one in page().blocks}) == len(page().blocks)


def test_the_map_has_this_peer_in_the_middle_and_how_each_other_one_is_connected() -> None:
    nodes = block(page(), "map").nodes

    assert [node.me for node in nodes] == [True, False]
    assert (nodes[1].kind, nodes[1].relay, nodes[1].rtt_s, nodes[1].region) == ("relayed", IDS[2], 0.12, "far")
    assert nodes[0].n_shards == 2


def test_who_owns_what_is_in_the_table_of_shards() -> None:
    rows = block(page(), "shards").rows

    assert [row[2] for row in rows] == [f"{IDS[0][-8:]} (me)", IDS[1][-8:]]
    assert rows[1][3] == "nobody"


def test_what_compression_saves_is_compared_with_summing_every_gradient() -> None:
    assert plain_bytes(1000, 10, 2) == 2 * 0.5 * 4 * 1000 * 10
    assert plain_bytes(1000, 10, 1) == 0
    assert facts_of(page(), "traffic")["saved by compression and local steps"].startswith("97.5 %: 40 times")
    much = page(status(sent_bytes=10**9))
    assert facts_of(much, "traffic")["saved by compression and local steps"] == "nothing yet"


def test_bytes_are_told_by_purpose_by_peer_and_by_hour_and_add_up_to_what_the_sockets_counted() -> None:
    books = BooksStatus(
        (TrafficRow(IDS[1], 10, 20), TrafficRow(IDS[2], 30, 40)),
        (TrafficRow("gossip", 1, 2), TrafficRow("training", 80, 90)),
        (TrafficRow("0", 5, 5), TrafficRow("3600", 95, 105)),
        TrafficRow("total", 100, 110), TrafficRow("rest", 19, 18), TrafficRow("local", 4, 6),
    )  # fmt: skip

    told = page(status(books=books))

    purposes = block(told, "purposes")
    assert [row[0] for row in purposes.rows] == ["training", "gossip", "headers and encryption", "all"]
    assert [sum(row[i] for row in purposes.rows[:-1]) for i in (1, 2)] == list(purposes.rows[-1][1:]) == [100, 110]
    assert "10 B of all stayed" in purposes.note
    assert block(told, "traffic-peers").rows == ((IDS[2][-8:], 30, 40), (IDS[1][-8:], 10, 20))
    assert [row[1] for row in block(told, "hours").rows] == [95, 5]


def test_what_compression_saves_is_a_row_for_each_kind_of_shards() -> None:
    rows = (ShardTrafficRow("pushes", 100, 400, 0, 0), ShardTrafficRow("whole shards", 0, 0, 404, 400))

    told = block(page(status(books=BooksStatus(shards=rows))), "compression")

    assert told.rows == (("pushes", 100, 400, 0.75, 0, 0, None), ("whole shards", 0, 0, None, 404, 400, 0.0))
    assert not any(one.id == "compression" for one in page().blocks)


def test_the_tasks_of_a_test_are_a_table_and_it_says_at_which_steps_they_were_answered() -> None:
    scores = RoundScores(2, 200, 207, (TaskScore("animals", 10, 8, 0.5, 0.25, 0.18), TaskScore("<b>", 2, 0, None, None, None)))

    told = block(page(status(test=scores)), "test")

    assert told.rows == (("animals", 0.5, 0.18, 0.25, 8, 10), ("<b>", None, None, None, 0, 2))
    assert "at steps 200 to 207" in told.note
    assert not any(one.id == "test" for one in page().blocks)


def test_a_contribution_counts_rounds_that_have_this_peers_work() -> None:
    record = RunRecord()
    for has_own, owner in ((True, IDS[1]), (False, IDS[0]), (True, IDS[1])):
        closed = {"shard": 0, "version": 1, "averaged_fraction": 1.0, "failed": [], "has_own": has_own, "owner": owner}
        record(Event("round.closed", 1.0, closed))

    relayed = BooksStatus(classes=(TrafficRow("relayed for others", 5_000_000, 5_000_000),))
    told = facts_of(page(status(books=relayed), record=record), "contribution")

    assert told["rounds that contain its work"] == "2 of 3" and told["bytes passed on between others"] == "5.00 MB"
    assert block(page(record=record), "signed").rows == ((IDS[1][-8:], 2),)
    assert told["shards that it owns now"] == "1 of 2" and told["hours"] == "2.00"


def test_an_error_is_at_the_top_for_a_minute_with_what_to_do_and_stays_in_the_list() -> None:
    record = RunRecord()
    record(Event("checkpoint.failed", NOW - 5, {"text": f"no space for {IDS[1]}"}, is_error=True))

    fresh, later = page(record=record), peer_page(status(), record, PeerFacts(), now=NOW + 100)

    assert fresh.head.notices[0].text == f"no space for {IDS[1][-8:]}" and "--store" in fresh.head.notices[0].advice
    assert not [notice for notice in later.head.notices if notice.level == "error"]
    assert block(later, "errors").rows[0][1:] == (fresh.head.notices[0].text, fresh.head.notices[0].advice, "checkpoint.failed")


def test_a_paused_peer_says_until_when_and_its_page_offers_to_resume() -> None:
    paused = page(status(state="paused", control=ControlStatus("pause", ("by you",), until=None, upload_bps=5e6)))

    assert paused.head.notices[0].text == "Paused by you, until you resume it."
    assert (paused.head.control.paused, paused.head.control.upload, paused.head.control.download) == (True, "5mbit", "")
    assert page().head.control.paused is False


def test_a_peer_that_only_relays_lead_to_is_told_what_would_help() -> None:
    told = page(status(reach=ReachStatus("relayed", "symmetric", "nobody could dial it", (IDS[2],))))

    assert "router" in told.head.notices[0].advice


def test_what_is_stored_comes_with_the_commands_that_verify_and_export_it() -> None:
    record = RunRecord()
    record(Event("checkpoint.stored", 1.0, {"step": 9, "cid": "bafyexample", "wall_s": 0.4}))

    told = page(record=record, facts=PeerFacts(store="/a folder/store"))

    assert block(told, "checkpoints").rows[0][1:3] == (9, "bafyexample")
    commands = block(told, "checkpoint-commands").text
    assert "verify bafyexample --store '/a folder/store'" in commands and "--safetensors" in commands
    assert "--store FOLDER" in block(page(), "checkpoints").text


def test_checkpoints_with_buttons_stand_in_place_of_those_that_were_recorded() -> None:
    record = RunRecord()
    record(Event("checkpoint.stored", 1.0, {"step": 9, "cid": "bafyexample", "wall_s": 0.4}))
    table = Table("checkpoints", "Checkpoints", "t", (), (), actions=(RowAction("Verify", "verify"),), keys=())

    told = peer_page(status(), record, PeerFacts(store="/a"), NOW, table)

    assert [one for one in told.blocks if one.id == "checkpoints"] == [table]
    assert block(told, "checkpoint-commands").text.startswith("legion-ctl checkpoint verify bafyexample")


def test_the_time_left_is_a_range_or_about_or_unknown() -> None:
    def subtitle(**more) -> str:
        return page(status(**more)).head.subtitle

    assert subtitle(remaining_s=60.0, remaining_most_s=120.0).endswith("1:00 to 2:00 left")
    assert subtitle(remaining_s=60.0).endswith("about 1:00 left")
    assert subtitle(target_steps=100).endswith("time left unknown")
    assert subtitle().endswith("elapsed")
    assert subtitle(target=TargetStatus(steps=500)).endswith("the run ends at 500 steps: time left unknown")
    assert subtitle(target=TargetStatus(steps=500, least_s=60.0, most_s=60.0)).endswith("500 steps: 1:00 left")


def test_a_status_of_thousands_makes_a_small_page_that_says_what_it_leaves_out() -> None:
    crowd = tuple(member(f"12D3KooW{i:044d}", region="r" * 1000) for i in range(5000))
    shards = tuple(ShardStatus(i, 1, "ab" * 32, IDS[0], IDS[1]) for i in range(4096))

    told = page(status(members=crowd, shards=shards))

    assert (len(block(told, "map").nodes), block(told, "map").n_more) == (MAX_PEERS_MAPPED, 5000 - MAX_PEERS_MAPPED)
    assert len(block(told, "members").rows) == MAX_PEERS_LISTED and len(block(told, "shards").rows) == MAX_SHARDS_LISTED
    assert len(ClientState().update(encoded(told))) < 120_000


def test_texts_of_strangers_lose_their_control_characters_and_their_length() -> None:
    evil = "\x1b[2J<script>" + "x" * 500

    told = page(status(members=(member(IDS[1], region=evil, role=evil),), region=evil, push_codec=evil, state=evil))

    raw = msgspec.json.encode(told)
    assert b"\\u001b" not in raw and b"x" * 200 not in raw


def test_settings_in_force_are_all_there_but_secrets() -> None:
    rows = dict(setting_rows("", Peer(token="a-secret-line", region="europe")))

    assert rows["region"] == "europe" and rows["limits.upload"] == "none" and rows["lan"] == "yes"
    assert rows["token"] == "set"
    assert "a-secret-line" not in repr(rows)
