"""What a GPU encodes: runs only where there is one."""

import pytest
import torch

from legion_p2p.tensor import codec

LENGTHS = (1, 63, 4097, 65_553)
EXACT = ("fp32", "fp16", "bf16", "int8", "int4", "int3", "int2")
"""Codecs that compute each value by itself: nothing in them depends on the order of a sum."""

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def normal(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).pow(3).mul_(1e-3)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", EXACT)
def test_a_gpu_encodes_to_the_same_bytes(name: str, n: int) -> None:
    chosen, x = codec.get(name), normal(n)

    assert bytes(chosen.encode(x.cuda())) == bytes(chosen.encode(x))


@pytest.mark.parametrize("name", ["sign", "gauss2", "gauss4", "topk64-2bit", "topk512-2bit", "topk1024-4bit"])
def test_what_a_gpu_chooses_by_sums_decodes_as_near_as_what_a_cpu_does(name: str) -> None:
    chosen, x = codec.get(name), normal(65_553)

    here, there = (chosen.decode(chosen.encode(where), len(x)) for where in (x, x.cuda()))

    errors = [float((x - y).double().square().sum() / x.double().square().sum()) for y in (here, there)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
