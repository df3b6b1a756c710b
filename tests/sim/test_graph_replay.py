"""Graphs of simulations, and models that are trained along them: what comes out is what the simulation itself came to."""

import pytest

from legion_p2p.errors import UsageError
from legion_p2p.scenarios.graph import AloneLine, CloseLine, MergeLine, PackLine, SyncLine
from legion_p2p.scenarios.graph_replay import Replay
from legion_p2p.scenarios.scenario_files import scenario_of
from legion_p2p.scenarios.simulation import simulate
from legion_p2p.scenarios.stacked_models import stacked_task

EXACT = {"push_codec": "fp32", "update_codec": "fp32", "sync_codec": "fp32", "aggregation": "mean"}
VECTOR = {"kind": "quadratic", "size": 240, "unlike": 0.5}


def recorded(seed=0, **data):
    """A simulation: its graph, and its samples by time."""
    rounds = {"local_steps": 5, "shard_elements": 60, **data.pop("rounds", {})}
    scenario = scenario_of({"duration_s": 30, "sample_s": 2, "rounds": rounds, **data})
    written = []
    outcome = simulate(scenario, seed, graph=written.append)
    return written, {sample.at_s: sample.loss for sample in outcome.record.samples}


def replayed(written):
    header, *lines = written
    replay = Replay(header, lines, stacked_task(header.scenario.task, header.seed, "cpu"), "cpu", 1000)
    return {round(point.at_s, 6): point.loss for point in replay.run()}, replay


def largest_difference(written, losses):
    curve, _ = replayed(written)
    assert curve.keys() == losses.keys()
    return max(abs(curve[at_s] - loss) / loss for at_s, loss in losses.items())


def test_the_replay_of_a_network_that_learns_agrees_with_the_run_to_five_digits():
    peers = [
        {"name": "a", "count": 3, "step_s": 0.4, "link": "cable"},
        {"name": "b", "step_s": 0.5, "present": [[5, 15], [20, 30]]},
    ]

    written, losses = recorded(rounds=EXACT, peers=peers)

    assert largest_difference(written, losses) < 1e-5
    assert min(losses.values()) < 0.5 * max(losses.values())


def test_it_agrees_with_robust_averaging_in_few_bits_and_where_owners_die():
    faults = [{"kind": "kill", "at_s": at_s, "who": "owner", "for_s": 5} for at_s in (10, 18)]
    peers = [{"name": "a", "count": 4, "step_s": 0.4, "spread": 0.3, "link": "cable"}]

    written, losses = recorded(task=VECTOR, peers=peers, faults=faults)

    assert largest_difference(written, losses) < 1e-5


def test_it_agrees_where_a_peer_is_alone_at_times():
    stays = {"kind": "fixed", "mean_s": 8, "ends": "leave"}
    peers = [
        {"name": "a", "step_s": 0.4},
        {"name": "b", "count": 2, "step_s": 0.5, "joins": {"at_s": 10, "over_s": 2}, "stays": stays},
    ]

    written, losses = recorded(task=VECTOR, peers=peers)

    assert any(isinstance(line, AloneLine) for line in written)
    assert largest_difference(written, losses) < 1e-5


def test_it_agrees_nearly_where_regions_sync_and_where_a_region_is_cut_in_two():
    regions = [{"name": name, "count": 2, "step_s": 0.4, "region": name} for name in ("east", "west")]
    wall = [{"kind": "partition", "at_s": 6, "for_s": 20, "count": 2}]

    synced, apart = recorded(task=VECTOR, peers=regions, rounds=EXACT)
    cut, cut_losses = recorded(task=VECTOR, duration_s=40, peers=[{"name": "a", "count": 4, "step_s": 0.4}], faults=wall)

    assert any(isinstance(line, SyncLine) for line in synced) and any(isinstance(line, MergeLine) for line in cut)
    assert largest_difference(synced, apart) < 1e-3
    assert largest_difference(cut, cut_losses) < 1e-3


def test_the_same_graph_can_train_another_model():
    import msgspec

    written, _ = recorded(
        task={"kind": "none", "size": 4}, rounds={"shard_elements": 1}, peers=[{"name": "a", "count": 4, "step_s": 0.4}]
    )
    header = written[0]
    network = msgspec.structs.replace(header, scenario=msgspec.structs.replace(header.scenario, task=scenario_of(
        {"duration_s": 1, "peers": [{"name": "a"}], "task": {"size": 9}}).task))  # fmt: skip

    curve, replay = replayed([network, *written[1:]])

    losses = list(curve.values())
    assert losses[-1] < 0.5 * losses[0]
    assert replay.n_steps == replay.total_steps > 100


def test_a_graph_in_which_something_is_missing_is_refused():
    written, _ = recorded(task=VECTOR, duration_s=10, peers=[{"name": "a", "count": 3, "step_s": 0.4}])
    first = next(line for line in written if isinstance(line, CloseLine))
    pack = next(line for line in written if isinstance(line, PackLine) and line.push in first.pushes)

    with pytest.raises(UsageError, match="contains a push that nobody made"):
        replayed([line for line in written if line is not pack])
    with pytest.raises(UsageError, match="ends in the middle"):
        replayed([line for line in written if line is not first])


def test_the_graph_changes_nothing_of_the_run():
    data = {"duration_s": 10, "peers": [{"name": "a", "count": 3, "step_s": 0.4}], "rounds": {"local_steps": 5}}

    with_graph, without = (simulate(scenario_of(data), 0, graph=graph).record.digest for graph in ([].append, None))

    assert with_graph == without
