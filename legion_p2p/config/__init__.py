"""What a user may set, as frozen values with their docs: `Peer` and `NewRun` from Python, the same as options of `legion-peer`.

Units are in the names. None of it loads torch, libp2p or trio.
"""

from legion_p2p.config.engine import AUTO_REGION, AUTO_WEIGHT, DEFAULT_REGION, PeerConfig, RegionLabel, Weight
from legion_p2p.config.manners import Manners
from legion_p2p.config.new_run import NewRun, new_run_of, read_new_run
from legion_p2p.config.peer import DEFAULT_LISTEN, Limits, Peer, Store
from legion_p2p.config.rounds import Inner, Rounds
from legion_p2p.config.toml import MAX_CONFIG_BYTES, read_table
from legion_p2p.config.training import RunChoice, Training

DEFAULT_BOOTSTRAP_PORT = 4710
STATUS_PORTS = range(47110, 47174)
"""Loopback ports on which peers serve their status: the first free one. `legion-ctl` looks there; no file has to tell."""
DASHBOARD_PORTS = range(47210, 47274)
"""Loopback ports on which peers and bootstrap nodes serve their page: the first free one."""

__all__ = [
    "AUTO_REGION",
    "AUTO_WEIGHT",
    "DASHBOARD_PORTS",
    "DEFAULT_BOOTSTRAP_PORT",
    "DEFAULT_LISTEN",
    "DEFAULT_REGION",
    "MAX_CONFIG_BYTES",
    "STATUS_PORTS",
    "Inner",
    "Limits",
    "Manners",
    "NewRun",
    "Peer",
    "PeerConfig",
    "RegionLabel",
    "Rounds",
    "RunChoice",
    "Store",
    "Training",
    "Weight",
    "new_run_of",
    "read_new_run",
    "read_table",
]  # fmt: skip
