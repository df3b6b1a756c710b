"""A real peer on loopback, and strangers that speak libp2p and send what hypothesis thinks of: nothing of it ends the host.

The peer lives in a thread of its own for as long as these tests last, and trains all the while; each test ends with a proper peer
that joins over the same host and whose training becomes part of the common model.
"""

import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import torch
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libp2p.peer.id import ID

from legion_p2p import errors
from legion_p2p.config import Peer
from legion_p2p.core.announcement import Announcement, sign
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.priority import Priority
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import (
    Accusation,
    Done,
    Exchange,
    GetShard,
    GetSpec,
    GetUpdates,
    HandoverPart,
    Held,
    Inclusion,
    Ping,
    PingFor,
    Push,
    ShardState,
    Update,
    UpdateHeader,
    encode,
)
from legion_p2p.errors import LegionError, RefusedError, UnreachableError
from legion_p2p.net.envelope import VERSION
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import MAX_BULK_FRAME_BYTES, MAX_CONTROL_FRAME_BYTES, NetConfig
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.streams import PROTOCOLS
from legion_p2p.peer import open_peer
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from tests.replies import decode_reply
from tests.waiting import PATIENCE_S

NUMEL = 32
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
QUIET_PEER = Peer(listen=LOOPBACK, status=False)
ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", shard_elements=16)
PARAMS = (ParamSpec("w", (NUMEL,)),)
TYPED = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, LegionError)}
TYPED |= {"BusyError", "NotServingError", "UnknownVersionError"}  # the messenger's own
QUIET = NetConfig(dht_server=False)


async def train(engine: ActiveRun) -> None:
    """Pull a toy model towards ones, step by step."""
    theta = torch.nn.Parameter(torch.zeros(NUMEL))
    plan = engine.plan
    local = LocalCopy(FlatView([("w", theta)]), [plan.bounds(s) for s in range(plan.n_shards)], exact=True)
    local_trainer = LocalTrainer(local, engine.mailbox)
    while True:
        await trio.sleep(0.02)
        local_trainer.take_in()
        with torch.no_grad():
            theta += 0.01 * (1 - theta)
        local_trainer.stepped(1)
        if local_trainer.steps % 20 == 1:
            engine.report(Progress(local_trainer.steps, local_trainer.tokens, 50.0, 0.02, training=True))
        if due := local_trainer.due(engine.local_steps):
            engine.contribute(local_trainer.hand_in(due))


class Victim:
    """A peer that founded a run and trains, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self.engine: ActiveRun
        self._token: trio.lowlevel.TrioToken
        self._ready = threading.Event()
        self._end: trio.Event
        self._failure: BaseException | None = None
        self._nursery: trio.Nursery
        self._thread = threading.Thread(target=self._run, name="victim")

    def __enter__(self) -> "Victim":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def call(self, fn: Callable[..., Awaitable], *args: object) -> object:
        """Run in its loop; a deadline on everything."""

        async def in_time() -> object:
            with trio.fail_after(PATIENCE_S):
                return await fn(*args)

        assert self._failure is None and self._thread.is_alive()
        return trio.from_thread.run(in_time, trio_token=self._token)

    @property
    def id(self) -> PeerId:
        return self.engine.me

    async def meet(self) -> "Stranger":
        """A stranger with a host of its own, that lives until it is sent away."""
        return await self._nursery.start(Stranger(self).live)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
        creation = RunCreation(RunSpec("strangers", "", PARAMS, ROUND), torch.zeros(NUMEL))
        async with open_peer(creation, QUIET_PEER) as self.engine, trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(train, self.engine)
            self._ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as victim:
        yield victim


@asynccontextmanager
async def stranger(victim: Victim):
    """Somebody's host, connected to the victim's."""
    async with open_network(
        Identity.generate(), listen=(), initial_peers=victim.engine.network.addresses(), config=QUIET
    ) as network:
        await network.join()
        yield network


async def ask(network: Libp2pNetwork, victim: Victim, body: bytes, priority: Priority = Priority.CONTROL) -> str:
    """The kind of refusal; "" if it was answered."""
    try:
        decode_reply(await network.messenger.request(victim.id, body, priority))
    except RefusedError as refused:
        return refused.kind
    return ""


async def a_proper_peer_joins_and_trains(victim: Victim) -> None:
    addresses = victim.engine.network.addresses()
    async with open_peer("strangers", QUIET_PEER, params=PARAMS, initial_peers=addresses) as engine:
        before = [r.chain.version for r in engine.shards.replicas.values()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(train, engine)
            for peer in (engine, victim.engine):
                while not all(  # noqa: ASYNC110
                    r.chain.version > before[s] + 2 and r.chain.includes(engine.me, 1) for s, r in peer.shards.replicas.items()
                ):
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    common = victim.engine.common_parameters()
    assert torch.isfinite(common).all() and float(common.abs().max()) < 10.0


def valid_messages(run: str, me: PeerId) -> list[bytes]:
    d, payload = b"d" * 32, codec.get("fp32").encode(torch.ones(16))
    header = UpdateHeader(run, 0, 5, d, d, me, "fp32", (Inclusion(me, 3),), (), 1, 100)
    return [
        encode(message)
        for message in [
            GetSpec("strangers"),
            Exchange(run, (b"announcement",)),
            Ping(run),
            PingFor(run, me),
            Accusation(run, me, 1),
            Push(run, 0, 1, 0, 100, 5, "fp32", payload),
            Update(encode(header), b"s" * 64, payload),
            GetUpdates(run, 1, 0, d),
            GetShard(run, 1),
            HandoverPart(run, 0, 1, d, payload),
            ShardState(0, 1, d, (), payload, True),
            Held(1, d),
            Done(),
        ]
    ]


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Ways to spoil a message: change, cut out or put in some bytes."""
    edits = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6)), max_size=4))

    def spoil(data: bytes) -> bytes:
        spoiled = bytearray(data)
        for where, removed, put in edits:
            at = int(where * len(spoiled))
            spoiled[at : at + removed] = put
        return bytes(spoiled)

    return spoil


class Stranger:
    """A host whose task is the victim's, as a hypothesis example may end before it does."""

    def __init__(self, victim: Victim) -> None:
        self.network: Libp2pNetwork
        self._victim = victim
        self._gone = trio.Event()

    async def live(self, task_status: trio.TaskStatus["Stranger"]) -> None:
        async with stranger(self._victim) as self.network:
            task_status.started(self)
            await self._gone.wait()

    async def become_member(self) -> None:
        own = Announcement(self.network.peer_id, self._victim.engine.id, 1, 1)
        hello = Exchange(own.run, (sign(own, self.network.identity),))
        assert await ask(self.network, self._victim, encode(hello)) == ""

    async def send_away(self) -> None:
        self._gone.set()


BODIES = st.lists(
    st.tuples(st.sampled_from(list(Priority)), st.binary(max_size=200) | st.tuples(st.integers(0, 12), changes())),
    min_size=1,
    max_size=6,
)


def test_no_request_body_ends_the_host_and_each_is_answered_or_refused_with_a_typed_error(victim: Victim) -> None:
    kinds: set[str] = set()
    now: list[Stranger] = []
    n_kept_out = 0

    async def send(bodies: list) -> None:
        nonlocal n_kept_out
        for priority, what in bodies:
            if not now:
                now.append(await victim.meet())
                await now[0].become_member()
            body = what if isinstance(what, bytes) else what[1](valid_messages(victim.engine.id, now[0].network.peer_id)[what[0]])
            try:
                kinds.add(await ask(now[0].network, victim, body, priority))
            except UnreachableError:
                n_kept_out += 1
                await now.pop().send_away()

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BODIES)
    def strangers_send(bodies: list) -> None:
        victim.call(send, bodies)

    strangers_send()

    assert "InternalError" not in kinds
    assert kinds - {""} <= TYPED
    assert {"DecodeError", ""} <= kinds
    assert n_kept_out >= 1, "whoever sends garbage is disconnected in the end"
    for stranger_ in now:
        victim.call(stranger_.send_away)
    victim.call(a_proper_peer_joins_and_trains, victim)


def frame(envelope: object, body: bytes = b"") -> bytes:
    packed = msgspec.msgpack.encode(envelope)
    return struct.pack(">IH", 2 + len(packed) + len(body), len(packed)) + packed + body


async def send_raw(network: Libp2pNetwork, victim: Victim, priority: Priority, data: bytes, until: bytes | None = None) -> bytes:
    """What comes back on a bare libp2p stream until the other side ends it, or `until` has come."""
    answer = b""
    try:
        stream = await network._host.new_stream(ID.from_base58(victim.id), [PROTOCOLS[priority.lane]])
        await stream.write(data)
        if until is None:
            await stream.close_write()
        with trio.move_on_after(10):
            while (until is None or until not in answer) and (chunk := await stream.read(65536)):
                answer += chunk
    except Exception:  # however the stream, or the connection, ends
        return answer
    return answer


@pytest.mark.parametrize("priority", [Priority.CONTROL, Priority.ROUND], ids=lambda priority: priority.lane)
def test_frames_too_large_or_not_even_frames_cost_the_connection_and_not_the_host(priority: Priority, victim: Victim) -> None:
    limit = {"control": MAX_CONTROL_FRAME_BYTES, "bulk": MAX_BULK_FRAME_BYTES}[priority.lane]
    garbage = [struct.pack(">IH", limit + 1, 8) + bytes(64), b"GET / HTTP/1.1\r\n\r\n", struct.pack(">IH", 1 << 31, 1)]

    async def main() -> tuple[list[bytes], bool]:
        async with stranger(victim) as network:
            answers = [await send_raw(network, victim, priority, data) for data in garbage]
            with trio.fail_after(PATIENCE_S):
                while network.peer_id in victim.engine.network.messenger.connected():  # noqa: ASYNC110
                    await trio.sleep(0.02)
            return answers, victim.engine.network.messenger.refusals.is_refused(network.peer_id)

    answers, is_out = victim.call(main)

    assert answers == [b"", b"", b""] and is_out
    victim.call(a_proper_peer_joins_and_trains, victim)


def test_an_envelope_of_an_unknown_version_is_refused_by_name_and_the_stream_goes_on(victim: Victim) -> None:
    ping = encode(Ping(victim.engine.id))

    async def main() -> bytes:
        async with stranger(victim) as network:
            newer = frame([VERSION + 1, 7, "whatever", {"later": 1}], b"body")
            return await send_raw(
                network, victim, Priority.CONTROL, newer + frame([VERSION, 8, 0, "", "", ""], ping), encode(Done())
            )

    answer = victim.call(main)

    assert b"UnknownVersionError" in answer
    assert answer.endswith(encode(Done()))


def test_an_exception_in_a_handler_is_an_answer_and_ends_nothing(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(peer: PeerId, message: object) -> object:
        raise ZeroDivisionError("a bug")

    async def main() -> tuple[str, str]:
        async with stranger(victim) as network:
            shard = encode(GetShard(victim.engine.id, 0))
            with monkeypatch.context() as bug:
                bug.setitem(victim.engine.lobby.dispatcher._handlers, GetShard, broken)
                while_broken = await ask(network, victim, shard, Priority.DOWNLOAD)
            return while_broken, await ask(network, victim, shard, Priority.DOWNLOAD)

    assert victim.call(main) == ("InternalError", "")
    victim.call(a_proper_peer_joins_and_trains, victim)
