"""A new run that begins with a checkpoint of another one, whatever way either holds its model."""

from pathlib import Path

import msgspec
import pytest
import torch

from legion_p2p.config import Inner, NewRun
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.datasets.prepared import with_data
from legion_p2p.train.described import described, spec_of
from legion_p2p.train.origin import origin_of
from legion_p2p.train.parameters import trainable
from tests.checkpoint_of import Run, checkpointed

A_CID = "bafyreigdmqpykrgxyaxtlafqpqhzrb7qy2rh75nldvfd4tucqmqqme5yje"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Run, str, str]:
    """A run of the built-in GPT, the CID of its checkpoint, and the folder of the store that has it."""
    with BlockStore(tmp_path / "store") as store:
        run, root = checkpointed(store)
    return run, str(root), str(tmp_path / "store")


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_new_run_begins_with_the_model_and_the_weights_of_a_checkpoint(stored, sharding: str):
    run, cid, folder = stored

    spec, model = spec_of(NewRun("next", start_from=cid, sharding=sharding), ("", folder))

    assert (spec.name, spec.sharding, spec.params, spec.model) == ("next", sharding, run.spec.params, run.spec.model)
    assert torch.equal(FlatView(trainable(model.module)).snapshot(), run.flat)


def test_its_data_are_those_of_the_run_that_it_goes_on_from_unless_it_names_others(stored):
    _, cid, folder = stored
    origin = origin_of(NewRun("next", start_from=cid), (folder,))
    assert origin is not None
    before = msgspec.structs.replace(origin.spec, data="books")

    assert described(NewRun("next", start_from=cid), before).data == "books"
    assert described(NewRun("next", start_from=cid, data="mine"), before).data == "mine"
    assert described(NewRun("next", start_from=cid, inner=Inner(batch=9)), before).inner.batch == 9


def test_data_whose_tokens_mean_something_else_are_refused(stored):
    _, cid, folder = stored
    origin = origin_of(NewRun("next", start_from=cid), (folder,))
    assert origin is not None

    with pytest.raises(ConfigError, match="was trained with those of bytes"):
        described(NewRun("next", start_from=cid, dataset=A_CID, tokenizer=A_CID), origin.spec)
    with pytest.raises(ConfigError, match="have the tokens of bytes"):
        described(NewRun("next", start_from=cid, data="mine"), msgspec.structs.replace(origin.spec, tokenizer=A_CID))


def test_text_of_its_own_with_the_same_tokens_takes_the_place_of_the_prepared_data(stored):
    _, cid, folder = stored
    origin = origin_of(NewRun("next", start_from=cid), (folder,))
    assert origin is not None
    before = msgspec.structs.replace(origin.spec, dataset=A_CID, tokenizer=A_CID)

    spec = described(NewRun("next", start_from=cid, data="stream", tokenizer=A_CID), before)

    assert (spec.data, spec.dataset, spec.tokenizer) == ("stream", "", A_CID)


def test_a_checkpoint_that_no_store_has_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match=rf"no checkpoint {A_CID} in .*nowhere.*legion-ctl checkpoint fetch"):
        origin_of(NewRun("next", start_from=A_CID), (str(tmp_path / "nowhere"),))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"start_from": "not-a-cid"}, "is not a CID"),
        ({"start_from": 7}, "the CID of a checkpoint"),
        ({"start_from": A_CID, "preset": "xxs"}, "name no preset"),
        ({"start_from": A_CID, "model": {"n_layer": 2}}, "name no preset"),
    ],
)
def test_what_cannot_be_started_from_is_refused(fields: dict, told: str):
    with pytest.raises(UsageError, match=told):
        NewRun("next", **fields)


def test_a_cid_may_be_pasted_as_a_link():
    assert NewRun("next", start_from=f"ipfs://{A_CID}").start_from == A_CID


def test_data_without_a_preset_leave_the_model_alone(tmp_path: Path):
    new_run = NewRun("next", start_from=A_CID)

    assert with_data(new_run, "stdlib") == new_run
