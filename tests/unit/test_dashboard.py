"""What a person sees: statuses rendered to text at real terminal sizes."""

import io
import threading

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from legion_p2p.core.answers import RoundScores, TaskScore
from legion_p2p.core.identity import Identity
from legion_p2p.core.round import LATE
from legion_p2p.dashboard import (
    LiveView,
    LoneProgress,
    PeerRow,
    SwarmStatus,
    SwarmView,
    render_connections,
    render_peer,
    render_status,
    render_swarm,
)
from legion_p2p.dashboard.fit import bar, plot, sparkline
from legion_p2p.dashboard.live import ERROR_SHOWN_S, MAX_PHASES
from legion_p2p.observe.event_text import progress_text
from legion_p2p.observe.events import PHASE, Event
from legion_p2p.observe.history import History
from legion_p2p.observe.status import (
    ConnectionStatus,
    ContactStatus,
    ErrorStatus,
    FailedPush,
    MemberStatus,
    ReachStatus,
    RoundStatus,
    RunStatus,
    ServiceStatus,
    ShardStatus,
    Status,
)
from legion_p2p.observe.words import alone_text, doing

IDS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 41)]


def member(i, **kwargs):
    base = {"liveness": "ALIVE", "step": 100 + i, "tokens_per_s": 12345.6, "tokens": 409600, "loss": 2.5 + i / 100,
            "training": True, "ready": True, "shards_owned": 4, "sent_bytes": 15_300_000, "received_bytes": 1_000,
            "rtt_s": 0.013}  # fmt: skip
    return MemberStatus(peer_id=IDS[i], region="home", **{**base, **kwargs})


def status(n=4, **kwargs):
    base = {
        "peer_id": IDS[0], "addresses": (f"/ip4/203.0.113.7/tcp/4710/p2p/{IDS[0]}",),
        "run": RunStatus("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", "stories"), "region": "home",
        "state": "training", "step": 1234, "members": tuple(member(i) for i in range(n)),
        "shards": tuple(ShardStatus(i, 40 + i, f"{i:02x}" * 32, IDS[i % n], None) for i in range(5)),
        "sent_bytes": 61_000_000, "received_bytes": 59_000_000, "last_round": RoundStatus(3, 43, 1.0, (), n, n), "errors": (),
        "rounds": 43, "loss": 2.3456, "tokens": 5_000_000, "tokens_per_s": 49_000.0, "local_steps": 10, "target_steps": 5000,
        "remaining_s": 1830.0, "remaining_most_s": 1830.0,
        "uptime_s": 753.0, "common_digest": "1a2b3c4d" * 8, "blocked_fraction": 0.013, "pid": 4242,
    }  # fmt: skip
    return Status(**{**base, **kwargs})


def text(renderable, width=80, encoding="utf-8", **kwargs):
    """What arrives at a terminal of `width`, in an encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=stream, width=width, highlight=False, **kwargs).print(renderable)
    return raw.getvalue().decode(encoding)


def test_the_view_of_a_peer_at_80_columns():
    two = status(n=2, connections=(ConnectionStatus(IDS[1], "direct"),))
    shown = text(render_peer(two, width=80, height=24, losses=[5.0, 4.0, 3.0, 2.3456])).splitlines()

    assert [line.rstrip() for line in shown] == [
        "stories (qa4s52zy)  training                           12:33 elapsed, 30:30 left",
        "step 1,234/5,000  loss 2.3456  49.0k tokens/s  sent 61.0 MB  received 59.0 MB",
        "━" * 18 + "─" * 55 + " 24.7 %",
        "loss █▅▃▁ 5.00 to 2.35",
        "round 44:  averaged 100 % (2 of 2 members)  last shard 3 of 5  model 1a2b3c4d",
        "",
        "peer           region  state       step    loss  tokens/s  shards  via",
        f"{IDS[0][-8:]} (me)  home    training     100  2.5000     12.3k       4  -",
        f"{IDS[1][-8:]}       home    training     101  2.5100     12.3k       4  direct",
    ]


def test_it_is_shown_what_each_connection_runs_over_and_who_relays_it():
    some = status(
        connections=(
            ConnectionStatus(IDS[1], "punched", rtt_s=0.02, rate_bps=12.5e6),
            ConnectionStatus(IDS[2], "relayed", IDS[9], 0.08),
            ConnectionStatus(IDS[9], "direct"),
        ),
        reach=ReachStatus("relayed", "symmetric", "peers of 2 of 2 other networks could not dial this peer", (IDS[9],)),
    )
    relay = IDS[9][-8:]

    live = text(render_peer(some, width=160, height=30), width=160)
    listed = text(render_connections(some, width=160), width=160)

    assert f"via {relay}" in live and "punched" in live and "12.5 Mbit/s" in live
    assert f"others reach this peer through relays only ({relay})" in live
    assert "reach      relayed: peers of 2 of 2 other networks could not dial this peer" in listed and relay in listed
    rows = {words[0]: words[1:] for words in (row.split() for row in listed.splitlines()) if words}
    assert rows[IDS[1]] == ["punched", "20", "ms", "12.5", "Mbit/s", "auto", "unknown"]
    assert rows[IDS[2]] == ["relayed", "via", relay, "80", "ms", "-", "auto", "unknown"]
    assert rows[IDS[9]] == ["direct", "-", "-", "not", "in", "the", "run", "-"]
    assert all(len(row.rstrip()) <= 80 for row in text(render_connections(some, width=80)).splitlines())
    assert "no connections" in text(render_connections(status()))


def test_a_reach_that_is_not_known_is_said_to_be_unknown_and_a_relay_says_how_much_it_carries():
    assert "reach      unknown" in text(render_status(status()))
    relaying = status(reach=ReachStatus("public", "none", "peers of 3 of 3 other networks dialed this peer", (), 64))
    assert "it relays for others, at most 64 circuits" in text(render_status(relaying, width=140), width=140)


def test_a_helper_is_said_to_help():
    assert doing(member(1, role="helper", training=False, done=True)) == "helping"
    assert doing(member(1, role="helper", training=False, done=True, ready=False)) == "joining"


def test_what_went_wrong_is_said_in_words():
    sick = status(
        members=(member(0), member(1, liveness="SUSPECT"), member(2, liveness="DEAD"), member(3, training=False, done=True)),
        last_round=RoundStatus(3, 43, 0.5, (FailedPush(IDS[2], "no answer"), FailedPush(IDS[1], "late")), 2, 4),
        errors=(ErrorStatus(0.0, "member.dead", f"{IDS[2]} does not answer"),),
    )

    shown = text(render_peer(sick, width=80))

    assert "averaged 50.0 % (2 of 4 members)" in shown
    assert f"not averaged: {IDS[2][-8:]} (no answer), and 1 more" in shown
    assert f": {IDS[2][-8:]} does not answer" in shown
    for word in ("suspect", "dead", "done", "training"):
        assert word in shown


def test_alone_and_before_the_first_round_it_says_so():
    assert "no round yet: nobody else is in this run" in text(render_peer(status(n=1, last_round=None)))
    assert "no run yet  joining" in text(render_peer(status(n=1, run=None, state="joining")))


def test_being_late_does_not_sound_as_if_work_were_lost():
    for who, called in ((IDS[0], "this peer"), (IDS[2], IDS[2][-8:])):
        late = status(last_round=RoundStatus(3, 43, 0.5, (FailedPush(who, LATE),), 3, 4))

        assert f"{called}: late by a round, counts in the next" in text(render_peer(late, width=80))
        assert f"{who}: late by a round, counts in the next" in text(render_status(late, width=120), width=120)


def test_a_peer_that_is_alone_says_why_and_does_not_boast_of_its_average():
    dead = f"/ip4/203.0.113.9/tcp/4710/p2p/{IDS[5]}"
    alone = status(n=1, last_round=RoundStatus(3, 43, 1.0, (), 1, 1), contacts=(ContactStatus(dead, "connection refused"),))

    for shown in (text(render_peer(alone, width=200), width=200), text(render_status(alone, width=200), width=200)):
        assert "no initial peer answers, they are tried again and again" in shown
        assert "/ip4/203.0.113.9/tcp/4710" in shown and "connection refused" in shown
    assert "averaged 100 %" not in text(render_peer(alone, width=120))
    assert "connection refused" in progress_text(alone)
    assert alone_text(status(n=2, contacts=alone.contacts)) == ""
    assert "none of them knows another member" in alone_text(status(n=1, contacts=(ContactStatus(dead),)))
    assert "others join with" in alone_text(status(n=1))


def test_a_peer_that_is_alone_names_the_former_members_that_it_tries():
    former = tuple(f"/ip4/203.0.113.{i}/tcp/4710/p2p/{IDS[i]}" for i in range(1, 5))
    contacts = (ContactStatus(f"/ip4/203.0.113.9/tcp/4710/p2p/{IDS[5]}", "connection refused"),)

    told = alone_text(status(n=1, contacts=contacts, former=former))

    assert "no initial peer answers" in told and "connection refused" in told
    assert told.endswith(
        "former members that the store remembers are tried as well: "
        f"/ip4/203.0.113.1/tcp/4710/p2p/{IDS[1][-8:]}, /ip4/203.0.113.2/tcp/4710/p2p/{IDS[2][-8:]} and 2 more"
    )
    assert alone_text(status(n=2, former=former)) == ""


def test_right_answers_are_a_line_of_the_view_and_of_the_status_within_any_width():
    task = TaskScore("animals", 500, 480, 0.4125, 0.25, 0.0224)
    told = status(test=RoundScores(2, 2000, 2004, (task, TaskScore("\x1b[2J" + "x" * 60, 3, 0, None, None, None))))

    view = text(render_peer(told))
    report = text(render_status(told, width=200), width=200)

    assert "right answers: animals 41.2 ± 2.2 % (480 of 500 answered)" in view and "\x1b[2J" not in view + report
    assert all(len(one) <= 80 for one in view.splitlines())
    assert "unanswered, at step 2,004" in report
    assert "right answers" not in text(render_peer(status()))


def test_an_error_leaves_the_view_after_a_minute_and_a_new_one_is_shown():
    now = [100.0]
    view = LiveView(Console(file=io.StringIO(), width=80), monotonic=lambda: now[0])
    old, new = ErrorStatus(1.0, "x", "an old trouble"), ErrorStatus(2.0, "x", "a new trouble")

    def shown():
        return text(view.render(80, 24, False))

    view.update(status(errors=(old,)))
    assert "an old trouble" in shown()
    now[0] += ERROR_SHOWN_S
    view.update(status(errors=(old,)))
    assert "trouble" not in shown()
    view.update(status(errors=(old, new)))
    assert "a new trouble" in shown()


def test_the_way_into_the_run_is_shown_step_by_step_with_times():
    now = [100.0]
    view = LiveView(Console(file=io.StringIO(), width=80), monotonic=lambda: now[0])

    view.begin("loading torch and libp2p")
    now[0] += 4.2
    view.event(Event(PHASE, 0.0, {"text": "reading the text (stdlib)"}))
    now[0] += 30.0

    assert [line.split() for line in text(view.render(80, 24, False)).splitlines()] == [
        ["legion-peer", "is", "starting,", "since", "0:34"],
        ["4.20", "s", "loading", "torch", "and", "libp2p"],
        ["30", "s", "reading", "the", "text", "(stdlib)"],
    ]
    for n in range(20):
        view.begin(f"step {n}")
    assert len(text(view.render(80, 24, False)).splitlines()) == 1 + MAX_PHASES


@pytest.mark.parametrize(("width", "height"), [(40, 12), (60, 18), (80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("n", [1, 4, 40])
def test_nothing_wraps_and_all_fits_on_the_screen(n, width, height):
    crowd = status(
        n=n, last_round=RoundStatus(3, 43, 0.5, (FailedPush(IDS[0], "a reason that is " + "long " * 60),), 1, n),
        errors=tuple(ErrorStatus(0.0, "x", "an error that is " + "long " * 60) for _ in range(32)),
    )  # fmt: skip
    losses = [5 - i / 1000 for i in range(2000)]

    shown = text(render_peer(crowd, width=width, height=height, losses=losses, notes=["a note"]), width=width)
    lines = shown.splitlines()

    assert len(lines) < max(height, 16)
    assert max(map(cell_len, map(str.rstrip, lines))) <= width
    assert f"{IDS[0][-8:]} (me)" in shown
    assert ("more members" in shown) == ((n == 40 and height < 60) or (n == 4 and height == 12))
    peers = tuple(PeerRow(f"peer-{i}", crowd) for i in range(min(n, 6)))
    swarm = SwarmStatus("demo", "phase " * 40, peers, LoneProgress(5, 2.0), fraction=0.5,
                  swarm_curve=((1.0, 5.0), (2.0, 4.0)), lone_curve=((1.0, 5.5), (2.0, 4.5)), notes=("n" * 300,))  # fmt: skip
    lines = text(render_swarm(swarm, width=width, height=height), width=width).splitlines()
    assert len(lines) < max(height, 14)
    assert max(map(cell_len, map(str.rstrip, lines))) <= width


def test_a_terminal_that_is_not_utf8_gets_plain_characters():
    sick = status(errors=(ErrorStatus(0.0, "x", "no"),))

    shown = text(render_peer(sick, ascii_only=True, losses=[3.0, 2.0]), encoding="ascii")

    assert "#####" in shown and "loss #_ 3.00 to 2.00" in shown


def test_colours_say_nothing_that_words_do_not():
    sick = render_peer(status(members=(member(0), member(1, liveness="DEAD"))))
    coloured = text(sick, force_terminal=True, color_system="standard")
    plain = text(sick, force_terminal=True, no_color=True)

    assert "\x1b[31m" in coloured
    assert "\x1b[31m" not in plain and "\x1b[32m" not in plain and "dead" in plain


@pytest.mark.parametrize("render", [render_peer, render_status])
def test_strangers_cannot_act_on_the_terminal(render):
    evil = "\x1b[2J[red]x[/red]\r\n\x07"
    sick = status(
        run=RunStatus(evil, evil), region=evil, state="training", last_round=RoundStatus(1, 1, 0.5, (FailedPush(evil, evil),)),
        members=(MemberStatus(evil, evil, "ALIVE", 1, 1.0),), errors=(ErrorStatus(0.0, evil, evil),), common_digest=evil,
        shards=(ShardStatus(0, 1, evil, evil, evil),),
    )  # fmt: skip

    shown = text(render(sick))

    assert "\x1b" not in shown and "\x07" not in shown and "\r" not in shown
    assert "[red]x[/red]" in shown


def test_the_full_report_has_everything_and_cuts_no_address():
    sick = status(
        addresses=("/dns4/" + "x" * 100 + f"/tcp/4710/p2p/{IDS[0]}",),
        last_round=RoundStatus(3, 43, 0.5, (FailedPush(IDS[2], "no answer"),), 2, 4),
        errors=tuple(ErrorStatus(1000.0 + i, "push.failed", f"error {i}") for i in range(8)),
    )

    shown = text(render_status(sick, width=100, now=1060.0), width=100)
    joined = "".join(line.strip() for line in shown.splitlines())

    assert sick.addresses[0] in joined and IDS[0] in joined and sick.run.id in joined and sick.common_digest in joined
    assert "step 1,234 of 5,000" in shown and "averaged 50.0 % (2 of 4 members)" in shown
    assert f"{IDS[2]}: no answer" in shown
    assert "members (4)" in shown and "shards (5)" in shown
    assert "last errors (5 of 8)" in shown and "0:53 ago  push.failed: error 7" in shown and "error 2" not in shown
    assert "nobody" in text(render_status(status(shards=(ShardStatus(0, 1, "", None, None),))))
    assert "no errors" in text(render_status(status()))


def test_the_full_report_tells_rates_and_the_limits_in_force():
    limited = status(upload_bps=9_800_000.0, upload_limit_bps=10e6)

    assert "rates      up 9.80 Mbit/s (limit 10.0 Mbit/s), down -" in text(render_status(limited))


def test_the_swarm_at_80_columns():
    peers = tuple(
        PeerRow(f"peer-{i + 1}", status(n=3, peer_id=IDS[i], members=tuple(member(j) for j in range(3)))) for i in range(2)
    )
    swarm = SwarmStatus(
        "demo", "training together", (*peers, PeerRow("peer-3")), LoneProgress(600, 3.1, 21000.0, 5000),
        tuple((float(i), 5.0 - i / 400) for i in range(1000)), tuple((float(i), 5.5 - i / 600) for i in range(500)),
        elapsed_s=83.0, fraction=0.42, remaining_s=115.0, notes=("all output is in legion-demo/",),
    )  # fmt: skip

    shown = text(render_swarm(swarm, width=80, height=24))

    assert "demo  training together                                  1:23 elapsed, 1:55 left" in shown
    assert "42.0 %" in shown
    assert f"peer-1 {IDS[0][-8:]}  training  1,234/5,000  2.3456     49.0k  61.0 MB" in shown
    assert "peer-3           starting            -" in shown
    assert "alone            training    600/5,000  3.1000     21.0k" in shown
    assert "round 44  last averaged 100 %  same model at 2 of 2 peers at this moment" in shown
    assert "loss by step:  o swarm  . alone" in shown and "5.50 |." in shown
    assert "all output is in legion-demo/" in shown


def test_the_swarm_view_collects_what_peers_say():
    now = [0.0]
    view = SwarmView("demo", ("a", "b"), console=Console(file=io.StringIO()), monotonic=lambda: now[0])

    view.phase("starting", "a note")
    view.update("a", status(loss=3.0, step=100, remaining_s=50.0))
    view.update("b", status(loss=2.0, step=200, remaining_s=40.0))
    view.lone(LoneProgress(10, 4.0))
    view.update("b", state="killed")
    now[0] = 12.0
    swarm = view.snapshot()

    assert swarm.elapsed_s == 12.0 and swarm.remaining_s == 50.0 and swarm.fraction == 100 / 5000
    assert swarm.swarm_curve[-1] == (150.0, 2.5) and swarm.lone_curve == ((10.0, 4.0),)
    assert "killed" in text(render_swarm(swarm)) and swarm.notes == ("a note",)
    timed = SwarmView("demo", total_s=120.0, console=Console(file=io.StringIO()), monotonic=lambda: now[0])
    now[0] += 30.0
    assert (timed.snapshot().fraction, timed.snapshot().remaining_s) == (0.25, 90.0)


def test_the_live_view_shows_the_way_in_then_the_status_and_leaves_the_last_frame():
    stream = io.StringIO()
    with LiveView(Console(file=stream, force_terminal=True, width=80, height=24, no_color=True)) as view:
        view.event(Event("run.not_known_by", 0.0, {"peer": IDS[1]}))
        assert "legion-peer is starting" in text(view.render(80, 24, False))
        assert f"run not known by: peer {IDS[1][-8:]}" in text(view.render(80, 24, False))
        view.update(status(step=4321))
        view.note("leaving")
        assert "run not known by" not in text(view.render(80, 24, False))
        assert "leaving" in text(view.render(80, 24, False))
        view.note("")

    frames = stream.getvalue()
    assert "stories" in frames and "4,321/5,000" in frames and frames.rstrip().endswith("\x1b[?25h")


def test_updates_from_many_threads_while_drawing():
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80, height=24), refresh_per_s=50)

    def update(seed):
        for i in range(50):
            view.update(status(n=1 + (seed + i) % 8, step=i, loss=1.0 + i))

    with view:
        threads = [threading.Thread(target=update, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert "stories" in text(view.render(80, 24, False))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5000))
@settings(max_examples=30)
def test_a_history_stays_bounded_and_in_order(losses):
    history = History(limit=64)

    for step, loss in enumerate(losses):
        history.add(step, loss)

    xs = [x for x, _ in history.points]
    assert len(xs) < 64 and xs == sorted(set(xs)) and (len(losses) < 64) <= (len(xs) == len(losses))


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(20, 120), st.integers(2, 20))
@example([0.0, 5e-324], 20, 2)
def test_curves_fit_their_box(ys, width, height):
    curve = [(float(x), y) for x, y in enumerate(ys)]

    lines = plot([("o", curve), (".", curve[:3])], width, height)

    assert len(lines) in (0, height) and all(len(line) <= width for line in lines)
    assert len(sparkline(ys, width)) <= width
    assert bar(len(ys) / 100, width).cell_len == width


def test_a_record_from_the_wire_renders_like_the_one_that_was_sent():
    sent = status(loss=None, target_steps=None, remaining_s=None)

    received = msgspec.json.decode(msgspec.json.encode(sent), type=Status)

    assert received == sent
    assert text(render_peer(received)) == text(render_peer(sent))


def test_a_swarm_of_several_regions_shows_who_is_where_and_who_holds_the_same():
    rows = tuple(
        PeerRow(f"peer-{i + 1}", status(peer_id=IDS[i], region=region, common_digest=digest * 64))
        for i, (region, digest) in enumerate([("1e74289a", "a"), ("3ccd0637", "b"), ("1e74289a", "a"), ("3ccd0637", "c")])
    )

    shown = text(render_swarm(SwarmStatus("demo", peers=rows), width=110, height=24), width=110)
    at_home = text(render_swarm(SwarmStatus("demo", peers=rows[:1]), width=110, height=24), width=110)

    assert "region" in shown and shown.count("1e74289a") == shown.count("3ccd0637") == 2
    assert "same model at 2 of 2 and 1 of 2 in 2 regions" in shown
    assert "region" not in at_home


def test_a_node_that_is_in_no_run_shows_what_it_does_for_others() -> None:
    service = ServiceStatus(
        n_connections=1200,
        n_refused=3,
        n_questions=50_000,
        n_records=17,
        n_known=40,
        n_reservations=2,
        n_circuits=1,
        n_relay_refusals=5,
        relayed_bytes=2_000_000,
    )
    lost = ContactStatus("/ip4/8.8.8.8/tcp/1/p2p/12D3KooWOther", "no answer in 5 s")
    node = Status(
        peer_id="12D3KooWMe", addresses=(), run=None, region="", state="bootstrap node", step=0, members=(), shards=(),
        sent_bytes=1, received_bytes=2, last_round=None, errors=(), n_connected=12, service=service, uptime_s=90_000.0,
        contacts=(lost,),
    )  # fmt: skip

    told = text(render_status(node, width=100), width=100)

    assert "bootstrap node, 1 d 01:00 elapsed" in told
    assert "12 peers; since the start 1,200, and 3 turned away" in told
    assert "17 records, 50,000 questions answered" in told
    assert "relay      2.00 MB relayed; now 1 circuits, for 2 peers; refused 5 times" in told
    assert "/ip4/8.8.8.8/tcp/1/p2p/12D3KooWOther  no answer in 5 s" in told
    assert "members" not in told and "shards" not in told
