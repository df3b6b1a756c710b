"""Which checkpoints a newcomer looks at, of those that members name."""

from legion_p2p.core.cids import DAG_CBOR, RAW, Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.services.checkpoint.select import MAX_ROOTS, named_roots

A, B = PeerId("A"), PeerId("B")


def cids(n: int, codec: str = DAG_CBOR) -> list[Cid]:
    return [Cid.of(b"%d" % i, codec) for i in range(n)]


def named(lists: dict[PeerId, list[bytes]]) -> tuple[dict[Cid, set[PeerId]], list[PeerId]]:
    """What `named_roots` makes of the lists, and who was reported."""
    reported: list[PeerId] = []
    return named_roots(lists, lambda peer, reason: reported.append(peer)), reported


def test_everybody_who_named_a_checkpoint_is_known_even_when_the_list_is_full() -> None:
    full = cids(MAX_ROOTS)

    roots, _ = named({A: [c.raw for c in full], B: [full[-1].raw]})

    assert roots[full[-1]] == {A, B}
    # the last of A's list comes after B's only one; what is named when there is no room left still counts for its second teller
    late, _ = named({A: [c.raw for c in full], B: [c.raw for c in reversed(full)]})
    assert all(tellers == {A, B} for tellers in late.values())


def test_no_more_checkpoints_are_looked_at_than_the_limit() -> None:
    roots, _ = named({A: [c.raw for c in cids(MAX_ROOTS + 5)]})

    assert len(roots) == MAX_ROOTS


def test_the_newest_of_every_member_comes_first() -> None:
    mine, others = cids(4)[:2], cids(4)[2:]

    roots, _ = named({A: [c.raw for c in mine], B: [c.raw for c in others]})

    assert list(roots) == [mine[0], others[0], mine[1], others[1]]


def test_names_that_are_no_cids_are_reported_and_names_of_plain_blocks_take_no_room() -> None:
    good = cids(MAX_ROOTS)

    roots, reported = named({A: [c.raw for c in cids(40, RAW)], B: [b"no cid at all", *(c.raw for c in good)]})

    assert set(roots) == set(good)
    assert reported == [B]
