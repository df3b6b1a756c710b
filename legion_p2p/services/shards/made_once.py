"""What updates lead to, computed once for all peers of this process that hold the same: many in a simulation, elsewhere one.

Only what somebody holds is found here again: a version is remembered as long as a peer has it, so nothing stays in memory for it.
"""

from weakref import ReferenceType, ref

from torch import Tensor

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.services.shards.replica import advance
from legion_p2p.tensor.codec import Codec

MAX_MADE = 256  # versions of shards: a few of each of the shards that a simulation has; some hundred bytes each

_Made = tuple["ReferenceType[Tensor]", bytes, float]
_made: BoundedMap[tuple[bytes, bytes, int, Codec], _Made] = BoundedMap(MAX_MADE)


def advance_once(
    base: bytes, payload_digest: bytes, reference: Tensor, payload: bytes | memoryview, codec: Codec
) -> tuple[Tensor, bytes, float]:
    """`advance`, of a reference with the digest `base` and a payload with this digest. The result is not to be changed.

    Raises: CodecError.
    """
    key = base, payload_digest, len(payload), codec
    known = _made.get(key)
    if known is not None:
        held = known[0]()
        if held is not None:
            return held, known[1], known[2]
    made, digest, norm = advance(reference, payload, codec)
    _made[key] = ref(made), digest, norm
    return made, digest, norm
