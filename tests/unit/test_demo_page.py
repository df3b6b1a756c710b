"""The page of the demo: what its curves compare, its marks, and when a browser is opened."""

import pytest

from legion_p2p.cli.demo_page import DemoRecord, has_desktop
from legion_p2p.cli.demo_plan import ALONE, ALONE_ALL_TEXT, N_PARAMS, DemoPlan
from legion_p2p.observe.status import MemberStatus, RunStatus, Status
from legion_p2p.web.report import page_of_report, report_html

PLAN = DemoPlan(n_peers=3, minutes=3, preset="xxs", seed=0, lone=True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def status(step: int, sent: int = 0, n_alive: int = 2) -> Status:
    members = tuple(MemberStatus(f"p{i}", "", "ALIVE" if i < n_alive else "DEAD", step, 1.0) for i in range(3))
    return Status("p0", (), RunStatus("id", "demo"), "", "training", step, members, (), sent, 0, None, (), tokens_per_s=10.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(clock: Clock) -> DemoRecord:
    return DemoRecord(PLAN, clock)


def block(record: DemoRecord, id: str):
    return next(one for one in record.page().blocks if one.id == id)


def test_the_swarm_is_compared_with_those_that_train_alone(record: DemoRecord) -> None:
    record.hear(ALONE, {"event": "eval", "at": 1000.0, "step": 0, "val_loss": 5.5})  # all curves begin there
    for label, loss in (("peer-1", 2.0), (ALONE, 2.4), (ALONE_ALL_TEXT, 1.9)):
        record.hear(label, {"event": "eval", "at": 1001.0, "step": 50, "val_loss": loss})

    lines = block(record, "held-out").lines

    assert [(line.label, line.y, line.step) for line in lines] == [
        ("the swarm", (2.0,), (50.0,)), ("alone, as many steps", (2.4,), (50.0,)), ("alone, as much text", (1.9,), (50.0,)),
    ]  # fmt: skip
    assert block(record, "held-out").over == "step"


def test_bytes_are_compared_with_plain_all_reduce_among_those_that_live(record: DemoRecord, clock: Clock) -> None:
    record.status("peer-1", status(10, sent=1_000_000))
    clock.now_s += 1
    record.status("peer-1", status(20, sent=2_000_000, n_alive=1))

    sent, plain = block(record, "bytes").lines

    assert sent.y == (1e6, 2e6)
    assert plain.y == (4.0 * N_PARAMS["xxs"] * 10,) * 2  # 2 (n-1)/n of fp32 for 10 steps of two; alone there is nothing to send


def test_a_kill_and_a_join_are_marks_at_the_step_of_that_moment(record: DemoRecord, clock: Clock) -> None:
    record.status("peer-3", status(30))
    clock.now_s += 5
    record.mark("peer-3 is killed (kill -9)")
    record.state("peer-3", "killed")

    (mark,) = block(record, "held-out").marks
    assert (mark.x, mark.step, mark.text) == (5.0, 30.0, "peer-3 is killed (kill -9)")
    assert block(record, "peers").rows[0][2] == "killed"
    assert record.page().head.notices[0].text == mark.text


def test_the_report_at_the_end_begins_with_the_result(record: DemoRecord) -> None:
    record.hear("peer-1", {"event": "step", "at": 1001.0, "step": 5, "loss": 3.0})
    record.result(["", "the swarm is 10.1 % better"])

    page = page_of_report(report_html(record.page()))

    assert page["order"][0] == "result" and page["head"]["state"] == "done"
    assert page["points"]["loss"][0]["y"] == [3.0]


@pytest.mark.parametrize(
    ("environment", "platform", "is_terminal", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, True),
        ({}, "darwin", True, True),
        ({}, "linux", True, False),
        ({"DISPLAY": ":0"}, "linux", False, False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, "linux", True, False),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", True, False),
    ],
)
def test_a_browser_is_opened_only_where_somebody_sits_before_this_machine(
    environment: dict[str, str], platform: str, is_terminal: bool, expected: bool
) -> None:
    assert has_desktop(environment, platform, is_terminal) is expected


@pytest.mark.parametrize(
    ("n_peers", "n_regions", "kill", "expected"),
    [(3, 1, True, True), (2, 1, True, False), (4, 2, True, False), (3, 1, False, False)],
)
def test_a_peer_is_killed_where_enough_are_left(n_peers: int, n_regions: int, kill: bool, expected: bool) -> None:
    plan = DemoPlan(n_peers=n_peers, minutes=3, preset="xxs", seed=0, lone=True, n_regions=n_regions, kill=kill)

    assert plan.kills is expected
