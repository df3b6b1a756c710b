"""The checkpoint of another run that a new run begins with: its model, its data, and the weights.

How a run holds its model, and how its members average, is the new run's own: so what a sharded run has trained goes on in one
whose members hold it whole, and the other way round.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from legion_p2p.config import NewRun
from legion_p2p.core.cids import Cid
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import ConfigError, DecodeError, MissingBlockError, StoreError
from legion_p2p.files.paths import shown, user_data_folder, user_path
from legion_p2p.store.blocks import BlockStore
from legion_p2p.train.checkpoint import Checkpoint
from legion_p2p.train.parameters import Named


class Origin:
    """A checkpoint in one of this user's stores."""

    def __init__(self, cid: Cid, folder: Path) -> None:
        """Raises: MissingBlockError, if it is not there; StoreError, DecodeError, SignatureError, if it is damaged."""
        self.cid = cid
        self._folder = folder
        with BlockStore(folder, read_only=True) as store:
            self.spec = Checkpoint(store, cid).spec

    @torch.no_grad()
    def fill(self, parameters: Named) -> None:
        """Put its weights into the parameters of a model that fits: in the run's order, of the run's shapes.

        Raises: MissingBlockError, DecodeError, SignatureError, where something of it lacks or is damaged.
        """
        with BlockStore(self._folder, read_only=True) as store:
            for (_, own), (_, value) in zip(parameters, Checkpoint(store, self.cid).parameters(), strict=True):
                own.copy_(value)


def origin_of(new_run: NewRun, stores: Sequence[str]) -> Origin | None:
    """What a new run begins with; None, where it begins with new weights. `stores`: folders to look in, first to last.

    Raises: ConfigError, where it is in none of them, or what is asked for is not what it has; StoreError.
    """
    if not new_run.start_from:
        return None
    cid = Cid.parse(new_run.start_from)
    folders = [user_path(folder) for folder in stores if folder] + [user_data_folder() / "store"]
    for folder in dict.fromkeys(folders):
        try:
            return Origin(cid, folder)
        except MissingBlockError:
            continue
        except (StoreError, DecodeError):
            if folder.exists():
                raise
            continue
    looked = ", ".join(shown(folder) for folder in dict.fromkeys(folders))
    raise ConfigError(
        f"start_from: no checkpoint {cid} in {looked}; legion-ctl checkpoint list shows those of a store, and "
        f"legion-ctl checkpoint fetch {cid} gets one from the members of its run"
    )


def with_origin(new_run: NewRun, spec: RunSpec) -> NewRun:
    """The new run with the data of the run that it goes on from, where it names none of its own.

    Raises: ConfigError, where the tokens of its own data mean something else.
    """
    if not new_run.dataset and not new_run.data:
        return msgspec.structs.replace(new_run, data=spec.data, dataset=spec.dataset, tokenizer=spec.tokenizer)
    if new_run.tokenizer != spec.tokenizer:
        ours, theirs = (name or "bytes" for name in (new_run.tokenizer, spec.tokenizer))
        raise ConfigError(
            f"tokenizer: the data have the tokens of {ours}, and the checkpoint was trained with those of {theirs}; prepare the "
            "text with the tokenizer of the checkpoint's run"
        )
    return new_run
