"""What peers print while all is well, in minutes or an hour of a swarm in which some are reached through relays only."""

import io

import pytest
import trio

from legion_p2p.core.reach import OwnReach, Reach
from legion_p2p.core.run import RoundSpec
from legion_p2p.observe.metrics import PlainSink
from legion_p2p.sim.swarm import SimPeer, Swarm

ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=32)
MAX_LINES_PER_HOUR = 200


def printed_by(swarm: Swarm, peer: SimPeer) -> io.StringIO:
    """What legion-peer would print of this peer from now on."""
    stream = io.StringIO()
    sink = PlainSink(stream, monotonic=trio.current_time, wall_time=peer.wall_time)
    peer.events.add_sink(sink)

    async def tell() -> None:
        await peer.joined.wait()
        while True:
            sink.progress(peer.status())
            await trio.sleep(5.0)

    swarm.world.start(tell)
    return stream


@pytest.mark.parametrize("minutes", [20, pytest.param(60, marks=pytest.mark.long)])
async def test_health_is_told_in_less_than_200_lines_an_hour(minutes, autojump_clock, tmp_path):
    async with Swarm(seed=12, round=ROUND, numel=64, step_s=4.0, stores=tmp_path) as swarm:
        printed = {}
        for name in ("public", "hidden"):
            peer = swarm.start(name)
            printed[name] = printed_by(swarm, peer)
            if name.startswith("hidden"):
                relays = (swarm.peers["public"].id,)
                swarm.world.hide(peer.id, relays=relays)
                peer.network.reachability.found(OwnReach(Reach.RELAYED, relays=relays))
            else:
                peer.network.reachability.found(OwnReach(Reach.PUBLIC))
            await peer.joined.wait()

        await trio.sleep(60 * minutes)

        for stream in printed.values():
            lines = stream.getvalue().splitlines()
            assert minutes < len(lines) <= MAX_LINES_PER_HOUR * minutes / 60, "\n".join(lines)
            assert not [line for line in lines if "error" in line or "failed" in line]
            assert sum("checkpoint stored" in line for line in lines) > 50 * minutes / 60
