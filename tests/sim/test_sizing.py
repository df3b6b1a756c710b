"""The planner's figures against the bytes that a swarm really sends."""

import pytest
import trio

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.train.round_traffic import frames_of, traffic_of

NUMEL = 1 << 17


@pytest.mark.parametrize("name", ["fp32", "int8", "topk64-2bit"])
async def test_peers_send_and_receive_what_was_planned(name: str, autojump_clock) -> None:
    # as many bytes as can be had in short rounds: announcements and probes, which the plan leaves out, come by the second
    rounds = RoundSpec(
        local_steps=5, push_codec=name, update_codec=name, dense_codec="", aggregation="mean", shard_elements=NUMEL // 4
    )
    frames = frames_of(RunSpec("sim", "", (ParamSpec("w", (NUMEL,)),), rounds), 3, name, name)
    async with Swarm(round=rounds, numel=NUMEL, step_s=0.02) as swarm:
        peers = [await swarm.add(peer) for peer in "abc"]
        await swarm.until(swarm.owners_agree, 20, "one view of who owns what")
        await trio.sleep(1)
        before, first = [peer.network.messenger.traffic() for peer in peers], sum(peers[0].versions())

        await trio.sleep(2)

        n_rounds = (sum(peers[0].versions()) - first) / 4
        assert n_rounds > 15
        total = total_planned = 0.0
        for peer, then in zip(peers, before, strict=True):
            now = peer.network.messenger.traffic()
            planned = traffic_of(frames, 3, len(peer.engine.shards.owned()))
            sent, received = (now.sent_bytes - then.sent_bytes) / n_rounds, (now.received_bytes - then.received_bytes) / n_rounds
            assert sent == pytest.approx(planned.sent_bytes, rel=0.05)
            assert received == pytest.approx(planned.received_bytes, rel=0.05)
            total, total_planned = total + sent, total_planned + planned.sent_bytes
        assert total == pytest.approx(total_planned, rel=0.03)
