"""The dense and block-wise codecs: known bytes, errors of known size, and what a stranger may send."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.errors import CodecError, NonFiniteError, UsageError
from legion_p2p.tensor import codec
from legion_p2p.tensor.blockwise import BLOCK, MAX_SCALE, MIN_SCALE

DENSE = ("fp32", "fp16", "bf16")
BUILT_IN = (*DENSE, "int8")
ALL = (*BUILT_IN, "topk64-2bit", "topk128-4bit")
FLOAT32_MAX = torch.finfo(torch.float32).max


def from_bits(bits: bytes) -> Tensor:
    """Any finite floats: subnormal, huge, both zeros."""
    x = np.frombuffer(bits, np.float32, len(bits) // 4).copy()
    x[~np.isfinite(x)] = 1.0
    return torch.from_numpy(x)


tensors = st.binary(max_size=2800).map(from_bits)


def round_trip(name: str, x: Tensor) -> Tensor:
    return codec.get(name).decode(codec.get(name).encode(x), x.numel())


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("fp32", "01010000 03000000 0000803f 000000c0 0000003f"),
        ("fp16", "02010000 03000000 003c 00c0 0038"),
        ("bf16", "03010000 03000000 803f 00c0 003f"),
        # scale 2/127 = 0x3c810204; 1 is 63.5 steps, which rounds to the even 64
        ("int8", "04010000 03000000 0402813c 40 81 20"),
    ],
)
def test_these_bytes_stay_what_they_are(name: str, body: str) -> None:
    x = torch.tensor([1.0, -2.0, 0.5])

    data = codec.get(name).encode(x)

    assert data == bytes.fromhex(body)


def test_the_built_in_codecs_are_listed_and_an_unknown_one_is_told_which_there_are() -> None:
    assert set(BUILT_IN) <= set(codec.names())
    with pytest.raises(CodecError, match="unknown codec 'zip', known are bf16, fp16, fp32"):
        codec.get("zip")


def test_a_name_is_registered_once() -> None:
    class Impostor:
        name = "fp32"
        bits_per_element = 1.0

        def encode(self, x: Tensor) -> bytes:
            return b""

        def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
            return torch.empty(0)

    codec.register(codec.get("fp32"))
    with pytest.raises(UsageError, match="already"):
        codec.register(Impostor())


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("numel", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_the_size_is_what_bits_per_element_says_plus_header_and_last_scale(name: str, numel: int) -> None:
    data = codec.get(name).encode(torch.randn(numel))

    excess = len(data) - 8 - numel * codec.get(name).bits_per_element / 8
    assert 0 <= excess < 4


@given(x=tensors)
def test_fp32_loses_nothing(x: Tensor) -> None:
    assert same_bits(round_trip("fp32", x), x)


@pytest.mark.parametrize("name", ALL)
@given(x=tensors)
def test_what_is_decoded_is_finite_fp32_of_the_same_length(name: str, x: Tensor) -> None:
    decoded = round_trip(name, x)

    assert decoded.dtype == torch.float32 and decoded.shape == x.shape
    assert bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@given(x=tensors)
def test_a_rounded_value_rounds_to_itself(name: str, x: Tensor) -> None:
    once = round_trip(name, x)

    assert same_bits(round_trip(name, once), once)


@given(x=tensors)
def test_int8_is_off_by_half_a_step_of_its_own_block_at_most(x: Tensor) -> None:
    decoded = round_trip("int8", x)

    for start in range(0, x.numel(), BLOCK):
        exact, got = x[start : start + BLOCK].double(), decoded[start : start + BLOCK].double()
        step = float(exact.abs().max()) / 127
        if step <= MAX_SCALE:  # beyond, values saturate
            assert float((exact - got).abs().max()) <= 0.5 * step * (1 + 1e-4) + 127 * MIN_SCALE


@pytest.mark.parametrize(("name", "largest"), [("fp16", 65504.0), ("bf16", torch.finfo(torch.bfloat16).max)])
def test_a_value_beyond_the_range_saturates(name: str, largest: float) -> None:
    x = torch.tensor([FLOAT32_MAX, -FLOAT32_MAX, 1.0])

    assert round_trip(name, x).tolist() == [largest, -largest, 1.0]


def test_an_outlier_spoils_only_its_own_block_of_int8() -> None:
    x = torch.randn(4 * BLOCK, generator=torch.Generator().manual_seed(0))
    x[BLOCK + 7] = 1e30

    decoded = round_trip("int8", x)

    assert decoded[BLOCK + 7].item() == pytest.approx(1e30, rel=1e-6)
    others = torch.cat([decoded[:BLOCK] - x[:BLOCK], decoded[2 * BLOCK :] - x[2 * BLOCK :]])
    assert others.abs().max() < 4.5 / 254


def test_the_largest_floats_saturate_in_int8_by_less_than_a_hundredth() -> None:
    x = torch.tensor([FLOAT32_MAX, -FLOAT32_MAX])

    decoded = round_trip("int8", x)

    assert decoded.abs().min() > 0.99 * FLOAT32_MAX


def test_zeros_and_subnormal_blocks_become_zero_in_int8() -> None:
    x = torch.tensor([0.0, 1e-45, -1e-38])

    assert round_trip("int8", x).abs().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 255, 299])
def test_what_is_not_finite_is_not_sent(name: str, bad: float, where: int) -> None:
    x = torch.zeros(300)
    x[where] = bad

    with pytest.raises(NonFiniteError, match="1 of 300 values"):
        codec.get(name).encode(x)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fp32", "0000c07f"), ("fp32", "000080ff"), ("fp16", "007c"), ("fp16", "017e"), ("bf16", "80ff"), ("bf16", "c07f")],
)
def test_what_is_not_finite_is_not_received(name: str, value: str) -> None:
    head = codec.get(name).encode(torch.zeros(1))[:8]

    with pytest.raises(CodecError, match="NaN or infinity"):
        codec.get(name).decode(head + bytes.fromhex(value), 1)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, -0.0, 1e-40, MAX_SCALE * 1.001])
def test_a_scale_that_no_encoder_writes_is_refused(scale: float) -> None:
    data = bytearray(codec.get("int8").encode(torch.ones(3)))
    data[8:12] = struct.pack("<f", scale)

    if scale == 0:  # -0.0 is a zero
        assert codec.get("int8").decode(bytes(data), 3).abs().tolist() == [0.0, 0.0, 0.0]
    else:
        with pytest.raises(CodecError, match="scale"):
            codec.get("int8").decode(bytes(data), 3)


@pytest.mark.parametrize("name", ALL)
def test_a_body_for_another_length_codec_or_version_is_refused(name: str) -> None:
    data = codec.get(name).encode(torch.ones(300))

    for numel in (0, 299, 301):
        with pytest.raises(CodecError):
            codec.get(name).decode(data, numel)
    for byte in range(8):
        changed = bytearray(data)
        changed[byte] ^= 1
        with pytest.raises(CodecError, match="header"):
            codec.get(name).decode(bytes(changed), 300)
    for wrong in (b"", data[:7], data[:-1], data + b"\0"):
        with pytest.raises(CodecError):
            codec.get(name).decode(wrong, 300)


@pytest.mark.parametrize("name", ALL)
def test_any_view_of_the_bytes_decodes_alike(name: str) -> None:
    x = torch.randn(301)
    data = codec.get(name).encode(x)
    unaligned = memoryview(b"?" + data)[1:]

    assert same_bits(codec.get(name).decode(unaligned, 301), codec.get(name).decode(data, 301))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=100)
@given(noise=st.binary(max_size=80), numel=st.integers(0, 20), with_header=st.booleans())
def test_noise_gives_a_finite_tensor_or_a_codec_error(name: str, noise: bytes, numel: int, with_header: bool) -> None:
    head = codec.get(name).encode(torch.zeros(numel))[:8] if with_header else b""
    try:
        decoded = codec.get(name).decode(head + noise, numel)
    except CodecError:
        return
    assert decoded.shape == (numel,) and bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("name", ALL)
def test_a_claimed_length_takes_no_memory(name: str) -> None:
    claim = bytearray(codec.get(name).encode(torch.zeros(4)))
    claim[4:8] = b"\xff" * 4
    tracemalloc.start()

    for numel in (4, 2**32 - 1):
        with pytest.raises(CodecError):
            codec.get(name).decode(bytes(claim), numel)

    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.zeros(4, dtype=torch.float64), torch.zeros(8)[::2], torch.tensor(1.0)])
def test_only_flat_contiguous_fp32_is_encoded(name: str, x: Tensor) -> None:
    with pytest.raises(UsageError, match="cannot be encoded"):
        codec.get(name).encode(x)


@pytest.mark.parametrize("name", ALL)
def test_encoding_leaves_its_input_alone_and_takes_parameters(name: str) -> None:
    x = torch.nn.Parameter(torch.tensor([1e9, -1e-9, 3.0]))
    before = x.detach().clone()

    first, second = codec.get(name).encode(x), codec.get(name).encode(x)  # type: ignore[arg-type]

    assert first == second
    assert same_bits(x.detach(), before)
