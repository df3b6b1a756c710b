"""benchmarks/regions.py runs, and its peers train and meet."""

import argparse
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def regions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regions

    return regions


def arguments(**changes):
    args = {
        "peers": 1,
        "steps": 12,
        "points": 2,
        "batch": 1,
        "step_s": 0.05,
        "scale": 1.0,
        "link": "cable",
        "links": "adamw",
        "lr": None,
    }
    return argparse.Namespace(**args | changes)


async def test_peers_train_and_their_regions_meet(regions, autojump_clock):
    text = np.frombuffer(b"for row in rows:\n    print(row)\n" * 200, np.uint8)

    made = await regions.train("elastic:sync_every=1,local_steps=2", arguments(), (text, text[:700]), 0)

    assert made["validation"] < 5.0  # it began at log 256, 5.5
    assert made["n_syncs"] >= 4 and made["apart"] < 0.2
    assert made["took_s"] == pytest.approx(12 * 0.05, rel=0.15)
    assert made["bytes_across_per_token"] > made["bytes_inside_per_token"] == 0  # one peer at each place
    assert [steps for steps, _, _ in made["curve"]] == sorted(steps for steps, _, _ in made["curve"])


def test_how_much_sooner_is_told_at_the_worse_of_two_losses(regions):
    def run(*curve):
        return {0: {"validation": curve[-1][2], "curve": list(curve)}}

    quick, slow = run((10, 1.0, 3.0), (20, 2.0, 1.0)), run((10, 2.0, 4.0), (20, 4.0, 2.0))

    above, sooner = regions.compared(quick, slow)
    assert above == pytest.approx(-0.5)
    assert sooner == pytest.approx(4.0 / 1.5)  # 2.0 was reached halfway between 1.0 and 2.0 s
    assert regions.compared(slow, quick)[1] == pytest.approx(1.5 / 4.0)
