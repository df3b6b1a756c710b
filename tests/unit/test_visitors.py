"""As whom commands ask a network: what of their options does not fit together."""

from pathlib import Path

import pytest

from legion_p2p.cli.visitors import visitor_by_options
from legion_p2p.errors import UsageError
from legion_p2p.store.identity import identity_of


def test_a_visitor_without_options_is_a_stranger() -> None:
    with visitor_by_options("", "some") as visitor:
        assert (visitor.identity, visitor.token, visitor.network_key) == (None, b"", b"")


def test_a_key_file_is_used_while_the_visit_lasts(tmp_path: Path) -> None:
    identity, release = identity_of(str(tmp_path / "guest.key"))
    release()

    for _ in range(2):
        with visitor_by_options("", "some", str(tmp_path / "guest.key")) as visitor:
            assert visitor.identity is not None and visitor.identity.peer_id == identity.peer_id


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"token": "guest.token", "run": "some"}, "give the key file of that peer with --identity"),
        ({"identity": "guest.key"}, "name it with --run"),
        ({"identity": "gust.key", "run": "some"}, "there is no key file gust.key"),
    ],
)
def test_options_that_admit_nobody_are_refused_and_no_key_is_made(
    options: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=told), visitor_by_options("", **options):
        pass

    assert list(tmp_path.iterdir()) == []
