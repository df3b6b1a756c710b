"""Which codec a run uses on which shard."""

from legion_p2p.core.plan import dense_ranges
from legion_p2p.core.run import RunSpec
from legion_p2p.tensor import codec
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.mixed import for_shard


def shard_codec(spec: RunSpec, shard: int, name: str) -> Codec:
    """The codec of that name as it is used on this shard: small and one-dimensional tensors dense. Raises: CodecError."""
    plan = spec.plan()
    dense = codec.get(spec.round.dense_codec) if spec.round.dense_codec else None
    return for_shard(codec.get(name), dense, dense_ranges(spec.params, plan, shard, spec.round.dense_below), plan.size(shard))
