"""When a shard is stored whole, whom to ask for blocks, and what a newcomer's pushes count."""

from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.checkpoint_policy import (
    LOG_PER_BASE,
    MIN_JOURNAL_BYTES,
    is_base_version,
    most_journal_bytes,
    versions_between_bases,
)
from legion_p2p.core.cids import Cid
from legion_p2p.core.download import Download
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import ramped_weight

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def cid(i: int) -> Cid:
    return Cid.of(i.to_bytes(4, "big"))


def test_every_shard_has_its_turn_once_in_so_many_versions() -> None:
    for n_shards in (1, 3, 16, 64):
        turns = [[v for v in range(1, 21) if is_base_version(shard, n_shards, v, 10)] for shard in range(n_shards)]
        assert all(len(versions) == 2 and versions[1] - versions[0] == 10 for versions in turns)
    assert {is_base_version(0, 1, version, 1) for version in range(5)} == {True}


def test_the_denser_the_updates_the_sooner_a_base() -> None:
    assert [versions_between_bases(bits, 100) for bits in (32, 8, 4, 0.3)] == [4, 16, 32, 100]
    assert versions_between_bases(1000, 100) == 1


def test_a_newcomers_pushes_count_more_and_more() -> None:
    assert [ramped_weight(100, n, 4) for n in range(7)] == [20, 40, 60, 80, 100, 100, 100]
    assert [ramped_weight(100, n, 0) for n in range(3)] == [100, 100, 100]
    assert ramped_weight(1, 0, 4) == 1


def test_the_rarest_blocks_are_asked_for_first_and_nothing_twice() -> None:
    wanted = [cid(i) for i in range(4)]
    download = Download(wanted)
    download.offers(A, wanted)
    download.offers(B, wanted[:3])
    download.offers(C, wanted[:1])

    assert download.next_batch(A, 1) == (wanted[3],)
    rest = {*download.next_batch(A, 2), *download.next_batch(B, 4)}
    assert rest == set(wanted[:3])
    assert download.next_batch(C, 1) == ()


def test_what_one_does_not_send_is_asked_of_another() -> None:
    wanted = [cid(i) for i in range(3)]
    download = Download(wanted)
    download.offers(A, wanted)
    download.offers(B, wanted)
    batch = download.next_batch(A, 3)
    assert download.next_batch(B, 3) == ()

    download.lacks(A, batch[:1])
    assert download.next_batch(B, 3) == batch[:1] and download.next_batch(A, 3) == ()
    download.drop(A)
    download.offers(A, wanted)
    assert set(download.next_batch(B, 3)) == set(batch[1:])
    download.drop(B)

    assert download.unobtainable() == set(wanted) and download.providers() == ()


@settings(max_examples=30)
@given(st.data())
def test_a_download_ends_whatever_providers_do(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    wanted = [cid(i) for i in range(n)]
    download = Download(wanted)
    peers = [A, B, C]
    for peer in peers:
        download.offers(peer, data.draw(st.lists(st.sampled_from(wanted), unique=True)))
    asked_of: dict[Cid, PeerId] = {}
    for _ in range(40):
        peer = data.draw(st.sampled_from(peers))
        for one in download.next_batch(peer, 3):
            assert one not in asked_of
            asked_of[one] = peer
        mine = [one for one, of in asked_of.items() if of == peer]
        match data.draw(st.sampled_from(["arrives", "lacks", "fails", "waits"])):
            case "arrives":
                for one in mine:
                    download.arrived(one)
            case "lacks":
                download.lacks(peer, mine)
            case "fails":
                download.release(peer, mine)
            case _:
                continue
        for one in mine:
            del asked_of[one]
    for one in list(asked_of):
        download.arrived(one)
    for peer in peers:
        for one in download.next_batch(peer, n):
            download.arrived(one)
    assert download.missing() == download.unobtainable()


def test_a_journal_is_made_a_checkpoint_of_when_it_outweighs_the_weights_and_small_ones_are_left_alone() -> None:
    assert most_journal_bytes(100) == MIN_JOURNAL_BYTES
    assert most_journal_bytes(100_000_000) == 4 * LOG_PER_BASE * 100_000_000
