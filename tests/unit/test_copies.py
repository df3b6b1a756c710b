"""What a relay takes for the owner's copy, and what the center lets itself be moved by."""

import pytest
import torch

from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import RoundConfig
from legion_p2p.core.shard.life import ShardLife
from legion_p2p.core.wire import RelayRequest
from legion_p2p.services.inter_region.copies import CenterCopy, RegionCopy, RelayEstimate
from legion_p2p.services.shards.replica import Replica
from legion_p2p.tensor import codec
from legion_p2p.tensor.feedback import compress

N = 1 << 13


def replica(reference: torch.Tensor) -> Replica:
    return Replica(0, reference, ShardLife(PeerId("me"), Chain(0, b"d" * 32, 1 << 20), RoundConfig(), 2.0))


@pytest.mark.parametrize("name", ["int8", "topk512-4bit", "topk64-2bit"])
def test_a_relay_follows_the_owners_copy_while_updates_bring_the_step_little_by_little(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start, step = torch.randn(N, generator=generator), torch.randn(N, generator=generator)
    owners, relays = replica(start), replica(start)
    own, carried = RegionCopy(owners), RelayEstimate(relays)
    chosen = codec.get(name)

    carried.subtract(step)
    assert torch.dist(carried.value(), start - step) < 1e-4
    packed = compress(codec.get("bf16"), None, carried.undelivered)
    carried.in_delivery = (RelayRequest("run", 0, 1, "bf16", packed.data), packed.sent)
    carried.delivered()
    own.subtract(packed.sent)
    lags, off = [], []
    for _ in range(20):
        published = compress(chosen, owners.owner_residual, torch.zeros(N))
        owners.reference, owners.owner_residual = owners.reference - published.sent, published.residual
        relays.reference = owners.reference
        lags.append(float(torch.dist(relays.reference, own.value()) / step.norm()))
        off.append(float(torch.dist(carried.value(), own.value()) / step.norm()))

    assert not carried.is_due  # bf16 left next to nothing
    assert max(off) < 0.35
    assert lags[0] > 0.9 or name != "topk64-2bit"  # what the reference alone would be off by


def test_the_center_is_moved_by_no_region_much_further_than_others_wish() -> None:
    center = CenterCopy(torch.zeros(100))
    near, far = torch.full((100,), 0.1), torch.full((100,), 1e3)

    for region in ("a", "b", "c"):
        assert center.reach(region, near, 0.3, 3.0) == pytest.approx(3 * 0.3)
    assert center.reach("liar", far, 0.3, 3.0) == pytest.approx(3 * 0.3)
    assert center.reach("liar", far, 0.3, 0.0) is None
