"""Error feedback: what was sent plus what is kept equals what came in."""

import pytest
import torch

from legion_p2p.errors import NonFiniteError, UsageError
from legion_p2p.tensor import codec
from legion_p2p.tensor.feedback import compress, compress_difference

N_ROUNDS = 100


def changes(n: int, seed: int = 0) -> list[torch.Tensor]:
    """One tensor per round, with entries from 1e-6 to 100 in size."""
    g = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.linspace(-6, 2, n)
    return [torch.randn(n, generator=g) * sizes for _ in range(N_ROUNDS)]


@pytest.mark.parametrize("name", codec.names())
@pytest.mark.parametrize("decay", [1.0, 0.95, 0.0])
def test_the_residual_is_what_the_formula_says_bit_for_bit(name: str, decay: float) -> None:
    c = codec.get(name)
    residual = torch.zeros(1000)
    for x in changes(1000)[:10]:
        data, sent, new_residual = compress(c, residual, x, decay)

        assert torch.equal(sent, c.decode(data, 1000))
        residual_or_zeros = torch.zeros(1000) if new_residual is None else new_residual
        assert torch.equal(residual_or_zeros, decay * residual + x - sent)
        residual = residual_or_zeros


NEAREST_OF_LEVELS_WITH_ZERO = [
    name for name in codec.names() if not name.startswith(("gauss", "sign")) and "unbiased" not in name
]


@pytest.mark.parametrize("name", codec.names())
def test_what_was_sent_plus_what_is_kept_equals_what_came_in(name: str) -> None:
    total_in, total_sent = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    lost_at_most = torch.zeros(1000, dtype=torch.float64)
    residual = torch.zeros(1000)

    for x in changes(1000):
        wanted = residual + x
        _, sent, kept = compress(codec.get(name), residual, x)
        residual = torch.zeros(1000) if kept is None else kept
        # half a unit in the last place of residual + x; and of e - q, which most codecs spare (Sterbenz)
        lost_at_most += wanted.abs().double() * 2.0**-24
        if name in NEAREST_OF_LEVELS_WITH_ZERO:
            assert torch.equal(sent.double() + residual.double(), wanted.double())
        else:
            lost_at_most += residual.abs().double() * 2.0**-24
        total_in += x.double()
        total_sent += sent.double()

    lost = (total_sent + residual.double() - total_in).abs()
    assert bool((lost <= lost_at_most + 1e-12).all())
    assert float(lost.max()) < 4e-4  # of sums whose terms are some hundreds
    assert float(residual.abs().max()) > 0 or name == "fp32"


@pytest.mark.parametrize("name", ["bf16", "int2", "sign", "topk64-1bit", "topk64-2bit"])
def test_on_a_grid_that_fp32_holds_nothing_at_all_is_lost(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    total_in, total_sent, residual = (
        torch.zeros(5000, dtype=torch.float64),
        torch.zeros(5000, dtype=torch.float64),
        torch.zeros(5000),
    )
    grid = 2.0**-14

    for _ in range(N_ROUNDS):
        # multiples of 1/64 in 2 to 4, whose sums stay below 2**10: 24 bits of `grid` hold them
        x = torch.randint(128, 256, (5000,), generator=g) / 64 * (torch.randint(0, 2, (5000,), generator=g) * 2 - 1)
        _, sent, residual = compress(codec.get(name), residual, x)
        assert torch.equal(sent, (sent / grid).round() * grid)  # levels are bf16: eight bits
        total_in += x.double()
        total_sent += sent.double()

    assert torch.equal(total_sent + residual.double(), total_in)
    assert float(residual.abs().max()) < 2**10


def test_a_lossless_codec_keeps_nothing_and_loses_nothing() -> None:
    residual = None

    for x in changes(1000):
        _, sent, residual = compress(codec.get("fp32"), residual, x)

        assert torch.equal(sent, x)
        assert residual is None


def test_a_value_too_small_to_be_sent_is_sent_later() -> None:
    x = torch.tensor([1.0, 1e-3])  # a step of int8 is 1/127 here
    residual, total_sent = None, torch.zeros(2)

    for _ in range(20):
        _, sent, residual = compress(codec.get("int8"), residual, x)
        total_sent += sent

    assert total_sent[1].item() == pytest.approx(20e-3, abs=0.5 / 127)


def test_neither_the_residual_nor_the_change_is_touched() -> None:
    residual, x = torch.ones(5), torch.full((5,), 0.3)

    compress(codec.get("int8"), residual, x, 0.5)

    assert residual.tolist() == [1.0] * 5
    assert torch.equal(x, torch.full((5,), 0.3))


def test_a_diverged_change_is_not_sent() -> None:
    with pytest.raises(NonFiniteError):
        compress(codec.get("int8"), torch.full((2,), 3e38), torch.full((2,), 3e38))


def test_a_decay_that_would_grow_the_residual_and_a_residual_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="decay"):
        compress(codec.get("fp32"), None, torch.ones(2), 1.5)
    with pytest.raises(UsageError, match="residual of shape"):
        compress(codec.get("fp32"), torch.ones(1), torch.ones(2))


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "topk64-4bit"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_difference_is_compressed_to_the_bytes_of_its_value(name: str, with_residual: bool) -> None:
    a, b, left = torch.randn(3, 1000)
    residual = left if with_residual else None

    made = compress_difference(codec.get(name), residual, a, b)

    expected = compress(codec.get(name), residual, a - b)
    assert bytes(made.data) == expected.data
    assert torch.equal(made.sent, expected.sent)
    assert (made.residual is None) == (expected.residual is None)


def test_a_difference_that_diverged_is_not_sent() -> None:
    with pytest.raises(NonFiniteError):
        compress_difference(codec.get("fp32"), None, torch.full((8,), 3e38), torch.full((8,), -3e38))
