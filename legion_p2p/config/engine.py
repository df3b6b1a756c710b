"""What the services of a peer are set to. People set it by way of `Peer`."""

import re
from typing import Annotated, Literal

import msgspec

from legion_p2p.core.caps import NO_CAPS, Caps
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.manners import ConditionsConfig
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.privacy import Privacy
from legion_p2p.core.roles import Role
from legion_p2p.core.round import RoundConfig

AUTO_REGION = "auto"
DEFAULT_REGION = "home"
MAX_REGION_CHARS = 64
_REGION = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_REGION_CHARS - 1}}}"
REGION_FORM = re.compile(_REGION)
RegionLabel = Annotated[str, msgspec.Meta(pattern=rf"^{_REGION}\Z")]

AUTO_WEIGHT = "auto"
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e9)] | Literal["auto"]


class PeerConfig(msgspec.Struct, frozen=True):
    """How a peer's services behave, whatever it trains."""

    membership: MembershipConfig = MembershipConfig()
    rounds: RoundConfig = RoundConfig()
    region: RegionLabel = DEFAULT_REGION
    """Label of the region, or AUTO_REGION: found by latency. All members of one region average with each other."""
    weight: Weight = 1.0
    """Share of the shards to own, relative to others; AUTO_WEIGHT: by its measured upload, smoothed."""
    role: Role = Role.AUTO
    volunteer_relay: bool = False
    """Sync with other regions on behalf of owners of this one that have little upload: see core.relays."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    token: bytes = b""
    """What admits it, where the run admits peers by token: see core.admission."""
    caps: Caps = NO_CAPS
    """Limits on its traffic as it starts; its user may change them."""
    max_cpu: float | None = None
    """Share of the machine's processors that the process may take as it starts; None: no limit."""
    offload: bool = False
    """Hold on the disk what a round needs once."""
    privacy: Privacy | None = None
    """What is done to changes before they are pushed; None: nothing."""
    manners: ConditionsConfig = ConditionsConfig()
    """When it may train."""
