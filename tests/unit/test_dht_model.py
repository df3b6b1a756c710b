"""The model of the DHT: tables as arrays, lookups of many at a time, and figures that follow what is modelled."""

import json
from itertools import pairwise

import numpy as np
import pytest

from legion_p2p.cli.running import run_app
from legion_p2p.cli.sim import app
from legion_p2p.errors import UsageError
from legion_p2p.net import dht, discovery, limits
from legion_p2p.scenarios import dht_lookup, dht_model, dht_nodes
from legion_p2p.scenarios.dht_lookup import look_up
from legion_p2p.scenarios.dht_model import DhtModel, DhtSettings
from legion_p2p.scenarios.dht_nodes import MAX_TABLE, NOBODY, DhtNodes, K


def nodes_of(n, n_numbers=0):
    return DhtNodes(n, n_numbers or n, np.random.default_rng(1))


def met(nodes, row, *numbers):
    nodes.learn(np.full(len(numbers), row), np.array(numbers, dtype=np.int32))


def known_to(nodes, row):
    return set(nodes.table_NT[row, : nodes.n_known_N[row]].tolist())


def test_what_is_modelled_is_what_the_code_does():
    assert (dht_nodes.K, dht_nodes.STALE_S, dht_nodes.DOWN_S, dht_nodes.MAX_TABLE) == (
        dht.K, dht.STALE_S, dht.DOWN_S, limits.MAX_CONNECTIONS
    )  # fmt: skip
    assert (dht_lookup.ALPHA, dht_lookup.TIMEOUT_S, dht_lookup.BUDGET_S) == (
        dht.ALPHA, dht.RPC_TIMEOUT_S, discovery.LOOKUP_BUDGET_S
    )  # fmt: skip
    config = limits.NetConfig()
    assert (
        config.replication, config.provider_lifetime_s, discovery.FRESH_TARGETS_S
    ) == (dht_model.REPLICATION, dht_model.RECORD_S, dht_model.FRESH_TARGETS_S)  # fmt: skip


def test_a_table_has_each_node_once_and_never_its_own():
    nodes = nodes_of(5)

    met(nodes, 0, 1, 2, 2, 0, 1)
    met(nodes, 0, 2, 3)

    assert known_to(nodes, 0) == {1, 2, 3} and nodes.n_known_N[0] == 3
    assert known_to(nodes, 1) == set()


def test_a_full_table_forgets_one_for_another():
    nodes = nodes_of(MAX_TABLE + 50)

    met(nodes, 0, *range(1, MAX_TABLE + 50))

    assert nodes.n_known_N[0] == MAX_TABLE and known_to(nodes, 0) <= set(range(1, MAX_TABLE + 50))


def test_the_closest_are_named_the_closest_first():
    nodes = nodes_of(100)
    met(nodes, 0, *range(1, 60))
    place = np.uint64(12345)

    named = nodes.closest(np.array([0]), np.array([place]), but_Q=np.array([7], dtype=np.int32))[0]

    right = sorted((n for n in range(1, 60) if n != 7), key=lambda n: int(nodes.place_U[n] ^ place))[:K]
    assert named.tolist() == right


def test_a_short_table_names_all_that_it_has():
    nodes = nodes_of(10)
    met(nodes, 0, 3, 4)

    named = nodes.closest(np.array([0, 1]), np.zeros(2, dtype=np.uint64))

    assert set(named[0].tolist()) == {3, 4, NOBODY} and set(named[1].tolist()) == {NOBODY}


def test_a_node_that_fails_is_dropped_and_not_asked_again_for_a_while():
    nodes = nodes_of(10)
    met(nodes, 0, 3, 4, 5)

    nodes.fail(np.array([0]), np.array([4], dtype=np.int32), now=100.0)

    assert known_to(nodes, 0) == {3, 5}
    named = np.array([[4, 5]], dtype=np.int32)
    assert nodes.is_down(np.array([0]), named, 159.0).tolist() == [[True, False]]
    assert not nodes.is_down(np.array([0]), named, 161.0).any()


def test_the_dead_are_forgotten_when_they_have_been_dead_for_long():
    nodes = nodes_of(10, 20)
    met(nodes, 0, 3, 4, 5)
    nodes.replace(np.array([4]), 1000.0)

    nodes.drop_stale(1599.0)
    assert known_to(nodes, 0) == {3, 4, 5} and not nodes.lives(4) and nodes.lives(10)
    nodes.drop_stale(1601.0)

    assert known_to(nodes, 0) == {3, 5} and known_to(nodes, 4) == set()


def chained(n):
    """Nodes that each know only the next nearer one to a place, all from row 0 on."""
    nodes, place = nodes_of(n, n + 10), np.uint64(0)
    order = np.argsort(nodes.place_U[:n])[::-1].astype(np.int32)
    for further, nearer in pairwise(order):
        met(nodes, int(further), int(nearer))
    return nodes, place, order


def test_a_lookup_goes_from_answer_to_answer():
    nodes, place, order = chained(6)

    found = look_up(nodes, order[:1].astype(np.int64), np.array([place]), 3, 0.0, 0.1)

    assert found.closest[0].tolist() == order[:-4:-1].tolist()
    assert found.n_questions[0] == 5 and found.hops[0] == 5 and found.took_s[0] == pytest.approx(0.5)


def test_a_dead_node_ends_a_way_and_takes_its_time():
    nodes, place, order = chained(6)
    nodes.replace(order[3:4].astype(np.int64), 0.0)

    found = look_up(nodes, order[:1].astype(np.int64), np.array([place]), 3, 1.0, 0.1)

    assert found.closest[0, 0] == order[2] and found.n_questions[0] == 3
    assert found.took_s[0] >= dht_lookup.TIMEOUT_S


def test_a_search_asks_fewer_once_a_provider_is_named():
    nodes = nodes_of(60)
    met(nodes, 0, *range(1, 60))
    place = np.array([5], dtype=np.uint64)

    in_vain = look_up(nodes, np.array([0]), place, 4, 0.0, 0.1, lambda lookups, numbers: np.zeros(len(lookups), dtype=bool))
    found = look_up(nodes, np.array([0]), place, 4, 0.0, 0.1, lambda lookups, numbers: np.ones(len(lookups), dtype=bool))

    assert in_vain.n_questions[0] == K and in_vain.hops[0] == 0
    assert found.n_questions[0] == dht_lookup.ALPHA and found.hops[0] == 1


def test_the_same_seed_gives_the_same_figures_and_nearly_all_searches_succeed():
    settings = DhtSettings(n_nodes=400, duration_s=600.0, n_searches=100)

    first, again, other = (DhtModel(settings, seed).run() for seed in (1, 1, 2))

    assert {**vars_of(first), "wall_s": 0} == {**vars_of(again), "wall_s": 0}
    assert vars_of(other) != vars_of(first)
    assert first.success > 0.95 and first.exact > 0.9 and first.n_gone > 20 and first.n_searches == 100


def vars_of(figures):
    return {name: getattr(figures, name) for name in figures.__struct_fields__}


def test_the_command_prints_figures_and_refuses_nonsense(capsys):
    assert run_app(app, ["dht", "--nodes", "200", "--minutes", "5", "--searches", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_searches"] == 20

    assert run_app(app, ["dht", "--nodes", "200", "--minutes", "2", "--searches", "0"]) == 0
    assert "200 nodes" in capsys.readouterr().out

    assert run_app(app, ["dht", "--share", "2"]) == 2
    assert "must be 0 to 1" in capsys.readouterr().err
    with pytest.raises(UsageError):
        DhtSettings(n_nodes=1)
