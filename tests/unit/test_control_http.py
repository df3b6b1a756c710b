"""Telling a peer what to do over loopback: only whoever can read the user's control key may, and nothing else gets in."""

import os
import stat
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from legion_p2p.core.control import Command, Pause, Resume, SetLimits, encode_command
from legion_p2p.errors import NetworkError, StoreError, UsageError
from legion_p2p.net.control_http import PATH, PROOF, ControlDoor, proof_of, send_command
from legion_p2p.net.http_client import ask_locally
from legion_p2p.net.http_server import MAX_BODY_BYTES
from legion_p2p.net.status_http import fetch_status, serve_status
from legion_p2p.observe.status import ControlStatus, RunStatus, Status
from legion_p2p.store.control_key import KEY_BYTES, NAME, load_or_create_control_key

KEY = bytes(range(KEY_BYTES))
STATUS = Status("me", (), RunStatus("id", "demo"), "home", "training", 7, (), (), 10, 20, None, ())


class Peer:
    def __init__(self, port: int, obeyed: list[Command]) -> None:
        self.port = port
        self.obeyed = obeyed

    async def post(self, body: bytes, proof: str, *more: tuple[str, str]) -> int:
        return (await ask_locally("127.0.0.1", self.port, PATH, body=body, headers=((PROOF, proof), *more))).code

    async def challenge(self) -> str:
        answer = await ask_locally("127.0.0.1", self.port, PATH)
        return str(msgspec.json.decode(answer.body)["challenge"])


@asynccontextmanager
async def a_peer(with_door: bool = True) -> Any:
    obeyed: list[Command] = []

    def obey(command: Command) -> ControlStatus:
        obeyed.append(command)
        return ControlStatus(wish="pause", reasons=("by you",))

    async with trio.open_nursery() as nursery:
        door = ControlDoor(KEY, obey) if with_door else None

        async def serve(*, task_status: Any) -> None:
            await serve_status(lambda: STATUS, ports=(), control=door, task_status=task_status)

        address = await nursery.start(serve)
        yield Peer(int(address.rpartition(":")[2]), obeyed)
        nursery.cancel_scope.cancel()


async def test_a_command_of_the_user_is_obeyed_and_answered_with_what_holds() -> None:
    async with a_peer() as peer:
        status = await send_command("127.0.0.1", peer.port, KEY, Pause(60.0))
        again = await send_command("localhost", peer.port, KEY, SetLimits(upload="5mbit"))

    assert peer.obeyed == [Pause(60.0), SetLimits(upload="5mbit")]
    assert status == again == ControlStatus(wish="pause", reasons=("by you",))


async def test_another_user_who_cannot_read_the_key_is_refused() -> None:
    async with a_peer() as peer:
        with pytest.raises(NetworkError, match="does not take commands from this user"):
            await send_command("127.0.0.1", peer.port, bytes(KEY_BYTES), Pause())

        assert (await fetch_status("127.0.0.1", peer.port)) == STATUS
    assert peer.obeyed == []


async def test_a_proof_counts_once_for_one_command_and_at_one_port() -> None:
    body = encode_command(Pause())
    async with a_peer() as peer:
        challenge = await peer.challenge()
        proof = proof_of(KEY, challenge, peer.port, body)

        assert await peer.post(encode_command(Resume()), proof) == 403
        assert await peer.post(body, proof_of(KEY, challenge, peer.port + 1, body)) == 403
        assert await peer.post(body, "") == 403
        assert await peer.post(body, proof, (PROOF, proof)) == 403
        assert await peer.post(body, proof) == 200
        assert await peer.post(body, proof) == 403
    assert peer.obeyed == [Pause()]


async def test_what_is_no_command_is_refused_with_why_even_if_it_is_proved() -> None:
    async with a_peer() as peer:
        for body, code in ((b"garbage", 400), (b'{"type":"limits","upload":"fast"}', 400), (b"x" * (MAX_BODY_BYTES + 1), 413)):
            assert await peer.post(body, proof_of(KEY, await peer.challenge(), peer.port, body)) == code
        with pytest.raises(UsageError, match="rate 'fast'"):
            await send_command("127.0.0.1", peer.port, KEY, SetLimits(upload="fast"))
    assert peer.obeyed == []


async def test_a_web_page_is_refused_by_its_host_before_anything_is_read() -> None:
    body = encode_command(Pause())
    async with a_peer() as peer:
        proof = proof_of(KEY, await peer.challenge(), peer.port, body)
        async with await trio.open_tcp_stream("127.0.0.1", peer.port) as stream:
            head = f"POST {PATH} HTTP/1.1\r\nHost: evil.example\r\n{PROOF}: {proof}\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body)
            answer = await stream.receive_some()

    assert answer.startswith(b"HTTP/1.1 403") and peer.obeyed == []


async def test_a_peer_without_a_key_takes_no_commands_and_says_so() -> None:
    async with a_peer(with_door=False) as peer:
        with pytest.raises(NetworkError, match="takes no commands"):
            await send_command("127.0.0.1", peer.port, KEY, Pause())


# the key


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data" / "legion_p2p"


def test_the_key_is_made_once_for_its_owner_only(folder: Path) -> None:
    key = load_or_create_control_key(folder)

    assert len(key) == KEY_BYTES and load_or_create_control_key(folder) == key
    assert stat.S_IMODE(os.stat(folder / NAME).st_mode) == 0o600 and stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_key_that_others_can_read_or_that_is_damaged_is_refused(folder: Path) -> None:
    load_or_create_control_key(folder)
    (folder / NAME).chmod(0o644)
    with pytest.raises(StoreError, match="can be read by others"):
        load_or_create_control_key(folder)

    (folder / NAME).chmod(0o600)
    (folder / NAME).write_text("half a li")
    with pytest.raises(StoreError, match="holds no control key"):
        load_or_create_control_key(folder)
