"""Typed requests: a message names its reply, and whatever goes wrong is one family of errors, told to whom it concerns."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.wire import (
    REQUESTS,
    Busy,
    Done,
    Encoded,
    GetShard,
    GetSpec,
    Message,
    Ping,
    Push,
    Request,
    ShardState,
    encode,
    reply_types,
)
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    NetworkError,
    NoAnswerError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
)
from legion_p2p.net.limits import MAX_SCORE
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.rpc import Dispatcher, Rpc
from legion_p2p.sim.network import World
from legion_p2p.sim.station import SimNetwork

STATE = ShardState(3, 7, b"d" * 32, (), b"payload", ancestor=False)
ASKER, ANSWERER, NOBODY = (Identity(bytes([n]) * 32) for n in range(3))


class Liveness:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, PeerId]] = []

    def heard(self, peer: PeerId) -> None:
        self.told.append(("heard", peer))

    def lost(self, peer: PeerId) -> None:
        self.told.append(("lost", peer))


class Pair:
    """One peer that asks another, in a simulated network."""

    def __init__(self, world: World) -> None:
        self.asker, self.answerer = (world.join(identity) for identity in (ASKER, ANSWERER))
        self.asker.messenger.add_addresses(self.peer, self.answerer.messenger.addresses())
        self.liveness = Liveness()
        self.rpc = Rpc(self.asker.messenger, self.liveness)
        self.events: list[Event] = []
        events = Events()
        events.add_sink(self.events.append)
        self.dispatcher = Dispatcher(self.answerer.messenger, events)
        self.answerer.messenger.serve(self.dispatcher.handle)

    @property
    def peer(self) -> PeerId:
        return self.answerer.peer_id

    def answers_raw(self, reply: bytes) -> None:
        async def answer(peer: PeerId, body: bytes) -> bytes:
            return reply

        self.answerer.messenger.serve(answer)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with World() as world:
        yield Pair(world)


def raising(error: Exception) -> Callable[[PeerId, Any], Awaitable[Any]]:
    async def handler(peer: PeerId, message: Any) -> Any:
        raise error

    return handler


def count_misbehaviour(network: SimNetwork, peer: PeerId) -> int:
    return round(network.messenger.refusals.score(peer))  # they fade within minutes


async def test_a_new_message_is_one_class_and_one_handler(pair: Pair) -> None:
    class Sum(Message, frozen=True, tag="sum"):
        total: int

    class Add(Request[Sum], frozen=True, tag="add"):
        numbers: tuple[int, ...]

    async def add(peer: PeerId, message: Add) -> Sum:
        return Sum(sum(message.numbers))

    pair.dispatcher.on(Add, add)

    assert (await pair.rpc.ask(pair.peer, Add((1, 2, 3)))).total == 6


async def test_the_reply_is_of_one_of_the_types_that_the_request_names(pair: Pair) -> None:
    replies: list[ShardState | Busy] = [STATE, Busy(500)]

    async def get_shard(peer: PeerId, message: GetShard) -> ShardState | Busy:
        assert (peer, message.shard) == (ASKER.peer_id, 3)
        return replies.pop(0)

    pair.dispatcher.on(GetShard, get_shard)

    assert await pair.rpc.ask(pair.peer, GetShard("run", 3), Priority.DOWNLOAD) == STATE
    assert await pair.rpc.ask(pair.peer, GetShard("run", 3), Priority.DOWNLOAD) == Busy(500)


def test_every_request_of_the_protocol_names_what_answers_it() -> None:
    assert len(REQUESTS) > 10 and Push in REQUESTS
    assert all(issubclass(reply, Message) for kind in REQUESTS for reply in reply_types(kind))
    assert reply_types(GetShard) == (ShardState, Busy) and reply_types(Ping) == (Done,)


async def test_the_liveness_of_a_peer_follows_from_whether_it_answers(pair: Pair) -> None:
    pair.dispatcher.on(Ping, _done)

    await pair.rpc.ask(pair.peer, Ping("run"))
    with pytest.raises(UnreachableError):
        await pair.rpc.ask(NOBODY.peer_id, Ping("run"))

    assert pair.liveness.told == [("heard", pair.peer), ("lost", NOBODY.peer_id)]


async def test_a_refusal_tells_nothing_about_liveness(pair: Pair) -> None:
    pair.dispatcher.on(Ping, raising(NetworkError("not in that run")))

    with pytest.raises(RefusedError) as refused:
        await pair.rpc.ask(pair.peer, Ping("run"))

    assert (refused.value.kind, refused.value.reason) == ("NetworkError", "not in that run")
    assert pair.liveness.told == []


async def test_a_peer_that_does_not_answer_in_time_is_not_called_dead(pair: Pair, autojump_clock: MockClock) -> None:
    async def sleep(peer: PeerId, message: Ping) -> Done:
        await trio.sleep(10)
        return Done()

    pair.dispatcher.on(Ping, sleep)
    began = trio.current_time()

    with pytest.raises(NoAnswerError, match=r"did not answer in 2\.5 s"):
        await pair.rpc.ask(pair.peer, Ping("run"), within_s=2.5)

    assert trio.current_time() - began == 2.5 and pair.liveness.told == []


@pytest.mark.parametrize("reply", [b"garbage", b"", encode(Done()), msgspec.msgpack.encode({"type": "busy", "retry_ms": -1})])
async def test_what_is_no_answer_to_the_request_is_reported(pair: Pair, reply: bytes) -> None:
    pair.answers_raw(reply)

    with pytest.raises(RemoteProtocolError, match="bad reply: reply to GetShard"):
        await pair.rpc.ask(pair.peer, GetShard("run", 3))

    assert count_misbehaviour(pair.asker, pair.peer) == 1 and pair.liveness.told == []


async def test_what_a_peer_sent_can_be_checked_further_at_its_cost(pair: Pair) -> None:
    with pytest.raises(RemoteProtocolError, match="bad shard: no such codec"), pair.rpc.checking(pair.peer, "bad shard"):
        raise CodecError("no such codec")

    assert count_misbehaviour(pair.asker, pair.peer) == 1


async def test_all_are_asked_at_once_and_those_that_fail_are_left_out(pair: Pair) -> None:
    pair.dispatcher.on(Ping, _done)

    replies = await pair.rpc.ask_all([NOBODY.peer_id, pair.peer, pair.peer], Ping("run"), within_s=5)

    assert replies == {pair.peer: Done()}


async def test_a_request_that_was_encoded_before_is_asked_as_any_other(pair: Pair) -> None:
    pair.dispatcher.on(Ping, _done)

    assert await pair.rpc.ask(pair.peer, Encoded(Ping("run"))) == Done()


async def test_a_request_that_cannot_be_decoded_costs_the_asker(pair: Pair) -> None:
    with pytest.raises(RefusedError) as refused:
        await pair.asker.messenger.request(pair.peer, b"garbage")

    assert refused.value.kind == "DecodeError" and count_misbehaviour(pair.answerer, ASKER.peer_id) == 1
    assert [event.name for event in pair.events] == ["request.refused"]


async def test_a_request_that_its_handler_finds_garbage_costs_the_asker(pair: Pair) -> None:
    pair.dispatcher.on(Ping, raising(DecodeError("bad signature")))

    with pytest.raises(RefusedError, match="bad signature"):
        await pair.rpc.ask(pair.peer, Ping("run"))

    assert count_misbehaviour(pair.answerer, ASKER.peer_id) == 1


async def test_a_request_without_a_handler_is_refused_and_costs_nothing(pair: Pair) -> None:
    for _ in range(int(MAX_SCORE) + 1):
        with pytest.raises(RefusedError, match="does not answer GetSpec"):
            await pair.rpc.ask(pair.peer, GetSpec("run"))

    assert count_misbehaviour(pair.answerer, ASKER.peer_id) == 0


async def test_a_mistake_of_a_handler_is_refused_without_its_details(pair: Pair) -> None:
    pair.dispatcher.on(Ping, raising(ValueError("secret")))

    with pytest.raises(RefusedError) as refused:
        await pair.rpc.ask(pair.peer, Ping("run"))

    assert refused.value.kind == "InternalError" and "secret" not in str(refused.value)


async def test_a_scope_refuses_while_its_condition_does_not_hold(pair: Pair) -> None:
    in_run = False
    answered: list[PeerId] = []

    def check(peer: PeerId, message: Request[Any]) -> None:
        if not in_run:
            raise NetworkError(f"{peer} asks too early")

    pair.dispatcher.scope(check, answered.append).on(Ping, _done)

    with pytest.raises(RefusedError, match="asks too early"):
        await pair.rpc.ask(pair.peer, Ping("run"))
    assert answered == []

    in_run = True
    await pair.rpc.ask(pair.peer, Ping("run"))
    assert answered == [ASKER.peer_id]


async def test_a_throttled_reply_holds_its_slot_until_it_is_sent(pair: Pair) -> None:
    sent: list[str] = []

    async def get_shard(peer: PeerId, message: GetShard) -> ThrottledReply[ShardState]:
        return ThrottledReply(STATE, lambda: sent.append("sent"))

    pair.dispatcher.on(GetShard, get_shard)

    assert await pair.rpc.ask(pair.peer, GetShard("run", 3), Priority.DOWNLOAD) == STATE
    assert sent == ["sent"]


async def test_a_throttled_reply_that_cannot_be_sent_frees_its_slot(pair: Pair) -> None:
    sent: list[str] = []

    async def get_shard(peer: PeerId, message: Any) -> Any:
        return ThrottledReply(Done(), lambda: sent.append("sent"))

    pair.dispatcher.on(GetShard, get_shard)

    with pytest.raises(RefusedError, match="failed to handle it"):
        await pair.rpc.ask(pair.peer, GetShard("run", 3))
    assert sent == ["sent"]


async def _done(peer: PeerId, message: Ping) -> Done:
    return Done()
