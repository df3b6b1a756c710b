"""The dense and block-wise codecs: known bytes, errors of known size, and what a stranger may send."""

import math
import struct
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.errors import CodecError, NonFiniteError, UsageError
from legion_p2p.tensor import blockwise, codec
from legion_p2p.tensor.blockwise import BLOCK, MIN_SCALE
from legion_p2p.tensor.body import is_finite, is_zero

DENSE = ("fp32", "fp16", "bf16")
BUILT_IN = (*DENSE, "int8", "int4", "int3", "int2")
LLOYD_MAX = ("gauss4", "gauss3", "gauss2", "sign")
TOP_K = ("topk64-2bit", "topk128-4bit", "topk2048-1bit", "topk3-16bit", "topk700-8bit")
ALL = tuple(dict.fromkeys((*codec.names(), *TOP_K)))  # the registry's, and some of the top-k codecs, of which there are thousands
FLOAT32_MAX = torch.finfo(torch.float32).max
MAX_SCALE = FLOAT32_MAX / 128  # of int8


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


KNOWN_INPUT = (1.0, -2.25, 0.5, 4.0, 0.0, 0.0, -0.25, 3.0)


def times(scale: float, *steps: int) -> list[float]:
    return [float(np.float32(scale) * np.float32(step)) for step in steps]


@pytest.mark.parametrize(
    ("name", "body", "decoded"),
    [
        ("fp32", "01010000 08000000 0000803f000010c00000003f000080400000000000000000000080be00004040", KNOWN_INPUT),
        ("fp16", "02010000 08000000 003c 80c0 0038 0044 0000 0000 00b4 0042", KNOWN_INPUT),
        ("bf16", "03010000 08000000 803f 10c0 003f 8040 0000 0000 80be 4040", KNOWN_INPUT),
        # scale 4/127 = 0x3d010204; 1 is 31.75 steps, -2.25 is -71.4, and so on
        ("int8", "04010000 08000000 0402013d 20 b9 10 7f 00 00 f8 5f", times(4 / 127, 32, -71, 16, 127, 0, 0, -8, 95)),
        # scale 4/7 = 0x3f124925, steps plus 7, the first of two in the lower half of a byte
        ("int4", "06010000 08000000 2549123f 39 e8 77 c7", times(4 / 7, 2, -4, 1, 7, 0, 0, 0, 5)),
        # scale 4/3 = 0x3faaaaab, steps plus 3: the lower two bits of all, then the highest of all
        ("int3", "07010000 08000000 abaaaa3f b4 7f 89", times(4 / 3, 1, -2, 0, 3, 0, 0, 0, 2)),
        # scale 4, steps plus 1
        ("int2", "08010000 08000000 00008040 91 95", (0, -4, 0, 4, 0, 0, 0, 4)),
        # mean magnitude 1.375, signs
        ("sign", "09010000 08000000 b03f 42", times(1.375, 1, -1, 1, 1, 1, 1, -1, 1)),
        # 1, -2.25, 4, 3 are sent: levels 3.5 and, by the bits 36/32 below it, 1.625; codes 0 2 1 1; gaps 0 0 1 3: 1 1 01 0001
        ("topk2048-2bit", "05010000 08000000 0008 02 00 6040 24 58 8b", (1.625, -1.625, 0, 3.5, 0, 0, 0, 3.5)),
        # 4 is sent: level 0 of 4; its gap of 3 is 1 bit of remainder (1), and 01 in unary
        ("topk64-4bit", "05010000 08000000 4000 04 01 8040 00 00 01 02", (0, 0, 0, 4, 0, 0, 0, 0)),
    ],
)
def test_these_bytes_stay_what_they_are(name: str, body: str, decoded: Sequence[float]) -> None:
    x = torch.tensor(KNOWN_INPUT)

    data = codec.get(name).encode(x)

    assert data.hex() == bytes.fromhex(body).hex()
    assert codec.get(name).decode(data, len(x)).tolist() == list(decoded)


def test_the_built_in_codecs_are_listed_and_an_unknown_one_is_told_which_there_are() -> None:
    assert {*BUILT_IN, *LLOYD_MAX, "topk64-2bit", "topk128-4bit"} <= set(codec.names())
    assert all(codec.get(name).name == name for name in codec.names())
    with pytest.raises(CodecError, match=r"unknown codec 'zip', known are bf16, fp16, fp32, .* topk<k>-<bits>bit"):
        codec.get("zip")


@pytest.mark.parametrize("breaks", ["encode", "decode"])
def test_a_codec_that_is_registered_is_tried_whatever_list_anybody_forgot(breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the registry meets it: the list above is made of it when this file is loaded."""

    class Broken:
        name = "broken"
        bits_per_element = 32.0

        def encode(self, x: Tensor) -> bytes:
            if breaks == "encode":
                raise RuntimeError
            return codec.get("fp32").encode(x)

        def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
            raise RuntimeError

    monkeypatch.setitem(codec._codecs, "broken", Broken())

    assert set(codec.names()) - set(ALL) == {"broken"}
    with pytest.raises(RuntimeError):
        for name in codec.names():
            round_trip(name, torch.ones(8))


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
    assert 0 <= excess < 6  # int3 is packed in two pieces


@given(x=tensors)
def test_fp32_loses_nothing(x: Tensor) -> None:
    assert same_bits(round_trip("fp32", x), x)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
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


@pytest.mark.parametrize(("name", "steps"), [("int8", 127), ("int4", 7), ("int3", 3), ("int2", 1)])
@given(x=tensors)
def test_an_even_step_is_off_by_half_a_step_of_its_own_block_at_most(name: str, steps: int, x: Tensor) -> None:
    decoded = round_trip(name, x)

    for start in range(0, x.numel(), BLOCK):
        exact, got = x[start : start + BLOCK].double(), decoded[start : start + BLOCK].double()
        step = float(exact.abs().max()) / steps
        if step * steps <= 127 * MAX_SCALE:  # beyond, values saturate
            assert float((exact - got).abs().max()) <= 0.5 * step * (1 + 1e-4) + steps * MIN_SCALE


@given(x=tensors)
def test_short_tensors_have_the_same_bits_in_int8_as_if_they_were_part_of_a_long_one(x: Tensor) -> None:
    as_few = codec.get("int8").encode(x)
    decoded = codec.get("int8").decode(as_few, x.numel())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "FEW", -1)
        assert codec.get("int8").encode(x) == as_few
        assert same_bits(codec.get("int8").decode(as_few, x.numel()), decoded)


@given(x=tensors, bad=st.sampled_from([1.0, 3.4e38, math.nan, math.inf, -math.inf]), at=st.integers(0, 699))
def test_one_value_that_is_not_finite_is_found_among_any_others(x: Tensor, bad: float, at: int) -> None:
    if len(x):
        x[at % len(x)] = bad

    assert is_finite(x) == bool(torch.isfinite(x).all())
    assert is_finite(x.view(1, -1)) == is_finite(x)


@pytest.mark.parametrize(("value", "all_zero"), [(0.0, True), (-0.0, True), (1e-45, False), (1e-30, False), (2.0, False)])
def test_the_smallest_number_is_not_zero(value: float, all_zero: bool) -> None:
    assert is_zero(torch.tensor([0.0, value])) is all_zero


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
@settings(max_examples=40)
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


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@given(
    numel=st.one_of(st.integers(1, 600), st.sampled_from([4096, 5000, 8192])),
    flips=st.lists(st.floats(0, 1, exclude_max=True), max_size=6),
    cut=st.integers(-3, 3),
    seed=st.integers(0, 9),
)
def test_a_damaged_body_gives_a_finite_tensor_or_a_codec_error(
    name: str, numel: int, flips: list[float], cut: int, seed: int
) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed)) ** 3
    data = bytearray(codec.get(name).encode(x))
    for flip in flips:  # of any bit after the header
        bit = int(flip * 8 * (len(data) - 8))
        data[8 + bit // 8] ^= 1 << bit % 8
    data = data[: len(data) + cut] if cut < 0 else data + bytes(cut)

    try:
        decoded = codec.get(name).decode(bytes(data), numel)
    except CodecError:
        return
    assert cut == 0 or flips  # a longer or shorter one is always seen, unless it is damaged in a way that makes it fit
    assert decoded.shape == (numel,) and bool(torch.isfinite(decoded).all())
    assert same_bits(codec.get(name).decode(bytes(data), numel), decoded)


@pytest.mark.parametrize("name", [name for name in ALL if "unbiased" not in name])
@settings(max_examples=40)
@given(x=tensors)
def test_nothing_is_worse_than_sending_nothing(name: str, x: Tensor) -> None:
    exact, decoded = x.double(), round_trip(name, x).double()

    assert float((exact - decoded).square().sum()) <= float(exact.square().sum()) * (1 + 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_huge_tiny_and_zero_values_pass_side_by_side(name: str) -> None:
    x = torch.zeros(5 * 4096)
    x[4096:8192] = 1e-42
    x[8192:12288] = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x[8200] = 1e30
    x[12288:16384] = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    x[16384:] = FLOAT32_MAX

    decoded = round_trip(name, x)

    assert not decoded[:4096].any()
    assert float(decoded[4096:8192].abs().max()) <= 2e-42
    assert 65504 <= decoded[8200].item() <= 1.005e30
    ordinary, got = x[12288:16384], decoded[12288:16384]
    assert got.any() and float((got - ordinary).abs().max()) <= float(ordinary.abs().max())
    assert bool((decoded[16384:] >= 0).all())


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_what_is_decoded_where_it_lies_is_what_a_copy_would_be(name: str) -> None:
    data = codec.get(name).encode(torch.randn(1000))
    for at in range(4):  # of whatever alignment, and of memory that may not be written to
        room = bytearray(at + len(data))
        room[at:] = data
        for view in (memoryview(room)[at:], memoryview(bytes(room))[at:]):
            assert torch.equal(codec.decode_shared(codec.get(name), view, 1000), codec.get(name).decode(data, 1000))


def test_fp32_values_that_can_be_read_where_they_lie_are_not_copied() -> None:
    data = bytearray(codec.get("fp32").encode(torch.ones(1000)))

    values = codec.decode_shared(codec.get("fp32"), memoryview(data), 1000)
    data[8:12] = struct.pack("<f", 5.0)

    assert values[0] == 5.0


def test_what_is_not_finite_is_refused_where_it_lies() -> None:
    data = bytearray(codec.get("fp32").encode(torch.ones(1000)))
    data[8:12] = struct.pack("<f", math.nan)

    with pytest.raises(CodecError, match="NaN or infinity"):
        codec.decode_shared(codec.get("fp32"), memoryview(data), 1000)
    with pytest.raises(CodecError, match="bytes"):
        codec.decode_shared(codec.get("fp32"), memoryview(data)[:-1], 1000)
