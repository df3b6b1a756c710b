"""Following text records of the DNS to a peer: decisions only."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.dnsaddr import MAX_DEPTH, MAX_FOUND, MAX_NAMES, MAX_TEXTS, DnsaddrSearch, name_of
from legion_p2p.core.identity import Identity

PEER = Identity(bytes(32)).peer_id
OTHER = Identity(bytes([1]) * 32).peer_id


def text_of(where: str, peer: str = PEER) -> str:
    return f"dnsaddr={where}/p2p/{peer}"


def search_all(answers: dict[str, list[str]], host: str = "boot.example.org") -> tuple[list[str], list[str]]:
    """The addresses found, and the names that were asked for."""
    search = DnsaddrSearch(host, PEER)
    asked: list[str] = []
    while (question := search.next_question()) is not None:
        name, depth = question
        asked.append(name)
        search.take(answers.get(name, []), depth)
    return search.addresses, asked


def test_the_addresses_of_the_peer_are_found_in_their_order():
    texts = [text_of("/ip4/203.0.113.7/tcp/4710"), text_of("/ip6/2001:db8::7/tcp/4710"), text_of("/dns4/a.example/tcp/1")]

    found, _ = search_all({"boot.example.org": texts})

    assert found == ["/ip4/203.0.113.7/tcp/4710", "/ip6/2001:db8::7/tcp/4710", "/dns4/a.example/tcp/1"]
    assert name_of("boot.example.org") == "_dnsaddr.boot.example.org"


def test_other_peers_other_transports_and_other_texts_are_left_out():
    texts = [
        text_of("/ip4/203.0.113.7/tcp/4710", OTHER),
        text_of("/ip4/203.0.113.7/udp/4710/quic-v1"),
        "v=spf1 -all",
        "dnsaddr=",
        "dnsaddr=/ip4/203.0.113.7/tcp/4710",
        "\x1b[2J",
        text_of("/ip4/203.0.113.8/tcp/4710"),
    ]

    assert search_all({"boot.example.org": texts})[0] == ["/ip4/203.0.113.8/tcp/4710"]


def test_names_lead_to_names_as_deep_as_is_allowed_and_never_in_a_circle():
    names = ["boot.example.org", *(f"n{i}.example" for i in range(1, MAX_DEPTH + 3))]
    answers = {name: [text_of(f"/dnsaddr/{after}")] for name, after in zip(names, [*names[1:], names[0]], strict=True)}
    answers[names[MAX_DEPTH]].append(text_of("/ip4/203.0.113.7/tcp/1"))
    answers[names[MAX_DEPTH + 1]].append(text_of("/ip4/203.0.113.7/tcp/2"))

    found, asked = search_all(answers)

    assert asked == names[: MAX_DEPTH + 1]
    assert found == ["/ip4/203.0.113.7/tcp/1"]

    circle = {"a.example": [text_of("/dnsaddr/B.example.")], "B.example.": [text_of("/dnsaddr/A.EXAMPLE")]}
    assert search_all(circle, "a.example")[1] == ["a.example", "B.example."]


def test_a_name_that_says_much_is_not_followed_without_end():
    many = [text_of(f"/dnsaddr/n{i}.example") for i in range(1000)]
    addresses = [text_of(f"/ip4/203.0.113.7/tcp/{port}") for port in range(1, 1000)]

    assert len(search_all({"boot.example.org": many})[1]) == MAX_NAMES
    assert len(search_all({"boot.example.org": addresses})[0]) == MAX_FOUND
    assert search_all({"boot.example.org": [*["x"] * MAX_TEXTS, *addresses]})[0] == []


@given(st.lists(st.text(max_size=80) | st.text(alphabet="dnsaddr=/ip4tcp2.", max_size=80), max_size=100))
def test_no_texts_are_taken_for_more_than_they_are(texts):
    found, asked = search_all({"boot.example.org": texts})

    assert len(asked) <= MAX_NAMES and len(found) <= MAX_FOUND
