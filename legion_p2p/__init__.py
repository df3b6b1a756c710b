"""Pre-train language models together across consumer machines, with no coordinator.

    import legion_p2p as legion
    opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])

Public are the names listed in `__all__` here and what docs/ describes; they load on first use, so importing the package is cheap.
`legion_p2p.aio` is the same for code under trio.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "AverageResult": "legion_p2p.train.averaging",
    "Event": "legion_p2p.observe.events",
    "Identity": "legion_p2p.core.identity",
    "Inner": "legion_p2p.config",
    "LegionError": "legion_p2p.errors",
    "Limits": "legion_p2p.config",
    "Manners": "legion_p2p.config",
    "MemberStatus": "legion_p2p.observe.status",
    "MuonAdamW": "legion_p2p.train.muon",
    "NewRun": "legion_p2p.config",
    "OneBitAdam": "legion_p2p.train.onebit",
    "Optimizer": "legion_p2p.train.optimizer",
    "Peer": "legion_p2p.config",
    "Rounds": "legion_p2p.config",
    "Run": "legion_p2p.train.run",
    "RunSpec": "legion_p2p.core.run",
    "ShardedModel": "legion_p2p.train.sharding.model",
    "Status": "legion_p2p.observe.status",
    "Store": "legion_p2p.config",
    "average": "legion_p2p.train.averaging",
    "create": "legion_p2p.train.run",
    "join": "legion_p2p.train.run",
    "open_bootstrap": "legion_p2p.bootstrap",
}

_MODULES = ("aio", "errors")

__all__ = sorted([*_WHERE, *_MODULES, "__version__"])

if TYPE_CHECKING:
    from legion_p2p import aio, errors
    from legion_p2p.bootstrap import open_bootstrap
    from legion_p2p.config import Inner, Limits, Manners, NewRun, Peer, Rounds, Store
    from legion_p2p.core.identity import Identity
    from legion_p2p.core.run import RunSpec
    from legion_p2p.errors import LegionError
    from legion_p2p.observe.events import Event
    from legion_p2p.observe.status import MemberStatus, Status
    from legion_p2p.train.averaging import AverageResult, average
    from legion_p2p.train.muon import MuonAdamW
    from legion_p2p.train.onebit import OneBitAdam
    from legion_p2p.train.optimizer import Optimizer
    from legion_p2p.train.run import Run, create, join
    from legion_p2p.train.sharding.model import ShardedModel


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"legion_p2p.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    from legion_p2p.config.old_names import NAMES

    instead = f"; its place was taken by {NAMES[name]}" if name in NAMES else ""
    raise AttributeError(f"module 'legion_p2p' has no attribute {name!r}{instead}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
