"""The model of the DHT (legion_p2p/scenarios/dht_model.py) against nodes that run the code: both come to about the same."""

from benchmarks.dht import figures_of_code, figures_of_model
from legion_p2p.scenarios.dht_model import DhtSettings

SMALL = DhtSettings(n_nodes=90, duration_s=300.0, session_s=1200.0, n_searches=150, run_size=3)


def test_the_model_comes_to_what_real_nodes_come_to() -> None:
    model, code = figures_of_model(SMALL, 0), figures_of_code(SMALL, 0)

    assert abs(model["success"] - code["success"]) < 0.1  # of 150 searches; the record, with more nodes, has 0.004
    assert abs(model["search_hops"] / code["search_hops"] - 1) < 0.2
    assert abs(model["lookup_questions"] / code["lookup_questions"] - 1) < 0.2
    assert abs(model["n_known"] / code["n_known"] - 1) < 0.4
