"""A key that all peers of a network share, and without which a peer gets no answer: Noise XXpsk0.

The key goes into the first bytes of the Noise handshake (revision 34 of the Noise specification, chapter 9, psk0), before any key
or identity is sent. Whoever does not have it learns that something listens which speaks libp2p's negotiation, and nothing else:
what it sends cannot be decrypted, so the connection is closed. Everything above runs over connections that are made so, those
through relays as well; bulk lanes are opened with tickets that travel on them.

libp2p's own private networks (the specification "pnet") encrypt the whole connection once more; py-libp2p's form of it does not
fit that of other libraries. This one fits no other library either, and costs nothing after the handshake.
"""

from collections.abc import Callable
from typing import Any, cast

from libp2p.custom_types import TProtocol
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise

from legion_p2p.net.patches import replace_attributes

KEYED_NOISE = TProtocol("/legion/noise-xxpsk0/1")  # peers with a key and peers without do not try to understand each other
PATTERN = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"


def secured(noise: Noise, network_key: bytes) -> tuple[TProtocol, Noise]:
    """What secures connections, and the protocol that it is negotiated as. `network_key`: 32 bytes, or none."""
    if not network_key:
        return NOISE, noise
    plain_pattern = cast("Callable[[], PatternXX]", noise.get_pattern)

    def get_pattern() -> PatternXX:
        pattern = plain_pattern()
        replace_attributes(pattern, protocol_name=PATTERN)
        plain_state = pattern.create_noise_state

        def create_noise_state(prologue: bytes | None = None) -> Any:
            state = plain_state(prologue)
            state.set_psks(network_key)
            return state

        replace_attributes(pattern, create_noise_state=create_noise_state)
        return pattern

    replace_attributes(noise, get_pattern=get_pattern)
    return KEYED_NOISE, noise
