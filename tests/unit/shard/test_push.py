"""When a change is packed, sent, sent again, redirected, settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.shard.life_events import Advanced, Gone, Owners
from legion_p2p.core.shard.push import (
    MAX_REDIRECTS,
    REDIRECT_S,
    RESEND_AFTER_S,
    RESEND_AFTER_VERSIONS,
    RESEND_REDIRECTED_S,
    RETRY_S,
    PushQueue,
    PushState,
)
from legion_p2p.core.shard.push_events import (
    Accepted,
    Ask,
    Compress,
    CompressDone,
    Effect,
    Enter,
    Excluded,
    GiveUp,
    Malformed,
    Merged,
    Moved,
    Offered,
    Rebase,
    Rebased,
    Redirected,
    RoundGivenUp,
    SendPush,
    Settle,
    Unanswered,
    Unusable,
)

ME, OWNER, OTHER, THIRD = (PeerId(name) for name in ("me", "owner", "other", "third"))


def owned_by(owner: PeerId | None) -> Owners:
    return Owners(Ownership(owner, None))


def effects(queue: PushQueue, now: float) -> list[Effect]:
    queue.handle_timeout(now)
    found = []
    while (effect := queue.poll()) is not None:
        found.append(effect)
    return found


def sent(queue: PushQueue, now: float) -> list[PeerId]:
    return [effect.target for effect in effects(queue, now) if isinstance(effect, SendPush)]


def queue_with(owner: PeerId | None = OWNER, now: float = 0.0, newest: int = -1) -> PushQueue:
    """One whose first contribution is packed."""
    queue = PushQueue(ME, newest=newest)
    queue.handle(owned_by(owner), now)
    queue.handle(Offered("change", 0, 100, 10), now)
    queue.handle(CompressDone("body"), now)
    queue.poll()  # Compress
    return queue


def held_by(owner: PeerId, now: float = 0.0) -> PushQueue:
    queue = queue_with(owner, now)
    effects(queue, now)
    queue.handle(Accepted(0, 0), now)
    return queue


def test_a_change_is_compressed_and_then_sent_to_the_owner() -> None:
    queue = PushQueue(ME, newest=6)
    queue.handle(owned_by(OWNER), 0.0)

    queue.handle(Offered("change", 3, 100, 10), 0.0)
    (encode,) = effects(queue, 0.0)
    queue.handle(CompressDone("body"), 1.0)
    (send,) = effects(queue, 1.0)

    assert isinstance(encode, Compress) and encode.change == "change"
    assert isinstance(send, SendPush) and send.target == OWNER
    packed = send.packed
    assert (packed.seq, packed.version, packed.tokens, packed.steps, packed.body) == (7, 3, 100, 10, "body")
    assert queue.state is PushState.SENT and queue.next_deadline() is None


def test_an_update_that_contains_it_settles_it_once() -> None:
    queue = held_by(OWNER)

    queue.handle(Advanced(1, 0), 1.0)
    queue.handle(Advanced(2, 0), 2.0)

    assert effects(queue, 2.0) == [Settle()]
    assert queue.is_idle and queue.packed is None and queue.next_deadline() is None


def test_an_update_without_it_settles_nothing() -> None:
    queue = held_by(OWNER)

    queue.handle(Advanced(1, -1), 1.0)

    assert effects(queue, 1.0) == [] and queue.state is PushState.HELD


@pytest.mark.parametrize("is_sent", [False, True])
def test_an_update_that_says_why_it_failed_settles_it_with_the_reason(is_sent: bool) -> None:
    queue = queue_with()
    if is_sent:
        effects(queue, 0.0)

    queue.handle(Excluded("not finite"), 1.0)

    assert Settle("not finite") in effects(queue, 1.0) and queue.is_idle


def test_what_the_owner_cannot_read_is_not_sent_again() -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(Malformed(0, "codec"), 1.0)

    assert effects(queue, 100.0) == [Settle("codec")]


def test_a_change_of_no_use_is_settled_without_being_sent() -> None:
    queue = PushQueue(ME)
    queue.handle(owned_by(OWNER), 0.0)
    queue.handle(Offered("change", 0, 1, 1), 0.0)
    effects(queue, 0.0)

    queue.handle(Unusable("not finite"), 0.0)

    assert effects(queue, 0.0) == [Settle("not finite")] and queue.is_idle
    assert queue.next_seq == 0


def test_alone_the_change_becomes_the_next_version() -> None:
    queue = PushQueue(ME, newest=4)
    queue.handle(owned_by(ME), 0.0)

    queue.handle(Offered("change", 0, 1, 1, alone=True), 0.0)
    (rebase,) = effects(queue, 0.0)
    queue.handle(Advanced(1, 5), 0.0)
    queue.handle(Rebased(5), 0.0)

    assert isinstance(rebase, Rebase) and rebase.seq == 5
    assert effects(queue, 0.0) == [Settle()] and queue.next_seq == 6


def test_its_own_owner_takes_it_without_the_network() -> None:
    queue = queue_with(ME)

    (enter,) = effects(queue, 0.0)
    queue.handle(Accepted(0, 0), 0.0)

    assert isinstance(enter, Enter) and queue.state is PushState.HELD and queue.holder == ME
    queue.handle(RoundGivenUp(), 1.0)
    assert queue.state is PushState.PACKED and queue.next_deadline() == 1.0, "the round that had it is given up"


def test_nobody_to_send_it_to_is_looked_for_again_and_again() -> None:
    queue = queue_with(None)

    assert effects(queue, 0.0) == [] and queue.next_deadline() == RETRY_S
    queue.handle(owned_by(OWNER), 0.5)
    assert sent(queue, 0.9) == [] and sent(queue, RETRY_S) == [OWNER]


def test_no_answer_is_followed_by_another_attempt() -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(Unanswered(0), 5.0)

    assert queue.next_deadline() == 5.0 + RETRY_S
    assert sent(queue, 5.0) == [] and sent(queue, 5.0 + RETRY_S) == [OWNER]


@pytest.mark.parametrize("versions", [RESEND_AFTER_VERSIONS - 1, RESEND_AFTER_VERSIONS])
def test_an_owner_that_goes_on_without_it_has_lost_it(versions: int) -> None:
    queue = held_by(OWNER)

    queue.handle(Advanced(versions, -1), 1.0)

    assert (sent(queue, 1.0) == [OWNER]) is (versions == RESEND_AFTER_VERSIONS)


def test_a_silent_holder_is_sent_it_again() -> None:
    queue = held_by(OWNER)

    assert sent(queue, RESEND_AFTER_S - 0.1) == [] and sent(queue, RESEND_AFTER_S) == [OWNER]


def test_when_another_peer_owns_the_shard_it_is_sent_there_at_once() -> None:
    queue = held_by(OWNER)

    queue.handle(owned_by(OTHER), 1.0)

    assert sent(queue, 1.0) == [OTHER]


def test_a_dead_holder_counts_no_longer() -> None:
    queue = held_by(OWNER)

    queue.handle(Gone(OTHER), 1.0)
    assert queue.state is PushState.HELD
    queue.handle(Gone(OWNER), 1.0)
    assert queue.state is PushState.PACKED and queue.next_deadline() == 1.0


def test_a_hung_owner_does_not_hold_up_the_next_one() -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(owned_by(OTHER), 7.0)

    assert effects(queue, 7.0) == [GiveUp(0)]
    assert sent(queue, 7.0 + RETRY_S) == [OTHER]
    queue.handle(Accepted(0, 0), 8.5)
    assert queue.holder == OTHER


def test_a_redirected_contribution_goes_to_the_peer_that_was_named() -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(Redirected(0, OTHER), 1.0)
    assert sent(queue, 1.0 + REDIRECT_S) == [OTHER]
    queue.handle(Accepted(0, 0), 2.0)

    assert queue.holder == OTHER and queue.next_deadline() == 2.0 + RESEND_REDIRECTED_S
    queue.handle(owned_by(OWNER), 3.0)
    assert queue.state is PushState.HELD, "it is held by the peer that we were directed to"


def test_two_peers_that_name_each_other_are_soon_asked_rarely() -> None:
    queue, now = queue_with(), 0.0
    (target,) = sent(queue, now)

    for _ in range(MAX_REDIRECTS + 5):
        queue.handle(Redirected(0, OTHER if target == OWNER else OWNER), now)
        before, now = now, queue.next_deadline() or now
        (target,) = sent(queue, now)

    assert now - before == RETRY_S


@pytest.mark.parametrize("named", [None, ME, OWNER])
def test_a_redirection_to_nobody_new_is_no_hurry(named: PeerId | None) -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(Redirected(0, named), 1.0)

    assert queue.next_deadline() == 1.0 + RETRY_S and sent(queue, 2.0) == [OWNER]


def test_the_peer_that_we_were_directed_to_dies_while_it_is_asked() -> None:
    queue = queue_with()
    effects(queue, 0.0)
    queue.handle(Redirected(0, OTHER), 0.0)
    assert sent(queue, 1.0) == [OTHER]

    queue.handle(Gone(OTHER), 2.0)

    assert effects(queue, 2.0)[0] == GiveUp(0) and queue.holder == OWNER


def test_an_answer_to_an_earlier_contribution_changes_nothing() -> None:
    queue = queue_with()
    effects(queue, 0.0)
    queue.handle(Advanced(1, 0), 1.0)
    queue.handle(Offered("next", 1, 1, 1), 1.0)
    queue.handle(CompressDone("next"), 1.0)
    effects(queue, 1.0)

    for late in (Accepted(0, 1), Unanswered(0), Redirected(0, OTHER), Malformed(0, "late")):
        queue.handle(late, 1.5)

    assert queue.state is PushState.SENT and queue.packed is not None and queue.packed.seq == 1
    assert effects(queue, 1.5) == []


def test_a_version_that_contains_it_and_is_missing_here_is_asked_for() -> None:
    queue = queue_with()
    effects(queue, 0.0)

    queue.handle(Accepted(0, 4, included=True), 1.0)

    assert effects(queue, 1.0) == [Ask(OWNER)]


def test_after_a_move_to_another_region_it_counts_from_that_regions_version() -> None:
    queue = held_by(OWNER)

    queue.handle(Moved(40), 1.0)

    (send,) = effects(queue, 1.0)
    assert isinstance(send, SendPush) and send.packed.version == 40 and send.packed.seq == 0


def test_the_weight_of_what_was_merged_goes_with_the_next_one_but_at_most_doubles_it() -> None:
    queue = PushQueue(ME)
    queue.handle(owned_by(OWNER), 0.0)
    queue.handle(Merged(1000), 0.0)

    tokens = []
    for seq in range(2):
        queue.handle(Offered("change", seq, 100, 1), 0.0)
        queue.handle(CompressDone("body"), 0.0)
        assert queue.packed is not None
        tokens.append(queue.packed.tokens)
        queue.handle(Advanced(seq + 1, seq), 0.0)

    assert tokens == [200, 100]


def test_the_first_ones_of_a_newcomer_count_less() -> None:
    queue = PushQueue(ME)
    tokens = []
    for seq in range(4):
        queue.handle(Offered("change", seq, 100, 1), 0.0)
        queue.handle(CompressDone("body", ramp_pushes=3), 0.0)
        assert queue.packed is not None
        tokens.append(queue.packed.tokens)
        queue.handle(Advanced(seq + 1, seq), 0.0)

    assert tokens == [25, 50, 75, 100]


def test_numbers_go_on_after_a_newer_one_of_an_earlier_life_was_seen() -> None:
    queue = PushQueue(ME)

    queue.handle(Advanced(9, 41), 0.0)
    queue.handle(Offered("change", 9, 1, 1), 0.0)
    queue.handle(CompressDone("body"), 0.0)

    assert queue.packed is not None and queue.packed.seq == 42


def test_what_is_not_with_another_owner_yet_has_to_be_delivered_before_leaving() -> None:
    queue = queue_with()
    assert queue.is_undelivered
    effects(queue, 0.0)
    assert queue.is_undelivered
    queue.handle(Accepted(0, 0), 0.0)
    assert not queue.is_undelivered
    assert not queue_with(None).is_undelivered and not queue_with(ME).is_undelivered


EVENTS = st.one_of(
    st.sampled_from([OWNER, OTHER, ME, None]).map(owned_by),
    st.sampled_from([OWNER, OTHER, ME]).map(Gone),
    st.sampled_from(
        ["accept", "included", "redirect", "no answer", "malformed", "fail", "contain", "without", "offer", "encode"]
    ),
    st.sampled_from([RoundGivenUp(), Moved(9), Merged(5)]),
)


@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.05, 1.0, 10.0])), max_size=60))
def test_in_any_order_of_events_each_contribution_is_settled_once_and_its_number_is_its_own(steps) -> None:
    queue, now, version = PushQueue(ME), 0.0, 0
    offered, settled, seqs = 0, 0, []
    busy = False
    for step, passed in steps:
        now += passed
        seq = -1 if queue.packed is None else queue.packed.seq
        if step == "offer" and busy:
            continue  # the training side waits until it is settled
        if step == "contain" or step == "without":
            version += 1
        if step == "offer":
            busy, offered = True, offered + 1
        event = (
            {
                "accept": Accepted(seq, version),
                "included": Accepted(seq, version, included=True),
                "redirect": Redirected(seq, THIRD),
                "no answer": Unanswered(seq),
                "malformed": Malformed(seq, "bad"),
                "fail": Excluded("bad"),
                "contain": Advanced(version, seq),
                "without": Advanced(version, -1),
                "offer": Offered("change", version, 1, 1),
                "encode": CompressDone("body"),
            }.get(step, step)
            if isinstance(step, str)
            else step
        )
        queue.handle(event, now)
        if isinstance(event, CompressDone) and queue.packed is not None and queue.packed.seq not in seqs:
            seqs.append(queue.packed.seq)
        for effect in effects(queue, now):
            if isinstance(effect, Settle):
                settled, busy = settled + 1, False
        assert (queue.packed is None) == (queue.state in (PushState.IDLE, PushState.PACKING))
        assert (queue.holder is None) == (queue.state not in (PushState.SENT, PushState.HELD))
        assert settled == offered - busy and queue.is_idle == (not busy)
        deadline = queue.next_deadline()
        assert deadline is None or deadline > now, "what is due is done"
    assert seqs == sorted(set(seqs))

    if busy:  # while an owner answers, it is settled in the end
        queue.handle(CompressDone("body"), now)
        queue.handle(owned_by(OWNER), now)
        for _ in range(4):
            now += RESEND_AFTER_S
            for effect in effects(queue, now):
                if isinstance(effect, SendPush | Enter):
                    queue.handle(Accepted(effect.packed.seq, version), now)
            assert queue.packed is None or queue.state in (PushState.HELD, PushState.PACKED, PushState.SENT)
        assert queue.packed is not None
        queue.handle(Advanced(version + 1, queue.packed.seq), now)
        assert Settle() in effects(queue, now)
