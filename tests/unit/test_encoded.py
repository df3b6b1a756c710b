"""Values that stay encoded: their pieces are those of the whole, and what combines them holds few of them at a time."""

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.tensor import codec, encoded
from legion_p2p.tensor.aggregate import Aggregated, WeightedPush
from legion_p2p.tensor.blockwise import INT8, Blockwise
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.dense import FP32
from legion_p2p.tensor.encoded import EncodedValue, Payload, values_of
from legion_p2p.tensor.mixed import Mixed
from legion_p2p.tensor.robust import rules
from legion_p2p.tensor.robust.rules import Rule, aggregate

NUMEL = 40_000


def pushes(n: int, numel: int, seed: int = 0) -> list[torch.Tensor]:
    """Changes that agree in part, one of them many times as long."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(numel, generator=draw)
    made = [common + torch.randn(numel, generator=draw) ** 3 for _ in range(n)]
    return [*made[:-1], 50 * made[-1]]


def every_codec() -> list[Codec]:
    named = [codec.get(name) for name in (*codec.names(), "topk512-2bit", "topk1-1bit", "topk2048-16bit")]
    mixed = Mixed(codec.get("topk64-2bit"), codec.get("bf16"), ((0, 3), (700, 4_100), (9_999, 10_000), (20_000, 30_001)), NUMEL)
    return [*named, mixed]


@pytest.mark.parametrize("one", every_codec(), ids=lambda one: f"{type(one).__name__}-{one.name}")
def test_a_piece_is_that_of_the_whole(one: Codec) -> None:
    (x,) = pushes(1, NUMEL)
    data = one.encode(x)
    value, wanted = EncodedValue(one, data, NUMEL), one.decode(data, NUMEL)

    for start, stop in ((0, NUMEL), (0, 1), (4095, 4097), (16_384, 32_768), (39_000, NUMEL), (NUMEL, NUMEL), (7, 7)):
        assert torch.equal(value[start:stop], wanted[start:stop]), (start, stop)
    assert torch.equal(value.whole(), wanted) and len(value) == value.numel() == NUMEL


@given(numel=st.integers(1, 9_000), data=st.data(), name=st.sampled_from(["fp16", "int8", "int3", "gauss2", "topk64-2bit"]))
def test_pieces_put_together_are_the_whole(numel: int, data: Any, name: str) -> None:
    one = codec.get(name)
    payload = one.encode(pushes(1, numel, seed=numel)[0])
    cuts = sorted({0, numel, *data.draw(st.lists(st.integers(0, numel), max_size=4))})
    value = EncodedValue(one, payload, numel)

    parts = [value[a:b] for a, b in itertools.pairwise(cuts)]

    assert torch.equal(torch.cat(parts), one.decode(payload, numel))


@pytest.mark.parametrize("name", rules.names())
@pytest.mark.parametrize("as_sent", ["int8", "fp32", "topk64-2bit"])
def test_every_rule_gives_the_same_bits_of_values_that_stay_encoded(name: str, as_sent: str) -> None:
    one = codec.get(as_sent)
    bodies = [one.encode(push) for push in pushes(7, NUMEL)]

    def combined(values: list[Any]) -> Aggregated:
        contributions = [
            WeightedPush(f"peer {i}", 1.0 + i, value, 1.0 + i % 3, 0 if name in rules.BY_DISTANCE else None)
            for i, value in enumerate(values)
        ]
        return aggregate(contributions, Rule(name), restore=1.0)

    decoded, in_pieces = (
        combined([one.decode(body, NUMEL) for body in bodies]),
        combined([EncodedValue(one, b, NUMEL) for b in bodies]),
    )

    assert torch.equal(decoded.mean, in_pieces.mean)
    assert (decoded.used, decoded.refused) == (in_pieces.used, in_pieces.refused)
    assert (decoded.agreement, decoded.standings) == (in_pieces.agreement, in_pieces.standings)


def test_few_or_short_values_are_decoded_and_many_long_ones_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = Payload(INT8, INT8.encode(torch.ones(1000)), 1000)
    monkeypatch.setattr(encoded, "MAX_DECODED_BYTES", 3 * 4 * 1000)

    assert all(isinstance(value, torch.Tensor) for value in values_of([payload] * 3))
    assert all(isinstance(value, EncodedValue) for value in values_of([payload] * 4))


def test_a_codec_that_somebody_else_has_registered_is_decoded_whole_alone_and_beside_a_dense_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Foreign:
        name, bits_per_element = "foreign", 32.0
        encode, decode = FP32.encode, FP32.decode

    x, foreign = torch.arange(1000.0), Foreign()
    monkeypatch.setattr(encoded, "MAX_DECODED_BYTES", 0)

    for one in (foreign, Mixed(foreign, codec.get("bf16"), ((0, 8),), 1000)):
        (value,) = values_of([Payload(one, one.encode(x), 1000)])
        assert isinstance(value, torch.Tensor) and torch.equal(value, x)


class Live:
    """Counts the elements of decoded values that are in memory at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def note(self, value: torch.Tensor) -> torch.Tensor:
        n = value.numel()
        self.now += n
        self.most = max(self.most, self.now)
        weakref.finalize(value, self._gone, n)
        return value

    def _gone(self, n: int) -> None:
        self.now -= n


@pytest.mark.parametrize("name", rules.names())
def test_ten_pushes_of_one_shard_are_decoded_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numel, n = 1 << 17, 10
    monkeypatch.setattr(encoded, "MAX_DECODED_BYTES", 4 * numel)
    bodies = [INT8.encode(push) for push in pushes(n, numel)]
    live, decode = Live(), Blockwise.decode
    monkeypatch.setattr(Blockwise, "decode", lambda self, data, numel: live.note(decode(self, data, numel)))
    values = values_of([Payload(INT8, body, numel) for body in bodies])

    result = aggregate([WeightedPush(f"peer {i}", 1.0, value) for i, value in enumerate(values)], Rule(name), restore=1.0)

    gc.collect()
    assert len(result.used) == n
    assert live.now == 0 and live.most <= 1.5 * numel
