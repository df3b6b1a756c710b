"""`Manners`: when a peer may train, and what it may take of the machine."""

from typing import Annotated, Literal

import msgspec

from legion_p2p.config.fields import settle
from legion_p2p.config.forms import Switch, checked_text
from legion_p2p.core.control import MAX_CPU_FORM, parse_cpu
from legion_p2p.core.manners import ConditionsConfig
from legion_p2p.core.units import SIZE_FORM, parse_size

Size = Annotated[str, checked_text(SIZE_FORM, parse_size)]


class Manners(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """When a peer trains, and what it takes of the machine. A condition that does not hold pauses it."""

    when: Literal["always", "idle"] = "always"
    """When to train. idle: only while nobody uses the machine: two minutes without input, where that can be known, and other
    programs take little of the processors."""

    on_battery: Switch = True
    """Train on battery as well; no: pause until the machine is plugged in."""

    max_cpu: Annotated[str, checked_text(MAX_CPU_FORM, parse_cpu)] = ""
    """Share of the machine's processors that the peer may take, such as 50%. Less: slower steps. Empty: no limit."""

    max_temperature: Annotated[float, msgspec.Meta(ge=0, le=150)] = 0.0
    """Pause while a sensor of the machine shows more degrees Celsius; 0: no limit. Where there is no sensor, it has no effect."""

    max_memory: Size = ""
    """Pause while the peer has more memory than that, such as 8gb. Empty: no limit."""

    monthly: Size = ""
    """Traffic of a month, both ways, such as 100gb; the local network is not counted. When it is used up, the peer pauses
    and keeps to 256 kbit/s until the month is over. It is counted over restarts where the identity is a file."""

    priority: Literal["low", "normal"] = "low"
    """Of the threads that train, for the operating system. low: other programs go first."""

    def __post_init__(self) -> None:
        settle(self)

    def conditions(self) -> ConditionsConfig:
        """What the services look at."""
        return ConditionsConfig(
            only_idle=self.when == "idle",
            on_battery=self.on_battery,
            max_temperature_c=self.max_temperature or None,
            max_memory_bytes=parse_size(self.max_memory) if self.max_memory else None,
            monthly_bytes=parse_size(self.monthly) if self.monthly else None,
        )
