"""Four bits and fewer for every value: errors as theory has them, and rounding that is right on average."""

import struct

import pytest
import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import codec

LLOYD_MAX = ("sign", "gauss2", "gauss3", "gauss4")


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def round_trip(name: str, x: Tensor) -> Tensor:
    return codec.get(name).decode(codec.get(name).encode(x), x.numel())


def relative_error(name: str, x: Tensor) -> float:
    return float((round_trip(name, x) - x).double().square().sum() / x.double().square().sum())


@pytest.mark.parametrize(
    ("name", "distortion"), [("sign", 0.3634), ("gauss2", 0.1175), ("gauss3", 0.03454), ("gauss4", 0.009497)]
)
def test_the_squared_error_of_normal_values_is_within_a_hundredth_of_maxs(name: str, distortion: float) -> None:
    x = normal(1_000_000)

    assert relative_error(name, x) == pytest.approx(distortion, rel=0.01)
    assert relative_error(name, 1e20 * x) == pytest.approx(distortion, rel=0.01)


@pytest.mark.parametrize(("name", "error"), [("int4", 0.0160), ("int3", 0.0870), ("int2", 0.652), ("int4-unbiased", 0.0319)])
def test_the_squared_error_of_even_steps_is_what_the_docs_say(name: str, error: float) -> None:
    assert relative_error(name, normal(1_000_000)) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("name", LLOYD_MAX)
@pytest.mark.parametrize("numel", [0, 1, 511, 512, 513, 2000])
def test_the_size_is_what_bits_per_element_says_plus_header_and_last_scale(name: str, numel: int) -> None:
    excess = len(codec.get(name).encode(normal(numel))) - 8 - numel * codec.get(name).bits_per_element / 8

    assert 0 <= excess < 4


def test_sign_sends_the_mean_magnitude_of_the_block() -> None:
    x = torch.cat([normal(512), 100 * normal(512, seed=1)])

    decoded = round_trip("sign", x)

    assert torch.equal(decoded.sign(), x.sign())
    assert decoded[0].abs().item() == pytest.approx(x[:512].abs().mean().item(), rel=2**-8)
    assert decoded[-1].abs().item() == pytest.approx(x[512:].abs().mean().item(), rel=2**-8)


@pytest.mark.parametrize(("bits", "step"), [(8, 1 / 127), (4, 1 / 7), (3, 1 / 3), (2, 1.0)])
def test_unbiased_rounding_is_right_on_average(bits: int, step: float) -> None:
    x = torch.linspace(-1, 1, 256).repeat(40)
    n_inputs = 60
    total = torch.zeros(len(x), dtype=torch.float64)

    for i in range(n_inputs):
        x[7] = i / n_inputs  # another input, so other random numbers
        total += round_trip(f"int{bits}-unbiased", x).double()

    mean = (total / n_inputs).view(40, 256)[1:].mean(dim=0)
    # one rounding has a standard deviation of half a step at most; 5 of those of the mean of 39 * 60 are never seen
    assert float((mean - x[256:512]).abs().max()) < 5 * step / 2 / (39 * n_inputs) ** 0.5


@pytest.mark.parametrize("name", ["int8-unbiased", "int4-unbiased", "int2-unbiased"])
def test_unbiased_rounding_goes_to_a_neighbour_and_is_a_function_of_the_input(name: str) -> None:
    x = normal(3000)
    state = torch.get_rng_state()

    decoded = round_trip(name, x)

    step = torch.cat([block.abs().amax().expand(len(block)) for block in x.split(256)]) / ((1 << (int(name[3]) - 1)) - 1)
    assert bool(((decoded - x).abs() <= step * 1.0001).all())
    assert torch.equal(round_trip(name, x.clone()), decoded)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up
    plain = name.removesuffix("-unbiased")
    assert torch.equal(codec.get(plain).decode(codec.get(name).encode(x), 3000), decoded)


@pytest.mark.parametrize(("name", "at", "new"), [("int4", 12, "0f"), ("int3", 13, "01"), ("int2", 12, "03")])
def test_the_one_step_that_is_not_used_is_refused(name: str, at: int, new: str) -> None:
    data = bytearray(codec.get(name).encode(torch.ones(1)))
    assert codec.get(name).decode(bytes(data), 1).item() == pytest.approx(1.0)
    data[at] = bytes.fromhex(new)[0]
    if name == "int3":
        data[12] = 0x03

    with pytest.raises(CodecError, match="a step that is not in"):
        codec.get(name).decode(bytes(data), 1)


@pytest.mark.parametrize("name", LLOYD_MAX)
@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x7E81, 0xBF80, 0x0D7F])  # infinity, NaN, above 2**126, -1, below 2**-100
def test_a_scale_that_no_encoder_writes_is_refused(name: str, scale: int) -> None:
    data = bytearray(codec.get(name).encode(torch.ones(3)))
    data[8:10] = struct.pack("<H", scale)

    with pytest.raises(CodecError, match="scale"):
        codec.get(name).decode(bytes(data), 3)
