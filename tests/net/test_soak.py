"""A bootstrap node after months: what strangers leave behind does not pile up, and everybody is still answered."""

import gc

import pytest
import trio

from benchmarks.bootstrap_soak import AS_BOOTSTRAP, Crowd, grown, sizes, virtual_time
from legion_p2p.core.identity import Identity
from legion_p2p.core.traffic_ledger import MAX_PEERS
from legion_p2p.net import parts
from legion_p2p.net.dht import MAX_DOWN, STALE_S
from legion_p2p.net.discovery import SWEEP_TABLE_S
from legion_p2p.net.host import open_network

PAUSE_S = 4.0  # between two that come
WALL = 10.0  # times as fast: after 180 peers, what libp2p keeps for two hours has expired
N_PRESENT = 8
N_WARM, N_MORE = 220, 330  # peers until all tables are as full as they get, and until they are looked at again

MAY_GROW = ("kad._provider_rate_limits", "dht._down_until", "ledger.by_peer")  # to 200 and 256, which is more than come at first


def test_nothing_that_strangers_leave_piles_up_and_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[str] = []
    monkeypatch.setattr(parts.logger, "exception", lambda text, *args: errors.append(text % args))

    async def soak() -> None:
        async with open_network(Identity.generate(), listen=(), config=AS_BOOTSTRAP) as network:
            crowd = Crowd(network, n_present=N_PRESENT, n_lookups=4)
            for _ in range(N_WARM):
                await crowd.join(PAUSE_S)
            before = sizes(network)
            for _ in range(N_MORE):
                await crowd.join(PAUSE_S)
            gc.collect()

            piles = grown(before, sizes(network))
            assert [path for path in piles if not any(name in path for name in MAY_GROW)] == []
            assert max(n for path, n in sizes(network).items() if path.endswith("dht._down_until")) <= MAX_DOWN
            assert len(network.messenger.meters.ledger.by_peer) <= MAX_PEERS
            assert crowd.n_asked > 3000 and crowd.n_answers == crowd.n_asked
            # the dead are not named to newcomers
            assert network.discovery.dht.size() <= (STALE_S / WALL + SWEEP_TABLE_S) / PAUSE_S + N_PRESENT
            assert network.service().n_connections == N_WARM + N_MORE

    with virtual_time(WALL) as clock:
        trio.run(soak, clock=clock)
    assert errors == []
