"""Top-k: what is chosen, what is sent of it, and what a stranger may send."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.errors import CodecError, UsageError
from legion_p2p.tensor import codec, topk
from legion_p2p.tensor.topk import CHUNK, TopK


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def square(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


@given(k=st.integers(1, 2048), bits=st.sampled_from([1, 2, 4, 8, 16]))
def test_any_k_and_bits_make_a_codec(k: int, bits: int) -> None:
    assert codec.get(f"topk{k}-{bits}bit") == TopK(k, bits)
    assert TopK(k, bits).name == f"topk{k}-{bits}bit"


@pytest.mark.parametrize(
    "name", ["topk0-2bit", "topk2049-2bit", "topk64-3bit", "topk064-2bit", "topk64-2bit\n", "topk64", "topk٣-2bit"]
)
def test_other_names_make_none(name: str) -> None:
    with pytest.raises(CodecError, match="unknown codec"):
        codec.get(name)


def test_what_no_name_can_say_cannot_be_made_either() -> None:
    with pytest.raises(UsageError, match="top-4096 with 2 bits"):
        TopK(4096, 2)


@pytest.mark.parametrize("k", [1, 16, 64, 100, 256, 300, 2048])
@pytest.mark.parametrize("length", [4096, 4000, 64, 5])
def test_the_largest_magnitudes_are_chosen(k: int, length: int) -> None:
    x_CB = normal(70 * length, seed=k).view(70, length)
    k = min(k, length)

    index_CK = topk._largest(x_CB, k)

    expected = x_CB.abs().topk(k, dim=1).indices.sort(dim=1).values
    assert torch.equal(index_CK, expected)


@given(levels=st.integers(1, 5), k=st.integers(1, 300), columns=st.sampled_from([1, 256]), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_of_equal_magnitudes_the_first_are_chosen(levels: int, k: int, columns: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    # with columns alike, all candidates of a chunk crowd in few groups
    x_CB = (
        torch.randint(-levels, levels + 1, (3, CHUNK // columns, columns), generator=g).float().sort(dim=1).values.view(3, CHUNK)
    )

    index_CK = topk._largest(x_CB, k)

    expected = np.sort(np.argsort(-x_CB.abs().numpy(), axis=1, kind="stable")[:, :k], axis=1)
    assert index_CK.tolist() == expected.tolist()


@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 4095, 4096, 4097, 3 * 4096 + 100])
@pytest.mark.parametrize(("k", "bits"), [(1, 1), (64, 2), (128, 4), (2048, 16)])
def test_just_the_chosen_ones_arrive_with_their_signs(k: int, bits: int, numel: int) -> None:
    x = normal(numel, seed=numel)

    decoded = TopK(k, bits).decode(TopK(k, bits).encode(x), numel)

    for start in range(0, numel, CHUNK):
        exact, got = x[start : start + CHUNK], decoded[start : start + CHUNK]
        n_sent = -(-k * len(exact) // CHUNK)  # a shorter chunk sends the same share, rounded up
        chosen = exact.abs() >= exact.abs().topk(n_sent).values[-1]
        assert torch.equal(got != 0, chosen)
        assert torch.equal(got.sign()[chosen], exact.sign()[chosen])


@pytest.mark.parametrize("name", [name for name in codec.names() if name.startswith("topk")])
def test_random_values_take_the_bits_that_are_told(name: str) -> None:
    n = 100 * CHUNK

    bits = 8 * len(codec.get(name).encode(normal(n))) / n

    assert bits == pytest.approx(codec.get(name).bits_per_element, rel=0.015)


def test_two_bits_of_the_top_64_take_0_155_bits_per_parameter() -> None:
    n = 100 * CHUNK

    assert 8 * len(codec.get("topk64-2bit").encode(normal(n))) / n < 0.155


def test_clustered_indices_take_less_than_random_ones() -> None:
    x = torch.zeros(20 * CHUNK)
    x.view(20, CHUNK)[:, 500:564] = normal(20 * 64).view(20, 64)

    clustered, random = codec.get("topk64-2bit").encode(x), codec.get("topk64-2bit").encode(normal(20 * CHUNK))

    assert len(clustered) < 0.8 * len(random)


def test_two_bit_levels_are_the_optimum() -> None:
    x = normal(CHUNK) ** 3
    decoded = TopK(64, 2).decode(TopK(64, 2).encode(x), CHUNK)
    sent = x[decoded != 0].abs().double().sort().values

    best = min(
        float((sent[:cut] - sent[:cut].mean()).square().sum() + (sent[cut:] - sent[cut:].mean()).square().sum())
        for cut in range(1, 64)
    )

    # the levels are rounded: by 0.4 % and 1.1 % of their size at most
    assert square(x[decoded != 0] - decoded[decoded != 0]) < best + 1.2e-4 * square(sent)


@pytest.mark.parametrize(("bits", "levels"), [(4, 8), (8, 128), (16, 32768)])
def test_more_bits_are_off_by_half_a_step_at_most(bits: int, levels: int) -> None:
    x = normal(CHUNK)
    decoded = TopK(100, bits).decode(TopK(100, bits).encode(x), CHUNK)
    sent = decoded != 0
    lowest, highest = float(x[sent].abs().min()), float(x[sent].abs().max())

    # the outer levels are rounded outwards, by 2.2 % and 0.8 %
    step = (highest * 1.008 - lowest * 0.978) / (levels - 1)
    assert float((x[sent] - decoded[sent]).abs().max()) <= step / 2 * 1.001


@pytest.mark.parametrize(
    ("k", "bits", "error"), [(64, 1, 0.882), (64, 2, 0.881), (64, 16, 0.8806), (128, 4, 0.800), (256, 4, 0.676)]
)
def test_the_squared_error_of_normal_values_is_what_the_docs_say(k: int, bits: int, error: float) -> None:
    x = normal(200 * CHUNK)

    decoded = TopK(k, bits).decode(TopK(k, bits).encode(x), len(x))

    assert square(x - decoded) / square(x) == pytest.approx(error, abs=0.003)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_an_outlier_does_not_enlarge_the_others_of_its_chunk(bits: int) -> None:
    x = normal(CHUNK)
    x[7] = 1e30

    decoded = TopK(64, bits).decode(TopK(64, bits).encode(x), CHUNK)

    assert decoded[7].item() == pytest.approx(1e30, rel=0.005)
    decoded[7] = 0
    assert not decoded.any()  # they wait, in the residual, until it has passed


def test_few_values_among_zeros_arrive_as_they_are() -> None:
    x = torch.zeros(CHUNK)
    x[[5, 900, 4095]] = torch.tensor([2.0, -2.0, 2.0])

    assert torch.equal(TopK(64, 2).decode(TopK(64, 2).encode(x), CHUNK), x)


def changed(x: torch.Tensor, at: int, new: bytes) -> bytes:
    data = bytearray(TopK(64, 2).encode(x))
    data[at : at + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (8, struct.pack("<H", 65), "top-65 of 2 bits"),
        (10, b"\x04", "top-64 of 4 bits"),
        (11, b"\x0d", "Rice parameter 13"),
        (11, b"\x0c", "bytes"),
        (12, struct.pack("<H", 0x7F80), "level"),  # infinity
        (12, struct.pack("<H", 0x7FC0), "level"),  # NaN
        (12, struct.pack("<H", 0x8000 | 0x3F80), "level"),  # -1
        (12, struct.pack("<H", 0x0D7F), "level"),  # just below 2**-100
    ],
)
def test_parameters_and_levels_that_no_encoder_writes_are_refused(at: int, new: bytes, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        TopK(64, 2).decode(changed(normal(CHUNK), at, new), CHUNK)


def test_an_index_beyond_its_chunk_is_refused() -> None:
    x = torch.zeros(100)
    x[98] = x[99] = 1.0  # of 100, two are sent: gaps 98 and 0, in 5 bits 2 and 0, in unary 0001 and 1
    data = bytearray(TopK(64, 2).encode(x))
    assert data[16:].hex() == "020018"

    data[16] = 0x03  # a gap of 99 ends beyond

    with pytest.raises(CodecError, match="index beyond its chunk"):
        TopK(64, 2).decode(bytes(data), 100)
