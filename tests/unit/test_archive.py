"""A run on disk: what was appended is found again, whatever happens to the process or to the disk."""

from pathlib import Path

import pytest

from legion_p2p.core.checkpoint_policy import StoredRun
from legion_p2p.core.retention import Retention
from legion_p2p.core.wire import Inclusion, decode_header, decode_request
from legion_p2p.errors import DiskFullError, QuotaError, StoreError
from legion_p2p.store import journal as journal_module
from legion_p2p.store.archive import DEFAULT_KEEP, Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import update_bytes
from legion_p2p.store.journal import Journal
from legion_p2p.tensor.flatten import digest, fp32_bytes
from legion_p2p.train.checkpoint import Checkpoint
from tests.checkpoint_of import FOUNDER, Run


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


class Peer:
    """A peer whose shards change, and its archive."""

    def __init__(self, folder: Path, keep: Retention = DEFAULT_KEEP) -> None:
        self.run = Run()
        self.folder = folder
        self.scratch = BlockStore(folder / "scratch")
        self.keep = keep
        self.archive = Archive(BlockStore(folder / "store"), FOUNDER, keep)
        self.archive.open(self.run.signed)

    def put_bases(self) -> None:
        for shard in range(self.run.plan.n_shards):
            reference = self.run.reference(shard)
            self.archive.put_base(shard, self.run.versions[shard], digest(reference), (), fp32_bytes(reference.clone()))

    def updates(self, n: int = 1):
        made = []
        if not self.run.bases:
            self.run.put_bases(self.scratch)
        for _ in range(n):
            for shard in range(self.run.plan.n_shards):
                self.run.update(self.scratch, shard)
                update = decode_request(update_bytes(self.scratch, self.run.logs[shard][-1]))
                made.append((decode_header(update.header), update))
        return made

    def again(self) -> StoredRun:
        """As after a crash: the archive opened again, from the newest checkpoint."""
        self.archive.close()
        self.archive = Archive(BlockStore(self.folder / "store"), FOUNDER, self.keep)
        newest = self.archive.find("tiny")[0]
        self.archive.open(newest.signed, newest)
        return newest

    def holds_all(self) -> bool:
        run = self.run
        return all(self.archive.holds(i, run.versions[i], digest(run.reference(i))) for i in range(run.plan.n_shards))


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def test_updates_after_the_checkpoint_are_found_in_the_journal(peer: Peer) -> None:
    peer.put_bases()
    peer.archive.append(peer.updates(2), 5)
    peer.archive.publish(5, 1, {"epoch": 1})
    later = peer.updates(3)
    peer.archive.append(later, 9, {"epoch": 2})

    peer.again()

    assert peer.holds_all() and peer.archive.last_state() == (9, {"epoch": 2})
    base, data, log, journal = peer.archive.shard(1)
    assert base.version == 0 and len(data) == 4 * peer.run.plan.size(1)
    assert len(list(log)) == 2
    assert [decode_request(message) for message in journal] == [update for header, update in later if header.shard == 1]


def test_the_next_checkpoint_takes_the_journal_in_and_names_the_one_before(peer: Peer) -> None:
    peer.put_bases()
    first = peer.archive.publish(1, 1, {})
    peer.archive.append(peer.updates(), 2)
    peer.again()
    second = peer.archive.publish(2, 2, {})

    opened = Checkpoint(peer.archive.store, second)
    assert opened.manifest.parent == str(first)
    assert [shard.equal(peer.run.reference(i)) for i, shard in enumerate(opened.shards())] == [True] * peer.run.plan.n_shards
    assert peer.again().cid == second and peer.holds_all()


def test_a_shard_appended_whole_is_found_again_and_becomes_a_base_in_the_next_checkpoint(peer: Peer) -> None:
    peer.put_bases()
    peer.archive.publish(1, 1, {})
    peer.updates(3)  # which this archive never saw
    for shard in range(peer.run.plan.n_shards):
        reference = peer.run.reference(shard)
        included = (Inclusion(FOUNDER.peer_id, 7),)
        peer.archive.append_whole(
            shard, peer.run.versions[shard], digest(reference), included, fp32_bytes(reference.clone()), salt=b"salt"
        )
    later = peer.updates()
    peer.archive.append(later, 9)

    peer.again()

    assert peer.holds_all() and peer.archive.journal_bytes > 4 * 0.8 * peer.run.plan.numel
    base, data, log, journal = peer.archive.shard(1)
    assert (base.version, base.included[0].seq, len(data), list(log)) == (3, 7, 4 * peer.run.plan.size(1), [])
    assert base.salt == b"salt"
    assert [decode_request(message) for message in journal] == [update for header, update in later if header.shard == 1]
    root = peer.archive.publish(9, 9, {})
    assert peer.archive.journal_bytes == 0
    opened = Checkpoint(peer.archive.store, root)
    assert all(shard.equal(peer.run.reference(i)) for i, shard in enumerate(opened.shards()))
    assert {base.salt for _, base in opened.states()} == {b"salt"}


def test_updates_that_do_not_lead_on_are_not_taken(peer: Peer) -> None:
    peer.put_bases()
    missed, kept = peer.updates(), peer.updates()
    peer.archive.append(kept, 2)

    assert not peer.holds_all()
    peer.put_bases()
    assert peer.holds_all()
    peer.archive.append(missed, 3)
    assert peer.holds_all()


def test_old_checkpoints_are_pruned_and_others_pins_stay(tmp_path: Path) -> None:
    peer = Peer(tmp_path, Retention(last=2, every=10))
    theirs = peer.run
    theirs.put_bases(peer.archive.store)
    imported = theirs.publish(peer.archive.store, step=3)
    for step in range(1, 24):
        peer.put_bases()
        peer.archive.publish(step, step, {})
        peer.archive.append(peer.updates(), step)

    steps = sorted(stored.manifest.step for stored in peer.archive.find("tiny"))
    assert steps == [1, 3, 10, 20, 22, 23]
    assert imported in peer.archive.store.pins() and peer.archive.kept[0] == peer.archive.newest
    for stored in peer.archive.find("tiny"):
        for _ in Checkpoint(peer.archive.store, stored.cid).shards():
            pass


def test_without_room_the_last_checkpoint_stays_whole_and_the_next_one_comes_with_room(tmp_path: Path) -> None:
    peer = Peer(tmp_path)
    peer.put_bases()
    first = peer.archive.publish(1, 1, {})
    peer.archive.append(peer.updates(), 2)
    peer.archive.store.quota_bytes = peer.archive.store.used_bytes + 3000

    with pytest.raises(QuotaError):
        peer.put_bases()
        peer.archive.publish(2, 2, {})
    for _ in Checkpoint(peer.archive.store, first).shards():
        pass
    peer.archive.store.quota_bytes = None
    peer.archive.recover()

    assert peer.holds_all()  # in the journal
    second = peer.archive.publish(2, 2, {})
    for _ in Checkpoint(peer.archive.store, second).shards():
        pass


def test_a_write_that_failed_before_the_first_checkpoint_takes_nothing_that_this_needs(tmp_path: Path) -> None:
    peer = Peer(tmp_path)
    peer.put_bases()

    peer.archive.recover()
    peer.put_bases()
    peer.archive.publish(1, 1, {})

    assert [stored.manifest.step for stored in peer.archive.find("tiny")] == [1]


def test_a_journal_ends_before_the_first_record_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "run"
    journal = Journal(path)
    places = journal.append([b"one", b"", b"three" * 100])
    assert [journal.read(at) for at in places] == [b"one", b"", b"three" * 100]
    journal.close()
    whole = path.read_bytes()

    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        journal = Journal(path)
        n_whole = sum(end <= n for end in (*places[1:], len(whole)))
        assert [record for _, record in journal.records()] == [b"one", b"", b"three" * 100][:n_whole]
        (at,) = journal.append([b"next"])
        assert journal.read(at) == b"next"
        journal.close()

    path.write_bytes(whole[:9] + b"X" + whole[10:])
    journal = Journal(path)
    assert list(journal.records()) == [] and journal.size == 0
    journal.close()


def test_a_peer_that_is_alone_does_not_forget_where_the_others_were(peer: Peer) -> None:
    me, friend, new = (FOUNDER.peer_id, ("/ip4/1.2.3.4/tcp/1",)), ("friend", ("/ip4/1.2.3.5/tcp/1",)), ("new", ())

    peer.archive.remember([me, friend])
    for _ in range(2):
        peer.archive.remember([me])
    assert peer.archive.remembered() == [me, friend]

    peer.archive.remember([me, new])
    assert peer.archive.remembered() == [me, new]


def test_a_full_disk_leaves_a_journal_as_it_was(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path / "journal" / "run")
    journal.append([b"one"])

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError):
        journal.append([b"two", b"three"])
    monkeypatch.setattr("os.fsync", lambda handle: None)

    assert [record for _, record in journal.records()] == [b"one"]
    journal.append([b"four"])
    assert [record for _, record in journal.records()] == [b"one", b"four"]
    with pytest.raises(StoreError, match="at most"):
        monkeypatch.setattr(journal_module, "MAX_RECORD_BYTES", 3)
        journal.append([b"five!"])
    journal.close()
