"""What the messenger measures of each peer."""

import pytest
import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.net import counters as module
from legion_p2p.net.counters import Counters

A, B = PeerId("a"), PeerId("b")


async def send(counters: Counters, peer: PeerId, n_bytes: int, takes_s: float, arrives: bool = True) -> None:
    with counters.sending(peer, "bulk", n_bytes, lambda: 0.0) as upload:
        await trio.sleep(takes_s)
        upload.has_arrived = arrives


async def test_each_peer_has_its_rate_and_one_without_transfers_has_none(autojump_clock):
    counters = Counters(None)

    await send(counters, A, 1_000_000, 1.0)
    with counters.receiving(B, "bulk", 1_000_000):
        await trio.sleep(4.0)

    assert counters.rate_bps(A) == pytest.approx(8e6)
    assert counters.rate_bps(B) == pytest.approx(2e6)
    assert counters.rate_bps(PeerId("c")) is None


async def test_transfers_that_fail_or_are_small_measure_nothing(autojump_clock):
    counters = Counters(None)

    await send(counters, A, 1_000_000, 1.0, arrives=False)
    await send(counters, A, 1000, 1.0)
    with pytest.raises(OSError), counters.receiving(A, "bulk", 1_000_000):
        raise OSError("broke")

    assert counters.rate_bps(A) is None


async def test_the_rates_of_few_peers_are_kept(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_RATES", 3)
    counters = Counters(None)

    for n in range(5):
        await send(counters, PeerId(f"p{n}"), 1_000_000, 1.0)

    assert [counters.rate_bps(PeerId(f"p{n}")) is not None for n in range(5)] == [False, False, True, True, True]
