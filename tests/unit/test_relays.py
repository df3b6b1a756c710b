"""Who meets other regions for a shard."""

import msgspec
import pytest

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.relays import MIN_GAIN, representative_of, represented_share


def member(name: str, upload_bps: float = 0.0, relay: bool = False, weight: float = 1.0, ready: bool = True) -> Announcement:
    return Announcement(name, "run", region="west", upload_bps=upload_bps, relay=relay, weight=weight, ready=ready)


OWNER = member("owner", 1e6)
OTHER = member("other", 50e6)
BIG, BIGGER = member("big", 100e6, relay=True), member("bigger", 800e6, relay=True, weight=0.0)


def representatives(owner: Announcement, *others: Announcement) -> list[str]:
    return [representative_of("run", shard, owner, [owner, *others]) for shard in range(200)]


def test_without_volunteers_or_measurements_every_owner_speaks_for_itself() -> None:
    assert set(representatives(OWNER, OTHER)) == {"owner"}
    assert set(representatives(member("owner"), BIG)) == {"owner"}
    assert set(representatives(OWNER, member("new", relay=True))) == {"owner"}
    assert set(representatives(OWNER, member("joining", 1e9, relay=True, ready=False))) == {"owner"}


def test_volunteers_speak_for_owners_with_little_upload_by_what_they_have() -> None:
    chosen = representatives(OWNER, OTHER, BIG, BIGGER)

    assert set(chosen) == {"big", "bigger"}
    assert chosen.count("bigger") > 4 * chosen.count("big") > 0
    assert set(representatives(OTHER, OWNER, BIG)) == {"other"}  # twice as much is too little gain
    assert set(representatives(BIG, BIGGER)) == {"big"}  # who has volunteered needs nobody


def test_one_that_comes_takes_over_only_its_own_share() -> None:
    before, after = representatives(OWNER, BIGGER), representatives(OWNER, BIGGER, BIG)

    assert all(now in (then, "big") for then, now in zip(before, after, strict=True))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_measurement_that_wavers_changes_nothing(factor: float) -> None:
    wavering = msgspec.structs.replace(BIG, upload_bps=factor * BIG.upload_bps)

    assert representatives(OWNER, wavering, BIGGER) == representatives(OWNER, BIG, BIGGER)
    assert set(representatives(OWNER, member("little", 2 * MIN_GAIN * 1e6 * factor, relay=True))) == {"little"}


def test_the_shares_that_all_speak_for_come_to_one() -> None:
    members = [OWNER, OTHER, BIG, BIGGER, member("third", 2e6, weight=3.0)]
    weights = {peer_of(a): a.weight for a in members}
    shares = {peer_of(a): represented_share(peer_of(a), members, weights) for a in members}

    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == pytest.approx({"owner": 0.0, "third": 0.0, "other": 0.0, "big": 1 / 2, "bigger": 1 / 2})
    assert represented_share(peer_of(OWNER), [OWNER, OTHER], {peer_of(a): a.weight for a in (OWNER, OTHER)}) == 0.5
    assert represented_share(peer_of(OWNER), [], {}) == 0.0
