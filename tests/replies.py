"""Reading what a peer answers, where the test sent bytes and no typed request."""

from legion_p2p.core.wire import REQUESTS, Message, decode_with, decoder_of, reply_types

REPLIES = tuple(dict.fromkeys(reply for kind in REQUESTS for reply in reply_types(kind)))
"""Everything that answers a request of the protocol."""


def decode_reply(data: bytes) -> Message:
    """Any reply. Raises: DecodeError."""
    return decode_with(decoder_of(REPLIES), data, "reply")
