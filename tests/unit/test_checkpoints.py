"""Checkpoints in a store: what was put comes back, what does not fit together is refused, and the log is what is new."""

from pathlib import Path

import msgspec
import pytest

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import MAX_LEAF_BYTES
from legion_p2p.core.run import run_id
from legion_p2p.errors import DecodeError, MissingBlockError, SignatureError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoint_summary import blocks_of, damage_of
from legion_p2p.store.checkpoints import (
    base_bytes,
    find_manifests,
    get_base,
    get_manifest,
    get_shard,
    get_shards,
    get_spec,
    put_base,
    put_node,
    put_update,
    update_bytes,
)
from tests.checkpoint_of import FOUNDER, Run, checkpointed


@pytest.fixture
def store(tmp_path: Path):
    with BlockStore(tmp_path / "store") as made:
        yield made


def test_a_checkpoint_gives_back_the_run_its_shards_and_its_updates(store: BlockStore) -> None:
    run, root = checkpointed(store, n_updates=0)
    manifest = get_manifest(store, root)

    signed, spec = get_spec(store, manifest)
    assert (signed, spec) == (run.signed, run.spec) and str(manifest.run) == run_id(run.signed)
    states = list(get_shards(store, manifest, run.plan))
    assert [base_bytes(store, base, run.plan.size(state.shard)) for state, base in states] == [
        run.reference(shard).numpy().tobytes() for shard in range(run.plan.n_shards)
    ]
    assert states[0][1].included[0].seq == 4


def test_a_base_of_several_leaves_comes_back(store: BlockStore) -> None:
    data = bytes(range(256)) * 3000
    base = get_base(store, put_base(store, 7, [], data))

    assert len(base.leaves) == 3 and base.version == 7
    assert base_bytes(store, base, len(data) // 4) == data
    for n in (len(data) // 4 - 1, len(data) // 4 + 1, 1):
        with pytest.raises(DecodeError):
            base_bytes(store, base, n)


def test_a_large_update_is_cut_and_put_together_again(store: BlockStore) -> None:
    message = bytes(range(256)) * 5000
    leaves = put_update(store, message)

    assert len(leaves) == 3 and all((store.size_of(leaf) or 0) <= MAX_LEAF_BYTES for leaf in leaves)
    assert update_bytes(store, leaves) == message


def test_an_incremental_checkpoint_adds_the_log_and_shares_the_rest(store: BlockStore) -> None:
    run, first = checkpointed(store, n_updates=1)
    before = set(store)
    run.update(store, 2)
    second = run.publish(store, 20, str(first))

    added = set(store) - before
    assert len(added) == 3  # the update, the state of its shard, the manifest
    old, new = get_manifest(store, first), get_manifest(store, second)
    assert [i for i, (a, b) in enumerate(zip(old.shards, new.shards, strict=True)) if a != b] == [2]
    assert get_shard(store, old.shards[2]).base == get_shard(store, new.shards[2]).base


def test_a_pinned_checkpoint_survives_a_collection_and_needs_no_earlier_one(store: BlockStore) -> None:
    run, first = checkpointed(store)
    run.put_bases(store)
    second = run.publish(store, 20, str(first))

    store.unpin(first)
    n_removed, _ = store.collect()

    assert n_removed > run.plan.n_shards and first not in store
    list(store.walk(second))


def missing_of(store: BlockStore, root: Cid) -> list[Cid]:
    """Blocks of a checkpoint that are known to be needed and are not here. A node that comes in may lead to more."""
    missing: list[Cid] = []
    for _ in store.walk(root, on_missing=lambda lacking: missing.append(Cid.parse(lacking.cid))):
        pass
    return missing


def test_what_is_missing_leads_from_the_manifest_to_the_last_leaf(store: BlockStore, tmp_path: Path) -> None:
    _, root = checkpointed(store)
    rounds = 0
    with BlockStore(tmp_path / "fetching") as other:
        while missing := missing_of(other, root):
            rounds += 1
            other.put_all((cid, store.get(cid)) for cid in missing)

        assert set(other) == set(blocks_of(store, root)) and rounds == 4  # manifest; shards; bases and updates; leaves
        assert damage_of(other, root, lambda n: None) == []


def test_manifests_are_found_the_newest_first_and_forged_ones_are_not(store: BlockStore) -> None:
    run, first = checkpointed(store)
    second = run.publish(store, 20)
    forged = put_node(store, msgspec.structs.replace(get_manifest(store, second), step=99))

    assert list(find_manifests(store)) == [second, first]
    with pytest.raises(SignatureError):
        get_manifest(store, forged)


def test_parts_that_do_not_fit_together_are_refused(store: BlockStore) -> None:
    run, root = checkpointed(store)
    manifest = get_manifest(store, root)
    swapped = msgspec.structs.replace(manifest, shards=manifest.shards[::-1])
    short = msgspec.structs.replace(manifest, shards=manifest.shards[1:])
    state = msgspec.structs.replace(get_shard(store, manifest.shards[0]), version=9)
    wrong_version = msgspec.structs.replace(manifest, shards=(put_node(store, state), *manifest.shards[1:]))

    for bad in (swapped, short, wrong_version):
        with pytest.raises(DecodeError):
            list(get_shards(store, bad, run.plan))


def test_leaves_that_are_not_what_the_base_says_are_refused(store: BlockStore) -> None:
    run = Run()
    run.put_bases(store)
    one, other = get_base(store, run.bases[0]), get_base(store, run.bases[1])

    with pytest.raises(DecodeError, match="digest"):
        base_bytes(store, msgspec.structs.replace(one, leaves=other.leaves), run.plan.size(0))


def test_a_specification_of_another_run_is_refused(store: BlockStore) -> None:
    _, root = checkpointed(store)
    manifest = msgspec.structs.replace(get_manifest(store, root), run_signature=FOUNDER.sign(b"other"))

    with pytest.raises(SignatureError):
        get_spec(store, manifest)


def test_a_name_of_raw_bytes_is_no_node_and_a_missing_one_is_missing(store: BlockStore) -> None:
    with pytest.raises(DecodeError, match="raw bytes"):
        get_manifest(store, store.put(b"raw"))
    with pytest.raises(MissingBlockError):
        get_manifest(store, Cid.of(b"nothing", DAG_CBOR))
