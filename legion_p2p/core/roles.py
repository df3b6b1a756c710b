"""What a peer does for its run.

| role | trains | owns shards |
|---|---|---|
| auto | yes | where others can reach it: see core/eligible.py |
| trainer | yes | yes, however it is reached |
| client | yes | no |
| helper | no | where others can reach it; it also stands by, stores checkpoints and relays |
"""

from enum import Enum
from typing import Literal

RoleName = Literal["auto", "trainer", "client", "helper"]


class Role(Enum):
    AUTO = "auto"
    TRAINER = "trainer"
    CLIENT = "client"
    HELPER = "helper"

    @property
    def trains(self) -> bool:
        return self is not Role.HELPER
