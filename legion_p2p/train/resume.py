"""Where a trainer is in its text and its random numbers, as checkpoints keep it."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError
from legion_p2p.observe.events import Events
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.train.sharing import TextReader

MAX_DATA_BYTES = 40 << 10  # of the 64 KiB that a checkpoint has for all of the state; beyond it open chunks are left unfinished


def training_state(me: PeerId, data: TextReader) -> dict[str, Any]:
    """What `restore_state` needs. May be called while another thread reads batches."""
    state = data.state_dict()
    packed = msgspec.msgpack.encode(state)
    if len(packed) > MAX_DATA_BYTES:
        packed = msgspec.msgpack.encode({**state, "open_chunks": []})  # of prepared text: a stream has few that are open
    rng = torch.get_rng_state().numpy().tobytes()
    return {"peer": me, "epoch": state["ledger"]["epoch"], "data": packed, "torch_rng": rng}


def restore_state(state: Mapping[str, Any], me: PeerId, data: TextReader) -> None:
    """Go on where `me` was; from a checkpoint of another peer, with what neither that one nor those around it had read.

    Raises: DecodeError, if it is no such state, or of another text.
    """
    packed, rng = state.get("data"), state.get("torch_rng")
    if not isinstance(packed, bytes):
        raise DecodeError("the checkpoint does not say where in the text the trainer was")
    try:
        position = msgspec.msgpack.decode(packed)
    except msgspec.DecodeError as bad:
        raise DecodeError(f"the checkpoint's position in the text: {bad}") from bad
    if state.get("peer") != me:
        data.follow(position)
        return
    data.load_state_dict(position)
    if isinstance(rng, bytes) and len(rng) == torch.get_rng_state().numel():
        torch.set_rng_state(torch.frombuffer(bytearray(rng), dtype=torch.uint8))


def read_on(engine: ActiveRun, data: TextReader, events: Events) -> Callable[[], dict[str, Any]]:
    """Read on where this peer stopped, if it resumes. What checkpoints keep of the trainer from now on."""
    if engine.restored is not None:
        try:
            restore_state(engine.restored.state, engine.me, data)
        except DecodeError as bad:
            events.emit("data.begins_anew", reason=str(bad))
    return lambda: training_state(engine.me, data)
