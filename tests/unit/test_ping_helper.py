"""Pings for others: few at a time for one peer, because each holds a request open."""

from typing import Any

import pytest
import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Done, PingFor
from legion_p2p.errors import NetworkError, NoAnswerError, UnreachableError
from legion_p2p.services.membership.ping_helper import MAX_PINGS_FOR, MAX_PINGS_FOR_ALL, PingHelper

ME, ASKER, SUSPECT = PeerId("me"), PeerId("asker"), PeerId("suspect")
MESSAGE = PingFor("run", SUSPECT)


class SilentPeers:
    """A roster and an Rpc in one: everybody is known, and answers when it is let."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.answer = trio.Event()
        self.failure: Exception | None = None

    def is_known(self, peer: PeerId) -> bool:
        return peer != "stranger"

    async def ask(self, peer: PeerId, *_: Any, **__: Any) -> Done:
        self.n_asked += 1
        await self.answer.wait()
        if self.failure is not None:
            raise self.failure
        return Done()


def helper(peers: SilentPeers, told: list[str]) -> PingHelper:
    return PingHelper(
        "run", ME, peers, peers, lambda peer: told.append(f"heard {peer}"), lambda peer: told.append(f"lost {peer}"), 3.0
    )  # type: ignore[arg-type]


async def refusal(helping: PingHelper, asker: PeerId) -> str:
    try:
        await helping.on_ping_for(asker, MESSAGE)
    except NetworkError as refused:
        return type(refused).__name__
    return ""


async def test_one_peer_has_few_pings_under_way_and_all_together_not_many_more(autojump_clock: object) -> None:
    peers = SilentPeers()
    helping, answers = helper(peers, []), []

    async def ask(asker: PeerId) -> None:
        answers.append(await refusal(helping, asker))

    async with trio.open_nursery() as nursery:
        for i in range(20):
            for _ in range(3 * MAX_PINGS_FOR):
                nursery.start_soon(ask, PeerId(f"asker {i}"))
        await trio.sleep(1)
        assert peers.n_asked == MAX_PINGS_FOR_ALL and answers == ["NetworkError"] * (60 * MAX_PINGS_FOR - MAX_PINGS_FOR_ALL)
        peers.answer.set()

    assert answers.count("") == MAX_PINGS_FOR_ALL and await refusal(helping, ASKER) == "", "and then it answers again"


async def test_what_came_of_it_is_told_and_strangers_are_not_pinged() -> None:
    peers, told = SilentPeers(), []
    helping = helper(peers, told)
    peers.answer.set()

    assert await refusal(helping, ASKER) == ""
    for failure in (UnreachableError(SUSPECT, "gone"), NoAnswerError(SUSPECT, 3.0)):
        peers.failure = failure
        assert await refusal(helping, ASKER) == "UnreachableError"
    assert told == [f"heard {SUSPECT}", f"lost {SUSPECT}"]
    for stranger in ("stranger", ME):
        with pytest.raises(UnreachableError):
            await helping.on_ping_for(ASKER, PingFor("run", stranger))
    assert peers.n_asked == 3
