"""libp2p's host and swarm, with what this project leaves out of them."""

from libp2p import generate_peer_id_from, new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux

from legion_p2p.core.identity import Identity
from legion_p2p.net.limits import HANDSHAKE_TIMEOUT_S, MAX_CONNECTIONS
from legion_p2p.net.listening import Listening
from legion_p2p.net.network_key import secured
from legion_p2p.net.patches import replace_attributes
from legion_p2p.net.transport import Transport

NEGOTIATION_TIMEOUT_S = 15.0  # for a stream's protocol: giving up early on a busy machine only adds to its work


def make_host(
    identity: Identity, transport: Transport, listening: Listening, peerstore: PeerStore, network_key: bytes = b""
) -> BasicHost:
    key_pair = create_new_key_pair(identity.seed)
    assert str(generate_peer_id_from(key_pair)) == identity.peer_id
    protocol, noise = secured(Noise(key_pair, noise_privkey=create_noise_key_pair().private_key), network_key)
    host = new_host(
        key_pair=key_pair,
        # Noise and yamux only: the default also offers plaintext
        sec_opt={protocol: noise},
        muxer_opt={TProtocol(YAMUX): Yamux},
        peerstore_opt=peerstore,
        transports=[transport],
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            # no dialing unasked
            min_connections=0,
            low_watermark=0,
            inbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            outbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            outbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_S,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_S,
        ),
    )
    assert isinstance(host, BasicHost)
    replace_attributes(host, get_addrs=lambda: listening.multiaddrs(identity.peer_id))
    swarm = swarm_of(host)
    swarm.retry_config = RetryConfig(max_retries=0)
    # limits per IP address and per minute that a fleet behind one NAT exceeds, and that leak; ours are in legion_p2p.net.limits
    swarm.set_resource_manager(None)
    return host


def swarm_of(host: BasicHost) -> Swarm:
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)  # what `new_host` makes where no QUIC is asked for
    return swarm
