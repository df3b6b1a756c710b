"""Scenarios as files: what is allowed, what is said of mistakes, and how one is written and made smaller."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from legion_p2p.core.placement import PlacementName
from legion_p2p.errors import ConfigError
from legion_p2p.scenarios.reference import reference_lines
from legion_p2p.scenarios.scenario import MAX_PEERS
from legion_p2p.scenarios.scenario_files import (
    changed,
    read_data,
    read_scenario,
    ready_names,
    scenario_of,
    scenario_toml,
    smaller,
)
from legion_p2p.scenarios.swarm_plan import plan_of, scenario_of_plan

DOCS = Path(__file__).parents[2] / "docs"


def scenario(**more):
    return scenario_of({"duration_s": 60, "peers": [{"name": "a"}], **more})


@pytest.mark.parametrize("name", ready_names())
def test_a_ready_scenario_is_the_same_after_it_was_written(name):
    _, ready = read_scenario(name)

    assert ready.about
    assert scenario_of(tomllib.loads(scenario_toml(ready))) == ready


def test_there_is_a_dozen_of_ready_scenarios():
    named = (
        "good cellular degraded brownout straggler satellite two-continents churn flash-crowd region-outage owners-die thousand"
    )

    assert set(named.split()) <= set(ready_names())


def test_large_swarms_are_looked_at_less_often_unless_more_is_asked_for():
    many = [{"name": "a", "count": 1000}]

    assert scenario().sample_every_s() == 0.5
    assert scenario(duration_s=600).sample_every_s() == 3.0
    assert scenario(duration_s=600, peers=many).sample_every_s() == 10.0
    assert scenario(duration_s=600, peers=many, sample_s=2).sample_every_s() == 2.0


def test_every_policy_of_ownership_can_be_compared_where_weights_are_measured():
    _, data = read_data("placement")

    compared = [scenario_of(changed(data, {"rounds.placement": name})) for name in get_args(PlacementName)]

    assert [scenario.round_spec().placement for scenario in compared] == ["rendezvous", "priority", "stable"]
    assert all(group.weight == "auto" for scenario in compared for group in scenario.peers)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"duration_s": -1}, "duration_s: -1 is not allowed: give a number above 0"),
        ({"colour": 1}, "colour: nothing of this name can be set; known are about,"),
        ({"peers": {"name": "a"}}, "peers: {'name': 'a'} stands where a list of tables must be"),
        ({"peers": [{"name": "a", "cuont": 3}]}, r"peers\[0\].cuont: nothing of this name can be set; did you mean count"),
        ({"peers": [{"name": "a", "link": "up=0bit"}]}, r"peers\[0\].link: .* must be between 8kbit and 1000gbit"),
        ({"peers": [{"name": "a"}, {"name": "a"}]}, "two groups are called a"),
        ({"peers": [{"name": "owner"}]}, "a group cannot be called owner"),
        ({"peers": [{"name": "a", "joins": {"at_s": 5}}]}, "the first group comes at 5 s"),
        ({"peers": [{"name": "a", "attack": "flip"}]}, "cannot be the one that attacks"),
        ({"peers": [{"name": "a", "present": [[5, 5]]}]}, "from 5 until 5"),
        ({"peers": [{"name": "a", "stays": {"replaced": True, "away_s": 3}}]}, "exclude each other"),
        ({"peers": [{"name": "a", "count": MAX_PEERS}, {"name": "b"}]}, f"{MAX_PEERS + 1} in all groups, at most {MAX_PEERS}"),
        ({"peers": []}, "0 groups of peers"),
        ({"faults": [{"kind": "kill"}]}, r"faults\[0\]: .*give `at_s`, for once, or `every_s`, for a rate"),
        ({"faults": [{"kind": "kill", "at_s": 99}]}, "kill at 99 s, but the simulation ends at 60 s"),
        ({"faults": [{"kind": "kill", "at_s": 9, "who": "b"}]}, "who = 'b' is no group and no peer; allowed are random"),
        ({"faults": [{"kind": "disk-full", "at_s": 9}]}, "none of these peers keeps checkpoints"),
        ({"rounds": {"push_codec": "topk64-2bit", "aggregation": "median"}}, "rounds: .*choose another rule"),
    ],
)
def test_a_mistake_is_named_with_its_field_and_what_is_allowed(data, said):
    with pytest.raises(ConfigError, match=said):
        scenario(**data)


def test_a_scenario_that_is_neither_known_nor_a_file_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="known are brownout, cellular"):
        read_scenario("browout")


def test_fields_are_changed_by_their_place_in_the_file():
    data = {"duration_s": 60, "peers": [{"name": "a"}, {"name": "b"}], "faults": [{"kind": "kill", "at_s": 1}]}

    other = changed(
        data, {"duration_s": 30, "rounds.local_steps": 7, "peers.b.count": 3, "peers.0.step_s": 2, "faults.kill.at_s": 9}
    )

    assert scenario_of(other) == scenario_of({
        "duration_s": 30, "rounds": {"local_steps": 7}, "peers": [{"name": "a", "step_s": 2}, {"name": "b", "count": 3}],
        "faults": [{"kind": "kill", "at_s": 9}],
    })  # fmt: skip
    for place in ("peers.c.count", "peers.0", "duration_s.x"):
        with pytest.raises(ConfigError, match=place):
            changed(data, {place: 1})


def test_a_smaller_scenario_keeps_its_proportions():
    _, ready = read_scenario("flash-crowd")

    small = smaller(ready, n_peers=8, duration_s=90)

    assert [group.count for group in small.peers] == [2, 6]
    assert (small.duration_s, small.peers[1].joins.at_s, small.peers[1].stays.mean_s) == (90, 30, 30)


def test_a_scenario_without_chance_has_the_same_plan_with_every_seed():
    _, ready = read_scenario("faults")
    plan = plan_of(ready, 7)

    fixed = scenario_of(tomllib.loads(scenario_toml(scenario_of_plan(ready, plan))))

    for seed in (1, 2):
        again = plan_of(fixed, seed)
        assert again.faults == plan.faults and len(plan.faults) > 10
        assert [(p.name, p.step_s, p.sessions) for p in again.peers] == [(p.name, p.step_s, p.sessions) for p in plan.peers]


def test_the_page_has_the_reference_of_the_structs():
    page = (DOCS / "simulate.md").read_text(encoding="utf-8")

    assert "\n".join(reference_lines()).strip() in page


def test_the_page_tells_of_every_ready_scenario():
    page = (DOCS / "simulate.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) >= set(ready_names())
