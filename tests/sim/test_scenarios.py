"""Scenarios, simulated: the same seed gives the same trace, faults do what they say, and results mean something."""

import contextlib
import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.core.profiles import parse_link
from legion_p2p.errors import ConfigError
from legion_p2p.scenarios import faults
from legion_p2p.scenarios.actors import Cast
from legion_p2p.scenarios.graph_replay import Replay
from legion_p2p.scenarios.scenario_files import read_scenario, ready_names, scenario_of, scenario_toml, smaller
from legion_p2p.scenarios.search import search
from legion_p2p.scenarios.simulation import simulate
from legion_p2p.scenarios.stacked_models import stacked_task
from legion_p2p.scenarios.summary import summary_of
from legion_p2p.sim.network import World

SMALL = {"n_peers": 4, "duration_s": 10.0}


def simulated(seed=0, write=None, **data):
    return simulate(scenario_of({"duration_s": 30, "sample_s": 1, "rounds": {"local_steps": 5}, **data}), seed, write=write)


def short(name):
    """A ready scenario at a fraction of its size and time."""
    import msgspec

    return msgspec.structs.replace(smaller(read_scenario(name)[1], **SMALL), settle_s=0.0, sample_s=1.0)


@pytest.mark.parametrize("name", ready_names())
def test_the_same_seed_gives_the_same_trace_bit_for_bit(name):
    lines: list[list[bytes]] = [[], []]

    graph = []
    first = simulate(short(name), 3, write=lines[0].append, graph=graph.append)
    again = simulate(short(name), 3, write=lines[1].append)

    assert lines[0] == lines[1]
    assert first.record.digest == again.record.digest
    assert max(sample.n_joined for sample in first.record.samples) > 1
    assert not first.record.violations
    if name not in ("liars", "thousand"):  # of liars a graph says nothing, and in ten seconds a thousand make no version
        known = [sample.loss for sample in first.record.samples if sample.loss is not None]  # not of one that lacks a shard
        assert losses_along(graph)[-1] == pytest.approx(known[-1], rel=0.01)


def losses_along(graph):
    """Of models that are trained along the graph of a simulation."""
    header, *rest = graph
    replay = Replay(header, rest, stacked_task(header.scenario.task, header.seed, "cpu"), "cpu", 100)
    return [point.loss for point in replay.run() if point.loss is not None]


def test_another_process_gives_the_same_trace_and_another_seed_another_one():
    code = (
        "from legion_p2p.scenarios.simulation import simulate; from tests.sim.test_scenarios import short;"
        "print(simulate(short('straggler'), 3).record.digest)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}

    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert there == simulate(short("straggler"), 3).record.digest != simulate(short("straggler"), 4).record.digest


def test_a_swarm_learns_and_the_summary_tells_it():
    data = {"duration_s": 40, "settle_s": 60, "peers": [{"name": "a", "count": 3, "step_s": 0.4, "link": "cable"}]}
    scenario = scenario_of({"sample_s": 1, "rounds": {"local_steps": 5}, **data})
    outcome = simulate(scenario, 0)

    summary = summary_of("mine", 0, scenario, outcome)

    assert summary["loss_last"] < 0.2 * summary["loss_first"]
    assert summary["agreed"] is True and summary["violations"] == []
    assert 0.9 < summary["goodput"] <= 1.0
    assert summary["n_dead_wrongly"] == 0 and summary["n_at_the_end"] == 3


def test_peers_come_and_go_as_planned():
    outcome = simulated(peers=[{"name": "a"}, {"name": "b", "present": [[5, 12], [20, 26]], "stays": {"ends": "leave"}}])

    n_joined = {sample.at_s: sample.n_joined for sample in outcome.record.samples}
    assert [n_joined[at] for at in (4.0, 9.0, 15.0, 24.0, 30.0)] == [1, 2, 1, 2, 1]
    assert outcome.record.presence["b"] == [(5.0, 12.0), (20.0, 26.0)]


def test_faults_hit_whom_they_name_for_as_long_as_they_say():
    faults = [
        {"kind": "kill", "at_s": 5, "who": "b", "for_s": 5},
        {"kind": "suspend", "at_s": 8, "who": "c", "for_s": 4},
        {"kind": "partition", "at_s": 20, "who": "d", "for_s": 4},
        {"kind": "clock", "at_s": 25, "who": "owner", "for_s": 2},
        {"kind": "slow", "at_s": 5, "who": "a", "for_s": 3},
        {"kind": "hang", "at_s": 5, "who": "d", "for_s": 3},
        {"kind": "link", "at_s": 5, "who": "d", "for_s": 3},
        {"kind": "disk-full", "at_s": 12, "who": "a", "for_s": 5},
    ]
    peers = [{"name": name, "step_s": 0.5, "link": "good", "stores": name == "a"} for name in "abcd"]

    outcome = simulated(duration_s=40, settle_s=60, peers=peers, faults=faults)

    assert [(f["kind"], f["peers"]) for f in outcome.record.faults if f["kind"] != "clock"] == [
        ("kill", ["b"]), ("slow", ["a"]), ("hang", ["d"]), ("link", ["d"]), ("suspend", ["c"]), ("disk-full", ["a"]),
        ("partition", ["d"]),
    ]  # fmt: skip
    assert [time for times in outcome.record.presence["b"] for time in times[:1]] == [0.0, 10.0]
    assert outcome.record.counts["checkpoint.failed"] >= 1
    assert outcome.agreed is True and not outcome.record.violations


async def test_gossip_takes_as_long_as_the_links_and_hops_on_its_way(autojump_clock):
    identities = [Identity(bytes([n]) * 32) for n in (1, 2, 3)]
    a, b, c = (identity.peer_id for identity in identities)
    links = {peer: parse_link(f"rtt={rtt}s") for peer, rtt in ((a, 1), (b, 2), (c, 3))}
    heard = {}
    async with World(links=links, gossip_takes_links=True) as world, contextlib.AsyncExitStack() as listening:
        networks = [world.join(identity) for identity in identities]
        for network in networks:
            note = functools.partial(lambda peer, data: heard.update({peer: trio.current_time()}), network.peer_id)
            await listening.enter_async_context(network.gossip.listen("topic", note))
        world.connect(a, b)
        world.connect(b, c)

        began_at = trio.current_time()
        await networks[0].gossip.publish("topic", b"news")
        await trio.sleep(9)

    assert {peer: round(at - began_at, 6) for peer, at in heard.items()} == {b: 1.5, c: 4.0}


def test_a_link_follows_its_trace(tmp_path):
    (tmp_path / "link.csv").write_text("at_s,up_bps\n0,1e8\n15,1e4\n60,1e8\n")
    peers = [{"name": "a", "step_s": 0.2, "count": 3, "trace": str(tmp_path / "link.csv")}]

    samples = simulated(peers=peers, task={"kind": "quadratic", "size": 2000}).record.samples

    early, late = (samples[at].n_updates - samples[at - 10].n_updates for at in (14, 29))
    assert early > 2 * late


def test_who_attacks_does_harm_where_all_are_trusted():
    peers = [{"name": "a", "count": 4, "step_s": 0.5}, {"name": "x", "step_s": 0.5, "weight": 0, "attack": "against"}]

    losses = [simulated(peers=peers, rounds={"aggregation": rule}).record.samples[-1].loss for rule in ("mean", "auto")]

    assert not losses[0] < 10 * losses[1]  # NaN as well


def test_a_peer_that_is_still_joining_at_the_end_is_not_waited_for():
    peers = [{"name": "a", "count": 2, "step_s": 0.4, "link": "good"}, {"name": "b", "link": "rtt=2s", "joins": {"at_s": 9.5}}]

    outcome = simulated(duration_s=10, settle_s=60, peers=peers)

    last = outcome.record.samples[-1]
    assert (last.n_started, last.n_joined) == (3, 2) and outcome.agreed is True


def test_a_peer_that_finds_nobody_at_the_end_is_given_up():
    peers = [{"name": "a", "present": [[0, 4]]}, {"name": "b", "present": [[6, 100]]}]

    outcome = simulated(duration_s=10, settle_s=30, peers=peers)

    assert outcome.agreed is None and not outcome.record.violations and outcome.record.presence["b"][0][1] > 10


def test_a_peer_that_finds_nobody_tries_again():
    outcome = simulated(peers=[{"name": "a", "present": [[0, 4], [16, 40]]}, {"name": "b", "present": [[6, 40]]}])

    assert outcome.record.presence["b"][0][0] == 6.0 and len(outcome.record.presence["b"]) > 1
    assert not outcome.record.violations


def test_nothing_is_trained_where_only_the_engine_is_looked_at():
    outcome = simulated(
        peers=[{"name": "a", "count": 3}], task={"kind": "none", "size": 4}, rounds={"shard_elements": 1, "local_steps": 5}
    )

    assert outcome.n_shards == 4
    assert outcome.record.samples[-1].n_updates > 4 and outcome.record.samples[-1].loss is None


def test_the_thousand_are_a_thousand():
    assert sum(group.count for group in read_scenario("thousand")[1].peers) == 1000


def test_a_violation_is_found_and_its_scenario_made_smaller(monkeypatch):
    """A fault that makes a handler fail, as a mistake in the program would, among others that are harmless."""
    harm = [{"kind": "clock", "at_s": 5, "who": "a"}]
    noise = [{"kind": "slow", "at_s": at, "who": "b", "for_s": 1} for at in (2, 3, 4)]
    peers = [{"name": "a", "step_s": 0.4}, {"name": "b", "step_s": 0.4}, {"name": "c", "count": 2, "step_s": 0.4}]
    scenario = scenario_of({
        "duration_s": 10, "sample_s": 1, "peers": peers, "faults": noise + harm, "rounds": {"local_steps": 5}
    })  # fmt: skip
    inflict = faults._inflict

    def fail(cast, fault, actor, peer):
        if fault.kind == "clock":
            peer.network.handler_errors.append(ValueError("a mistake in the program"))
        return inflict(cast, fault, actor, peer)

    monkeypatch.setattr(faults, "_inflict", fail)

    found = search(scenario, range(1))

    assert found is not None and found.kind == "ended" and "ValueError" in found.text
    assert [fault.kind for fault in found.scenario.faults] == ["clock"]
    assert [group.name for group in found.scenario.peers] == ["a"]
    again = simulate(scenario_of(tomllib.loads(scenario_toml(found.scenario))), found.seed)
    assert [one["kind"] for one in again.record.violations] == ["ended"]


def test_a_simulation_that_fails_is_a_violation_and_ends_no_search(monkeypatch):
    scenario = scenario_of({"duration_s": 5, "peers": [{"name": "a", "step_s": 0.4}, {"name": "b"}]})
    monkeypatch.setattr(Cast, "sent_bytes", lambda cast: {}["a mistake"])

    found = search(scenario, range(2))

    assert found is not None and found.kind == "crashed" and "KeyError" in found.text
    assert [group.name for group in found.scenario.peers] == ["a"]


def test_a_scenario_that_names_a_trace_that_is_not_there_is_its_own_mistake_and_no_violation(tmp_path: Path):
    peers = [{"name": "a", "step_s": 0.4, "trace": str(tmp_path / "missing.csv")}]
    scenario = scenario_of({"duration_s": 5, "peers": peers})

    with pytest.raises(ConfigError, match=r"missing\.csv"):
        search(scenario, range(3))
