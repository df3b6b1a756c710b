"""Pre-train language models together across consumer machines, with no coordinator.

    import legion_p2p as legion
    opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])

Public are the names listed in `__all__` here and what docs/ describes; they load on first use, so importing the package is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Run": "legion_p2p.services.run.run",
    "Events": "legion_p2p.observe.events",
    "RunCreation": "legion_p2p.services.run.joiner",
    "LegionError": "legion_p2p.errors",
    "MuonAdamW": "legion_p2p.train.muon",
    "OneBitAdam": "legion_p2p.train.onebit",
    "Optimizer": "legion_p2p.peer",
    "PeerConfig": "legion_p2p.config",
    "Progress": "legion_p2p.services.run.progress",
    "RoundSpec": "legion_p2p.core.run",
    "RunSpec": "legion_p2p.core.run",
    "Status": "legion_p2p.observe.status",
    "average": "legion_p2p.peer",
    "open_bootstrap": "legion_p2p.bootstrap",
    "open_peer": "legion_p2p.peer",
}

__all__ = sorted([*_WHERE, "__version__", "errors"])

if TYPE_CHECKING:
    from legion_p2p import errors
    from legion_p2p.bootstrap import open_bootstrap
    from legion_p2p.config import PeerConfig
    from legion_p2p.core.run import RoundSpec, RunSpec
    from legion_p2p.errors import LegionError
    from legion_p2p.observe.events import Events
    from legion_p2p.observe.status import Status
    from legion_p2p.peer import Optimizer, open_peer
    from legion_p2p.services.run.joiner import RunCreation
    from legion_p2p.services.run.progress import Progress
    from legion_p2p.services.run.run import Run
    from legion_p2p.train.muon import MuonAdamW
    from legion_p2p.train.onebit import OneBitAdam


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("legion_p2p.errors")
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'legion_p2p' has no attribute {name!r}")
    return getattr(importlib.import_module(where), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
