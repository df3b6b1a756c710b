"""From a stored state to the present one: applying again the updates that were broadcast."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from legion_p2p.core.chain import LogEntry
from legion_p2p.core.evidence import open_stored_header
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import Update, decode_request
from legion_p2p.errors import DecodeError
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import advance
from legion_p2p.tensor.flatten import digest


def replay(
    run: str, spec: RunSpec, shard: int, version: int, reference: Tensor, messages: Iterable[bytes]
) -> Iterator[tuple[LogEntry, Tensor]]:
    """Each update of a shard's log, and the reference that it leads to.

    `reference` (1-D fp32) is in `version`; `messages` are encoded `Update`s in order. Of each
    it is checked that its owner signed it, that it is of this run and shard and follows on the one before, and that it ends in
    the digest that it names. Whether its owner was the owner, nobody can know later.

    Raises: DecodeError; SignatureError.
    """
    held = digest(reference)
    for message in messages:
        version += 1
        update = decode_request(message)
        if not isinstance(update, Update):
            raise DecodeError(f"a {type(update).__name__} in the log of shard {shard}, only updates belong there")
        header = open_stored_header(update.header, update.signature)
        if (header.run, header.shard, header.version, header.base_digest) != (run, shard, version, held):
            raise DecodeError(f"an update in the log of shard {shard} that does not lead from version {version - 1} to {version}")
        if header.codec not in spec.round.allowed_update_codecs():
            raise DecodeError(f"version {version} of shard {shard} is in codec {header.codec!r}, which its run does not allow")
        reference, held, _ = advance(reference, update.payload, shard_codec(spec, shard, header.codec))
        if held != header.digest:
            raise DecodeError(f"version {version} of shard {shard} is not what the update to it says")
        yield LogEntry(header, update), reference
