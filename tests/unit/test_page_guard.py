"""Who may ask the page's server: every attack from another page, another user or another machine is a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.web.guard import MAX_BODY_BYTES, check_request, new_token

TOKEN = new_token()


def headers(host: str | None = "127.0.0.1:47210", **more: str) -> list[tuple[bytes, bytes]]:
    found = [] if host is None else [(b"Host", host.encode())]
    return found + [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]


def code(method: str, path: str, given: list[tuple[bytes, bytes]]) -> int:
    refusal = check_request(method, path, given, TOKEN)
    return 200 if refusal is None else refusal.code


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_files_of_the_page_need_no_token_and_what_a_peer_says_does() -> None:
    assert code("GET", "/", headers()) == 200
    assert code("GET", "/api/events", headers()) == 401
    assert code("GET", "/api/events", headers(**bearer())) == 200
    assert code("POST", "/api/control", headers(**bearer(), Origin="http://127.0.0.1:47210")) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:47210", "127.0.0.1.evil.example", "localhost@evil.example", "", "192.168.1.2:47210"]
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    assert code("GET", "/", headers(host)) == 403
    assert code("GET", "/api/events", headers(host, **bearer())) == 403


def test_a_request_with_no_host_or_with_two_is_refused() -> None:
    assert code("GET", "/", headers(None)) == 403
    assert code("GET", "/", headers() + headers()) == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:47210", "LOCALHOST:47210"])
def test_names_of_this_machine_are_allowed_also_through_a_forwarded_port(host: str) -> None:
    assert code("GET", "/", headers(host)) == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:47210", "http://127.0.0.1:80", "http://localhost:47210", "", "file://"],
)
def test_another_page_is_refused_even_with_the_token(origin: str) -> None:
    assert code("POST", "/api/control", headers(**bearer(), Origin=origin)) == 403


@pytest.mark.parametrize(("site", "expected"), [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)])
def test_what_the_browser_says_of_the_asking_site_counts(site: str, expected: int) -> None:
    assert code("GET", "/", headers(Sec_Fetch_Site=site)) == expected


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "get", "TRACE"])
def test_the_files_can_only_be_read(method: str) -> None:
    assert code(method, "/", headers()) == 405


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer ", "Bearer wrong", f"bearer {TOKEN}", f"Bearer {TOKEN} ", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN,
        f"Bearer {TOKEN.swapcase()}", "Bearer \xe9",
    ],
    ids=["nothing", "no token", "another", "small b", "space", "shorter", "basic", "bare", "swapped case", "not ASCII"],
)  # fmt: skip
def test_anything_but_the_token_is_refused(value: str) -> None:
    assert code("GET", "/api/events", headers(Authorization=value)) == 401


def test_two_tokens_are_none() -> None:
    assert code("GET", "/api/events", headers(**bearer()) + headers(None, **bearer())) == 401


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("0", 200),
        (str(MAX_BODY_BYTES), 200),
        (str(MAX_BODY_BYTES + 1), 413),
        ("9" * 5000, 413),
        ("-1", 400),
        ("1e3", 400),
        ("٣", 400),
    ],
)
def test_a_long_body_is_refused_before_it_is_read(length: str, expected: int) -> None:
    given = [*headers(**bearer()), (b"Content-Length", length.encode("utf-8"))]

    assert code("POST", "/api/control", given) == expected


def test_a_token_is_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert all(len(token) >= 43 and token.isascii() and "#" not in token for token in tokens)


@given(
    st.text(max_size=20), st.text(max_size=40), st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=60)), max_size=8)
)
def test_whatever_is_sent_without_the_token_nothing_of_the_peer_is_told(method: str, rest: str, sent: list) -> None:
    assert check_request(method, "/api/" + rest, sent, TOKEN) is not None
