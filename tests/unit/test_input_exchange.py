"""Inputs of an update on their way, and what is refused on either side."""

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from legion_p2p.core.account import header_digest
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.evidence import FIRST_PUSH
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import GetInput, InputPart
from legion_p2p.errors import NetworkError, RemoteProtocolError
from legion_p2p.services import upload_slots
from legion_p2p.services.shards import input_exchange
from legion_p2p.services.shards.inputs import RoundInputs, state_digest
from legion_p2p.services.shards.witness import MAX_BACKLOG
from legion_p2p.services.upload_slots import TO_MEMBERS
from tests.unit.shard.test_services import ONE, Peer, a_round, peers_of, push_of

WATCHED = msgspec.structs.replace(ONE, verify="late")


async def last_of(owner: Peer) -> tuple[bytes, RoundInputs]:
    """The header of the last update, and what it was made of."""
    entry = owner.replica.chain.last()
    assert entry is not None
    return entry.update.header, owner.replica.inputs[header_digest(entry.update.header)]


async def fetched(asker: Peer, owner: Peer, raw: bytes, header: Any = None) -> RoundInputs:
    inputs: RoundInputs = await asker.shards.exchange.fetch(owner.me, raw, header or (await last_of(owner))[1].header, None)
    return inputs


async def test_what_an_update_was_made_of_arrives_as_it_was(autojump_clock: object) -> None:
    async with peers_of(3, WATCHED) as peers:
        await a_round(peers)
        await a_round(peers)
        raw, kept = await last_of(peers[0])
        assert kept.residual is not None and kept.outer.momentum is not None

        got = await fetched(peers[2], peers[0], raw)

        assert [push.claim for push in got.pushes] == [push.claim for push in kept.pushes] and len(got.pushes) == 3
        assert state_digest(got.residual, got.outer) == state_digest(kept.residual, kept.outer)
        assert bytes(got.update) == bytes(kept.update)
        assert len(peers[0].replica.inputs) == 2


async def test_what_is_not_kept_or_no_part_is_refused(autojump_clock: object) -> None:
    async with peers_of(2, WATCHED) as peers:
        await a_round(peers)
        raw, _ = await last_of(peers[0])
        asked = GetInput(peers[0].run.id, 0, header_digest(raw), 0)

        kinds = [
            await peers[1].refused(peers[0], msgspec.structs.replace(asked, header=b"x" * 32)),
            await peers[1].refused(peers[0], msgspec.structs.replace(asked, part=FIRST_PUSH + 2)),
            await peers[1].refused(peers[0], msgspec.structs.replace(asked, shard=7)),
        ]

        assert kinds == ["NetworkError", "DecodeError", "DecodeError"]


@pytest.mark.parametrize("part", [0, 3, FIRST_PUSH, FIRST_PUSH + 1])
async def test_a_part_that_is_another_than_the_account_names_counts_against_its_sender(
    part: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    async with peers_of(3, WATCHED) as peers:
        await a_round(peers)
        await a_round(peers)
        raw, _ = await last_of(peers[0])
        honest = input_exchange.part_of

        def wrong(inputs: RoundInputs, asked: int) -> InputPart:
            made = honest(inputs, asked)
            if asked != part:
                return made
            return msgspec.structs.replace(made, payload=bytes(made.payload)[:-1] + b"?", claim=None if part == 5 else made.claim)

        monkeypatch.setattr(input_exchange, "part_of", wrong)
        with pytest.raises(RemoteProtocolError):
            await fetched(peers[2], peers[0], raw)


async def test_no_more_is_fetched_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    async with peers_of(2, WATCHED) as peers:
        await a_round(peers)
        raw, _ = await last_of(peers[0])
        monkeypatch.setattr(input_exchange, "MAX_FETCHED_BYTES", 100)

        with pytest.raises(NetworkError, match="more than 100 bytes"):
            await fetched(peers[1], peers[0], raw)


async def test_a_push_that_is_not_signed_is_refused_where_owners_are_watched(autojump_clock: object) -> None:
    async with peers_of(2, WATCHED) as (owner, member):
        assert await member.refused(owner, push_of(member)) == "SignatureError"
        assert owner.replica.arrived == {}


async def test_a_standby_that_is_slow_leaves_updates_out(autojump_clock: object) -> None:
    async with peers_of(2, WATCHED) as peers:
        witness, accepted = peers[1].shards.witness, []
        peers[1].shards.states.updated.add(accepted.append)

        async def stuck(*_: Any) -> None:
            await trio.sleep_forever()

        peers[1].shards.exchange.fetch = stuck
        await a_round(peers)
        for _ in range(3 * MAX_BACKLOG):
            witness._on_update(accepted[0])

        assert len(witness._jobs[0]) == MAX_BACKLOG


async def test_inputs_are_given_while_all_other_uploads_are_taken(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_slots, "FREE_BYTES", 0)
    async with peers_of(3, WATCHED) as peers:
        await a_round(peers)
        await a_round(peers)
        raw, kept = await last_of(peers[0])
        await trio.sleep(10.0)  # the standby has fetched what it recomputes: no upload is under way
        held = trio.Event()

        async def waits() -> Any:
            await held.wait()

        slots = peers[0].run.upload_slots
        async with trio.open_nursery() as nursery:
            for priority in (Priority.ROUND, Priority.CATCH_UP):
                for n in range(TO_MEMBERS.max_items):
                    nursery.start_soon(slots.give, PeerId(f"reader {n}"), 1, waits, priority)
            await trio.testing.wait_all_tasks_blocked()
            assert slots.n_under_way(Priority.ROUND) == slots.n_under_way(Priority.CATCH_UP) == TO_MEMBERS.max_items

            with trio.fail_after(1.0):
                assert len((await fetched(peers[2], peers[0], raw)).pushes) == len(kept.pushes)
            nursery.cancel_scope.cancel()
