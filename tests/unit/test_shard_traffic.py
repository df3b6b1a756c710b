"""Shards that messages carry: recognized without decoding, counted by kind and direction, and what codecs save of them."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import Done
from legion_p2p.core.messages.shards import GetShard, Push, ShardState, Update, Updates
from legion_p2p.core.shard_traffic import Carried, ShardTraffic, shards_in
from legion_p2p.core.spliced import start_of
from legion_p2p.core.wire import Busy, encode, encode_to_send
from legion_p2p.observe.books import shard_rows
from legion_p2p.services.inter_region.traffic import RegionalMessenger
from legion_p2p.sim.network import World
from tests.parts_of import identity_of

UPDATE = Update(b"header", b"signature", b"payload")
PUSH = Push("run", 0, 1, 1, 10, 5, "int8", bytes(1 << 16))
STATE = ShardState(0, 1, bytes(32), (), bytes(400), True)


def test_a_message_that_carries_shards_is_told_by_its_first_bytes() -> None:
    assert shards_in(encode(PUSH)) == shards_in(start_of(encode_to_send(PUSH))) == ("pushes", 1)
    assert shards_in(encode(UPDATE)) == ("updates", 1)
    assert shards_in(encode(STATE)) == ("whole shards", 1)
    for message in (GetShard("run", 0), Busy(5), Done(), Updates((), 3)):
        assert shards_in(encode(message)) == ("", 0)


@given(st.integers(1, 64))
def test_as_many_updates_are_counted_as_one_answer_has(n: int) -> None:
    assert shards_in(encode(Updates((UPDATE,) * n, 3))) == ("updates", n)


@given(st.binary(max_size=100))
def test_any_bytes_of_a_stranger_can_be_looked_at(body: bytes) -> None:
    for start in (body, b"\x82\xa4type" + body, b"\x82\xa4type\xa7updates" + body):
        kind, n = shards_in(start)

        assert (kind == "") == (n == 0) and 0 <= n <= 0xFFFF


async def test_the_messenger_counts_what_it_sends_and_receives_in_requests_and_in_answers(autojump_clock: object) -> None:
    async with World() as world:
        one, two = (RegionalMessenger(world.join(identity_of(name)).messenger, lambda peer: False) for name in "ab")
        one.add_addresses(two.peer_id, two.addresses())

        async def answer(peer: PeerId, body: bytes) -> bytes:
            return encode(STATE)

        two.serve(answer)
        await one.request(two.peer_id, encode(PUSH))
        await one.request(two.peer_id, encode(GetShard("run", 0)))

    push, states = Carried(1, len(encode(PUSH))), Carried(2, 2 * len(encode(STATE)))
    assert (one.shards.sent, one.shards.received) == ({"pushes": push}, {"whole shards": states})
    assert (two.shards.sent, two.shards.received) == (one.shards.received, one.shards.sent)


def test_a_row_sets_what_was_moved_beside_what_fp32_takes() -> None:
    traffic = ShardTraffic()
    traffic.note_sent(encode(PUSH), 100)
    traffic.note_sent(encode(PUSH), 60)
    traffic.note_received(encode(UPDATE), 40)

    pushes, updates = shard_rows(traffic, 400.0)

    assert (pushes.name, pushes.sent_bytes, pushes.sent_fp32_bytes, pushes.received_fp32_bytes) == ("pushes", 160, 800, 0)
    assert (updates.name, updates.received_bytes, updates.received_fp32_bytes) == ("updates", 40, 400)
