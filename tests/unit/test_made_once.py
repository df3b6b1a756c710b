"""What an update leads to is computed once for all peers of a process."""

import gc
from weakref import ref

import pytest
import torch

from legion_p2p.errors import CodecError
from legion_p2p.services.shards import made_once
from legion_p2p.services.shards.made_once import advance_once
from legion_p2p.services.shards.replica import advance
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest

INT8 = codec.get("int8")
BASE, CHANGE = torch.arange(64, dtype=torch.float32), torch.linspace(-1, 1, 64)


@pytest.fixture
def n_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time that something is computed."""
    computed: list[int] = []

    def counted(*args: object) -> object:
        computed.append(1)
        return advance(*args)

    monkeypatch.setattr(made_once, "advance", counted)
    made_once._made.clear()
    return computed


def test_a_second_peer_with_the_same_shard_gets_what_the_first_one_computed(n_computed: list[int]) -> None:
    payload = INT8.encode(CHANGE)

    first = advance_once(digest(BASE), b"payload", BASE, payload, INT8)
    second = advance_once(digest(BASE), b"payload", BASE.clone(), bytes(bytearray(payload)), INT8)

    assert second[0] is first[0] and second[1:] == first[1:] and len(n_computed) == 1
    made, digest_, norm = advance(BASE, payload, INT8)
    assert torch.equal(made, first[0]) and (digest_, norm) == first[1:]


@pytest.mark.parametrize("other", ["base", "payload", "codec"])
def test_another_shard_update_or_codec_is_computed(other: str, n_computed: list[int]) -> None:
    held = advance_once(digest(BASE), b"payload", BASE, INT8.encode(CHANGE), INT8)
    base = BASE + 1 if other == "base" else BASE
    used = codec.get("fp32") if other == "codec" else INT8
    change = CHANGE * 2 if other == "payload" else CHANGE

    made, _, _ = advance_once(digest(base), b"other" if other == "payload" else b"payload", base, used.encode(change), used)

    assert len(n_computed) == 2 and not torch.equal(made, held[0])


def test_what_no_peer_holds_any_more_is_computed_again_and_takes_no_memory(n_computed: list[int]) -> None:
    payload = INT8.encode(CHANGE)
    gone = ref(advance_once(digest(BASE), b"payload", BASE, payload, INT8)[0])

    gc.collect()

    assert gone() is None
    advance_once(digest(BASE), b"payload", BASE, payload, INT8)
    assert len(n_computed) == 2


def test_an_update_that_cannot_be_read_is_refused_each_time(n_computed: list[int]) -> None:
    for _ in range(2):
        with pytest.raises(CodecError):
            advance_once(digest(BASE), b"payload", BASE, b"no update", INT8)
    assert len(n_computed) == 2


def test_few_versions_are_remembered(monkeypatch: pytest.MonkeyPatch, n_computed: list[int]) -> None:
    monkeypatch.setattr(made_once._made, "limit", 3)
    payload = INT8.encode(CHANGE)

    held = [advance_once(bytes([n]) * 32, b"payload", BASE, payload, INT8) for n in range(9)]

    assert len(made_once._made) == 3 and len(held) == 9
