"""Who speaks about whom, and when somebody is not believed."""

import hashlib
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement, Signed, open_signed
from legion_p2p.core.coordinates import MAX_RTT_S, Coordinate
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.witnesses import (
    MAX_TESTIMONIES,
    MIN_CONTRADICTING,
    MIN_WITNESSES,
    N_WITNESSES,
    Account,
    Ring,
    Witness,
    WitnessBook,
    doubted,
    is_believed,
    pack_testimonies,
    unpack_testimonies,
)
from legion_p2p.errors import DecodeError

PEERS = [PeerId(f"peer-{i}") for i in range(30)]


def at(x_ms: float, error: float = 0.1) -> Coordinate:
    return Coordinate((x_ms / 1000, 0.0, 0.0, 0.0), 0.001, error)


def accounts(claims: dict[PeerId, Coordinate], true: dict[PeerId, Coordinate], liars: frozenset[PeerId] = frozenset()):
    """What all announce; `liars` say of everybody that it is elsewhere."""
    silent = [Account(peer, claim) for peer, claim in claims.items()]
    said, ring = [], Ring(silent)
    for account in silent:
        here, more_s = true[account.peer_id], 1.0 if account.peer_id in liars else 0.0
        measured = [(subject, more_s + here.rtt_s(true[subject])) for subject in ring.subjects_of(account.peer_id)]
        said.append(msgspec.structs.replace(account, testimonies=pack_testimonies(measured)))
    return said


def test_the_witnesses_of_a_peer_are_where_it_claims_to_be():
    true = {peer: at(100 * (i % 3)) for i, peer in enumerate(PEERS)}
    claims = true | {PEERS[0]: at(200)}

    ring = Ring(accounts(claims, true))
    found = {peer: [witness.peer_id for witness in ring.witnesses_of(peer)] for peer in PEERS}

    assert all(len(set(who)) == N_WITNESSES and peer not in who for peer, who in found.items())
    assert sum(true[witness] == claims[PEERS[0]] for witness in found[PEERS[0]]) >= 3
    assert all(len(ring.subjects_of(peer)) <= MAX_TESTIMONIES for peer in PEERS)


def test_among_few_everybody_is_a_witness_of_all_others():
    few = dict.fromkeys(PEERS[:4], at(0))

    assert sorted(Ring(accounts(few, few)).subjects_of(PEERS[0])) == sorted(PEERS[1:4])
    assert Ring(accounts({PEERS[0]: at(0)}, few)).subjects_of(PEERS[0]) == []


def test_who_claims_to_be_elsewhere_is_doubted_and_nobody_else_is():
    true = {peer: at(100 * (i % 3)) for i, peer in enumerate(PEERS)}
    claims = true | {PEERS[0]: at(300), PEERS[1]: at(9000)}

    assert doubted(Ring(accounts(claims, true))) == {PEERS[0], PEERS[1]}


@pytest.mark.parametrize("liar", PEERS[:10])
def test_one_who_speaks_ill_of_all_makes_nobody_doubted(liar):
    true = {peer: at(100 * (i % 3)) for i, peer in enumerate(PEERS)}

    assert not doubted(Ring(accounts(true, true, frozenset([liar]))))


def test_of_four_one_who_speaks_ill_makes_nobody_doubted():
    true = {peer: at(100 * (i % 2)) for i, peer in enumerate(PEERS[:4])}

    assert not doubted(Ring(accounts(true, true, frozenset(PEERS[:1]))))
    assert doubted(Ring(accounts(true | {PEERS[1]: at(500)}, true))) == {PEERS[1]}


def test_who_is_no_witness_is_not_heard():
    true = dict.fromkeys(PEERS, at(0))
    victim = PEERS[0]
    said = accounts(true, true)
    enemies = set(PEERS) - {witness.peer_id for witness in Ring(said).witnesses_of(victim)}
    slander = pack_testimonies([(victim, 5.0)])
    said = [msgspec.structs.replace(a, testimonies=slander) if a.peer_id in enemies else a for a in said]

    assert len(enemies) > len(PEERS) / 2 and not doubted(Ring(said))


def test_who_does_not_know_where_it_is_is_neither_doubted_nor_heard():
    true = dict.fromkeys(PEERS[:5], at(0))

    assert not doubted(Ring(accounts(true | {PEERS[0]: at(500, error=1.0)}, true)))
    assert not doubted(Ring(accounts({p: at(0, error=1.0) for p in PEERS[:5]} | {PEERS[0]: at(500)}, true)))


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.floats(1e-6, 2 * MAX_RTT_S)), max_size=30, unique_by=lambda m: m[0]))
def test_testimonies_come_back_as_far_as_they_fit(measured):
    packed = pack_testimonies(measured)

    assert list(unpack_testimonies(packed).values()) == pytest.approx(
        [min(rtt_s, MAX_RTT_S) for _, rtt_s in measured[:MAX_TESTIMONIES]], abs=1e-6
    )


def announced(testimonies: bytes) -> bytes:
    """A signed announcement with these. Signed by hand, because `sign` refuses what others would not read."""
    identity = Identity(random.Random(0).randbytes(32))
    body = msgspec.msgpack.encode(Announcement(identity.peer_id, "run", testimonies=testimonies))
    return msgspec.msgpack.encode(Signed(body, identity.sign(b"legion/announcement/2\0" + hashlib.sha256(body).digest())))


@pytest.mark.parametrize("n_bytes", [1, 13, 12 * (MAX_TESTIMONIES + 1)])
def test_an_announcement_with_too_many_or_broken_testimonies_is_refused(n_bytes):
    open_signed(announced(bytes(12)))

    with pytest.raises(DecodeError):
        open_signed(announced(bytes(n_bytes)))


@given(st.binary(max_size=MAX_TESTIMONIES).map(lambda b: b * 12))
def test_whatever_others_say_nobody_stumbles(packed):
    doubted(Ring(Account(peer, at(i), packed) for i, peer in enumerate(PEERS[:6])))


def test_as_many_as_it_takes_to_doubt_a_peer_are_looked_for_first() -> None:
    """Fewer than MIN_CONTRADICTING can make nobody doubted, however few speak."""
    here, far = at(0), at(500)

    for n in range(MIN_WITNESSES, 2 * N_WITNESSES):
        fitting = [Witness(here, here.rtt_s(here))] * (n - MIN_CONTRADICTING + 1)
        assert is_believed(here, [*fitting, *[Witness(here, here.rtt_s(far))] * (MIN_CONTRADICTING - 1)])
    fitting = [Witness(here, here.rtt_s(here))] * (MIN_WITNESSES - MIN_CONTRADICTING)
    assert is_believed(here, [*fitting, *[Witness(here, here.rtt_s(far))] * MIN_CONTRADICTING]) is False


steps = st.tuples(
    st.integers(0, 11),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.lists(st.integers(0, 13), max_size=8),
    st.booleans(),
)


@given(st.lists(steps, min_size=1, max_size=25))
def test_what_is_taken_in_change_by_change_is_what_all_of_it_at_once_gives(moves) -> None:
    book, known = WitnessBook(PEERS[0]), {PEERS[0]: Account(PEERS[0], None)}
    for i, place, error, measured, leaves in moves:
        peer = PEERS[i]
        if leaves and peer != PEERS[0]:
            known.pop(peer, None)
        else:
            said = pack_testimonies([(PEERS[j], 0.1 * (j % 3)) for j in set(measured)])  # some of nobody that is a member
            known[peer] = Account(peer, None if place == 4 else at(100 * place, error), said)

        book.hear(known.values())

        ring = Ring(known.values())
        assert book.subjects == ring.subjects_of(PEERS[0])
        assert book.doubted == doubted(ring)


def test_a_witness_is_one_of_the_nearest_candidates() -> None:
    rng = random.Random(3)
    ring = Ring([Account(peer, at(rng.randrange(300))) for peer in PEERS])

    for witness in PEERS:
        named = {peer for peer in PEERS if any(w.peer_id == witness for w in ring.witnesses_of(peer))}
        assert named == {peer for peer in PEERS if ring.is_candidate(witness, peer) and ring.is_witness(witness, peer)}


def test_a_member_that_speaks_of_others_each_time_fills_no_memory() -> None:
    book = WitnessBook(PEERS[0])
    for k in range(50):
        said = pack_testimonies([(PeerId(f"nobody-{k}-{i}"), 0.1) for i in range(MAX_TESTIMONIES)])
        book.hear([Account(PEERS[0], at(0)), Account(PEERS[1], at(0), said)])

    assert len(book._speakers) + len(book._contradicting) <= 2 * MAX_TESTIMONIES
