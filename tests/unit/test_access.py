"""What a user writes down of whom to admit and whom to keep out, by legion-ctl, and how a running peer reads it."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from legion_p2p.cli.ctl import app
from legion_p2p.core.admission import Admission, as_text, from_text, make_revocation, make_token, open_token
from legion_p2p.core.identity import Identity
from legion_p2p.errors import DecodeError, LegionError, StoreError, UsageError
from legion_p2p.observe.events import Events
from legion_p2p.services.run.access_watch import LOOK_EVERY_S, watch_access
from legion_p2p.store import access_lists
from legion_p2p.store.access_lists import AccessFiles, token_of
from legion_p2p.store.identity import load_or_create_identity, read_identity

RUN = "bafkrei" + "a" * 52
FOUNDER, GUEST = Identity(b"f" * 32), Identity(b"g" * 32)


def ctl(*words: str) -> int:
    code = app(list(words), exit_on_error=False, print_error=False, result_action="return_value")
    assert isinstance(code, int)
    return code


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "lab.key"
    load_or_create_identity(path).release()
    return path


def test_the_id_of_a_key_is_printed_and_a_missing_key_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert ctl("id", "--identity", str(tmp_path / "new.key")) == 0

    first, second = capsys.readouterr().out.split()
    assert first == second == read_identity(tmp_path / "new.key").peer_id


def test_a_token_is_made_while_the_peer_runs_and_read_back(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = load_or_create_identity(key)

    ctl("token", "make", "--run", RUN, "--for", GUEST.peer_id, "--until", "2999-12-31", "--identity", str(key))

    line = capsys.readouterr().out
    (tmp_path / "guest.token").write_text(line)
    assert token_of(str(tmp_path / "guest.token")) == token_of(line.strip())
    permit = open_token(token_of(line.strip()))
    assert (permit.run, permit.peer, permit.signer) == (RUN, GUEST.peer_id, running.peer_id)
    ctl("token", "show", str(tmp_path / "guest.token"))
    shown = capsys.readouterr().out
    assert f"admits {GUEST.peer_id} until 3000-01-01 00:00 UTC" in shown and running.peer_id in shown
    running.release()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--run", "stories", "--for", GUEST.peer_id, "--until", "2999-12-31"), "run's id is needed"),
        (("--run", RUN, "--for", "nobody", "--until", "2999-12-31"), "Ed25519"),
        (("--run", RUN, "--for", GUEST.peer_id, "--until", "31.12.2999"), "2027-03-31"),
        (("--run", RUN, "--for", GUEST.peer_id, "--until", "1999-12-31"), "is over"),
    ],
)
def test_a_token_that_would_be_of_no_use_is_not_made(key: Path, words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ctl("token", "make", *words, "--identity", str(key))


def test_bans_and_revocations_stand_beside_the_key_once_each(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = AccessFiles(key)
    for _ in range(2):
        ctl("ban", GUEST.peer_id, "--identity", str(key))
        ctl("token", "revoke", "--run", RUN, "--for", GUEST.peer_id, "--identity", str(key))

    assert files.banned() == {GUEST.peer_id}
    assert files.revocations() == (make_revocation(read_identity(key), RUN, GUEST.peer_id),)
    ctl("unban", GUEST.peer_id, "--identity", str(key))
    assert files.banned() == frozenset()
    assert "banned already" in capsys.readouterr().out


def test_a_ban_of_nobody_is_a_mistake(key: Path) -> None:
    with pytest.raises(UsageError, match="Ed25519"):
        ctl("ban", "nobody", "--identity", str(key))


def test_lists_may_have_comments_and_a_bad_line_is_named(key: Path) -> None:
    files = AccessFiles(key)
    files.banned_path.write_text(f"# a reason\n\n  {GUEST.peer_id}  \n")
    assert files.banned() == {GUEST.peer_id}

    files.banned_path.write_text(f"{GUEST.peer_id}\nnobody\n")

    with pytest.raises(StoreError, match=r"lab.banned, line 2: .*nobody"):
        files.banned()


def test_the_lists_are_bounded(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = AccessFiles(key)
    monkeypatch.setattr(access_lists, "MAX_BANNED", 2)
    files.ban(GUEST.peer_id)
    files.ban(FOUNDER.peer_id)
    with pytest.raises(StoreError, match="at most 2"):
        files.ban(Identity(b"x" * 32).peer_id)

    files.banned_path.write_bytes(b"#" * (access_lists.MAX_FILE_BYTES + 1))
    with pytest.raises(StoreError, match="too large"):
        files.banned()


def test_a_key_that_others_can_read_signs_nothing(key: Path) -> None:
    if os.name != "posix":
        pytest.skip("no permission bits")
    key.chmod(0o644)

    with pytest.raises(StoreError, match="chmod 600"):
        read_identity(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o644


@pytest.mark.parametrize("text", ["", "token", "legion-token-", "legion-token-%%%", "legion-token-" + "A" * 2000])
def test_text_that_is_no_token_is_said_to_be_none(text: str) -> None:
    with pytest.raises(DecodeError):
        open_token(from_text(text))


def test_a_token_survives_the_way_as_text() -> None:
    token = make_token(FOUNDER, RUN, GUEST.peer_id, 2000)

    assert from_text(f"  {as_text(token)}\n") == token


class Lists:
    """What a user has written down."""

    def __init__(self) -> None:
        self.changes = 0
        self.names: set[str] = set()
        self.revoked: list[bytes] = []
        self.broken = False

    def stamp(self) -> int:
        return self.changes

    def banned(self) -> set[str]:
        if self.broken:
            raise StoreError("line 1: no peer")
        return self.names

    def revocations(self) -> list[bytes]:
        return self.revoked


async def test_a_running_peer_follows_the_lists_and_keeps_what_it_has_when_one_is_broken(autojump_clock: object) -> None:
    async def disk(fn: object) -> object:
        assert callable(fn)
        return fn()

    class Members:
        def __init__(self) -> None:
            self.admission = Admission(RUN, "token", FOUNDER.peer_id)
            self.access = self
            self.bans: list[set[str]] = []

        def ban(self, peers: set[str]) -> None:
            self.bans.append(set(peers))

        def revoke(self, revocation: bytes) -> None:
            self.admission.revoke(revocation, 1000.0)

    events, members, lists = Events(wall_time=lambda: 0.0), Members(), Lists()
    errors: list[str] = []
    events.add_sink(lambda event: errors.append(event.name) if event.is_error else None)
    ctx = SimpleNamespace(disk=disk, events=events)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_access, ctx, members, lists)
        await trio.sleep(3 * LOOK_EVERY_S)
        assert members.bans == [set()], "read once, as nothing changed"

        lists.names, lists.changes = {GUEST.peer_id}, 1
        lists.revoked = [make_revocation(FOUNDER, "another", GUEST.peer_id), make_revocation(FOUNDER, RUN, GUEST.peer_id)]
        await trio.sleep(2 * LOOK_EVERY_S)
        assert members.bans[-1] == {GUEST.peer_id}
        assert "revoked" in members.access.admission.refusal(GUEST.peer_id, make_token(FOUNDER, RUN, GUEST.peer_id, 2000), 1000.0)

        lists.broken, lists.changes = True, 2
        await trio.sleep(2 * LOOK_EVERY_S)
        assert (len(members.bans), errors) == (2, ["access.unreadable"])
        nursery.cancel_scope.cancel()


def test_a_file_that_is_no_token_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.token").write_text("hello")

    with pytest.raises(LegionError, match="no token"):
        token_of(str(tmp_path / "x.token"))
