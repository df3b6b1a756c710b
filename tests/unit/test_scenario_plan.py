"""What is drawn of a scenario: when peers come and go, and when faults strike."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.scenarios.link_trace import LinkTrace, read_link_trace
from legion_p2p.scenarios.scenario_files import scenario_of
from legion_p2p.scenarios.swarm_plan import plan_of, scenario_of_plan


def plan(seed=0, duration_s=10_000, faults=(), **group):
    return plan_of(scenario_of({"duration_s": duration_s, "peers": [{"name": "a", **group}], "faults": list(faults)}), seed)


@given(st.sampled_from(["always", "fixed", "exponential", "weibull", "daily"]), st.booleans(), st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_sessions_of_a_peer_follow_each_other_and_the_same_seed_gives_the_same(kind, replaced, seed):
    stays = {"kind": kind, "mean_s": 700, "day_s": 2000, "replaced": replaced, "away_s": 0 if replaced else 300}

    first, again = (plan(seed, count=4, joins={"kind": "poisson", "over_s": 3000}, stays=stays) for _ in range(2))

    assert first == again
    assert first.peers[0].name == "a-0" and len({peer.name for peer in first.peers}) == len(first.peers)
    for peer in first.peers:
        ends = 0.0
        for session in peer.sessions:
            assert ends <= session.begin_s < session.end_s and session.begin_s < 10_000
            ends = session.end_s


@pytest.mark.parametrize("kind", ["exponential", "weibull"])
def test_sessions_last_as_long_as_they_should_on_average(kind):
    made = plan(count=10_000, duration_s=1e6, stays={"kind": kind, "mean_s": 500})

    lengths = [session.end_s - session.begin_s for peer in made.peers for session in peer.sessions]

    assert statistics.fmean(lengths) == pytest.approx(500, rel=0.1)
    spread = statistics.stdev(lengths) / statistics.fmean(lengths)
    assert spread == pytest.approx(1.0 if kind == "exponential" else math.sqrt(5), rel=0.15)  # of shape 0.5: variance 5 x mean^2


def test_one_that_goes_is_replaced_by_another_of_the_same_speed():
    made = plan(count=3, spread=0.5, stays={"kind": "fixed", "mean_s": 4000, "replaced": True})

    assert [peer.name for peer in made.peers[:4]] == ["a-0", "a-0.1", "a-0.2", "a-1"]
    assert [len(peer.sessions) for peer in made.peers] == [1] * 9
    assert len({peer.step_s for peer in made.peers}) == 3


def test_peers_are_dealt_to_regions_in_turn_and_stay_there_in_a_scenario_without_chance():
    scenario = scenario_of({"duration_s": 100, "peers": [{"name": "a", "count": 5, "region": "r", "regions": 2}]})
    made = plan_of(scenario, 0)

    assert [peer.group.region for peer in made.peers] == ["r-0", "r-1", "r-0", "r-1", "r-0"]
    again = plan_of(scenario_of_plan(scenario, made), 1)
    assert [peer.group.region for peer in again.peers] == ["r-0", "r-1", "r-0", "r-1", "r-0"]


@pytest.mark.parametrize("region", ["", "auto", "r" * 62])
def test_regions_that_cannot_be_named_are_refused(region):
    with pytest.raises(UsageError, match="regions=101"):
        plan(count=200, region=region, regions=101)


def test_speeds_are_spread_around_the_median():
    steps = [peer.step_s for peer in plan(count=2000, step_s=2.0, spread=0.5).peers]

    assert statistics.median(steps) == pytest.approx(2.0, rel=0.05)
    assert statistics.stdev(map(math.log, steps)) == pytest.approx(0.5, rel=0.05)


def test_faults_come_at_their_rate_within_their_time():
    made = plan(faults=[{"kind": "slow", "every_s": 10, "from_s": 1000, "until_s": 9000}])

    assert len(made.faults) == pytest.approx(800, rel=0.15)
    assert all(1000 <= fault.at_s <= 9000 and fault.every_s is None for fault in made.faults)
    assert len({fault.draw for fault in made.faults}) == len(made.faults)


def test_one_group_less_leaves_all_others_as_they_are():
    groups = [{"name": name, "count": 3, "spread": 0.5, "stays": {"kind": "exponential", "mean_s": 99}} for name in "abc"]

    both, one = (plan_of(scenario_of({"duration_s": 500, "peers": chosen}), 5) for chosen in (groups, groups[:2]))

    assert both.peers[: len(one.peers)] == one.peers


def test_too_many_that_come_in_place_of_others_are_refused():
    with pytest.raises(UsageError, match="more than 10000 peers"):
        plan(duration_s=1e6, count=200, stays={"kind": "fixed", "mean_s": 100, "replaced": True})


def test_a_link_trace_repeats_after_its_end(tmp_path):
    (tmp_path / "link.csv").write_text("at_s,up_bps\n0,1e6\n10,2e6\n")
    trace = read_link_trace(str(tmp_path / "link.csv"))

    assert [trace.at(t, LinkProfile(rtt_s=1)).up_bps for t in (0, 9.9, 10, 19.9, 20, 30)] == [1e6, 1e6, 2e6, 2e6, 1e6, 2e6]
    assert [trace.next_change(t) for t in (0, 9.9, 10, 25)] == [10, 10, 20, 30]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=5), st.floats(0, 1e4))
def test_the_next_change_of_a_trace_always_lies_ahead(gaps, now):
    times = [sum(gaps[:i]) for i in range(len(gaps))]

    assert LinkTrace(times, [{}] * len(times)).next_change(now) > now


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at_s,up\n0,1\n", "columns at_s, up; allowed are at_s, up_bps"),
        ("at_s,up_bps\n", "no rows"),
        ("at_s,up_bps\n1,1e6\n", "line 2: at_s 1; the first must be 0"),
        ("at_s,up_bps\n0,1e6\n0,1e6\n", "line 3: at_s 0;"),
        ("at_s,up_bps\n0,0\n", "line 2: up_bps is 0, must be between 8000"),
        ("at_s,rtt_s\n0,nan\n", "line 2: rtt_s is nan"),
        ("at_s,rtt_s\n0\n", "line 2: rtt_s is None, must be a number"),
    ],
)
def test_a_wrong_link_trace_is_refused_with_its_line(tmp_path, text, said):
    (tmp_path / "link.csv").write_text(text)

    with pytest.raises(ConfigError, match=said):
        read_link_trace(str(tmp_path / "link.csv"))
