"""What churn costs, by the benchmark of it (benchmarks/churn.py, docs/records/churn.md) at a smaller size."""

import runpy
from pathlib import Path

CHURN = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "churn.py"))


async def test_the_loss_under_churn_of_a_fifth_a_minute_stays_within_two_percent(autojump_clock):
    n_peers, n_steps = 10, 2400  # two minutes: four of the ten die, and others start in their place
    curve, at_tokens = CHURN["curve"], CHURN["at_tokens"]

    calm = await curve(0, n_peers, n_steps, None)
    rough = await curve(0, n_peers, n_steps, 60 / (0.2 * n_peers))

    for n in (1200, 1800, 2350):
        assert at_tokens(rough, n) < 1.02 * at_tokens(calm, n)
    assert at_tokens(calm, 2350) < 0.6 * calm[0][1]  # and it did learn
