"""Former names and what replaced them: a caller that uses an old one is told the new one."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from legion_p2p.core.round_spec import RENAMED_ROUND_FIELDS, RoundSpec
from legion_p2p.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_PEER = MappingProxyType({
    "identity": "peer=Peer(identity=...)",
    "listen": "peer=Peer(listen=...)",
    "announce": "peer=Peer(announce=...)",
    "config": "peer=Peer(region=..., weight=...)",
    "region": "peer=Peer(region=...)",
    "weight": "peer=Peer(weight=...)",
    "volunteer_relay": "peer=Peer(volunteer_relay=...)",
    "netem": "peer=Peer(limits=Limits(netem=...))",
    "upload": "peer=Peer(limits=Limits(upload=...))",
    "upload_limit": "peer=Peer(limits=Limits(upload=...))",
    "download": "peer=Peer(limits=Limits(download=...))",
    "download_limit": "peer=Peer(limits=Limits(download=...))",
    "quiet_hours": "peer=Peer(limits=Limits(quiet_hours=...))",
    "events": "peer=Peer(on_event=...)",
    "status": "peer=Peer(status=...)",
    "search_s": "peer=Peer(search_s=...)",
    "store": "peer=Peer(store=Store(...))",
    "store_limit_bytes": "peer=Peer(store=Store(max_gb=...))",
    "keep": "peer=Peer(store=Store(keep=...))",
})  # fmt: skip

AVERAGE_ARGUMENTS = MappingProxyType({**_PEER, "new_run": 'run=NewRun("name")'})
"""Arguments that `average` once had."""

OPTIMIZER_ARGUMENTS = MappingProxyType({
    **_PEER,
    "new_run": 'run=NewRun("name")',
    "founding": 'run=NewRun("name")',
    "links": 'run=NewRun("name", links=...)',
    "seed": 'run=NewRun("name", seed=...)',
    **{field: f'run=NewRun("name", rounds=Rounds({field}=...))' for field in RoundSpec.__struct_fields__},
    **{old: f'run=NewRun("name", rounds=Rounds({new}=...))' for old, new in RENAMED_ROUND_FIELDS.items()},
})  # fmt: skip
"""Arguments that `Optimizer` once had."""

SPEC_KEYS = MappingProxyType({"round": "rounds", **RENAMED_ROUND_FIELDS})
"""Tables of SPEC.toml, and keys in them."""

FLAGS = MappingProxyType({
    "--store-limit": "--store-max-gb",
    "--eval-every": "--eval-every-s",
    "--checkpoint-every": "--checkpoint-every-s",
    **{f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in RENAMED_ROUND_FIELDS.items()},
})  # fmt: skip
"""Options of `legion-peer`."""

NAMES = MappingProxyType({
    "Events": "Peer(on_event=...) and Run.events",
    "Engine": "Run, as join and create return it",
    "PeerConfig": "Peer",
    "Progress": "the fields of Status",
    "RoundSpec": "Rounds",
    "RunCreation": "NewRun",
    "open_peer": "aio.join and aio.create",
})  # fmt: skip
"""What could be imported from `legion_p2p`."""


def explains(renamed: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a public function: an argument that it does not have is a UsageError, which names the one that is meant."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    raise UsageError(f"{called}({name}=...): {_meant(name, known, renamed)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _meant(name: str, known: list[str], renamed: Mapping[str, str]) -> str:
    if name in renamed:
        return f"write {renamed[name]} instead"
    near = difflib.get_close_matches(name, [*known, *renamed], n=1)
    if near and near[0] in renamed:
        return f"write {renamed[near[0]]} instead"
    return (
        f"there is no such argument; did you mean {near[0]}?"
        if near
        else f"there is no such argument; known are {', '.join(known)}"
    )
