"""What a peer holds of a run beside its parameters is bounded, by what can be reached from it."""

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.store import shelf
from legion_p2p.store.shelf import FileShelf
from legion_p2p.tensor import compact, local
from tests.sim.held import held_bytes

N = 1 << 16


@pytest.mark.parametrize(("codec", "offload", "most"), [("int8", False, 8.0), ("topk512-2bit", False, 8.0), ("int8", True, 2.0)])
async def test_a_member_of_a_replicated_run_holds_at_most_eight_bytes_a_parameter_or_two_with_a_disk(
    codec, offload, most, autojump_clock, monkeypatch, tmp_path
):
    for module in (compact, local, shelf):  # so that a small model is held as a large one is
        monkeypatch.setattr(module, "SMALLEST", 1024)
    rounds = RoundSpec(local_steps=10, push_codec=codec, update_codec=codec, shard_elements=N // 16)
    async with Swarm(
        round=rounds, numel=N, shape=(N // 512, 512), step_s=0.5, config=PeerConfig(offload=offload), shelf=FileShelf(tmp_path)
    ) as swarm:
        for name in "ab":
            await swarm.add(name)
        held = []
        for _ in range(8):
            await trio.sleep(3.3)
            held += [held_bytes(swarm.peers["a"])]

        assert min(swarm.peers["a"].versions()) >= 3
        assert (max(held) - 100_000) / N < most
        assert offload or min(held) >= 4 * N
