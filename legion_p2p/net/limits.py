"""Everything a stranger can grow, and how far; and how long this side waits. Shared by the real network and the simulated one."""

import msgspec

from legion_p2p.core.relay_ledger import RelayLimits

MAX_CONTROL_FRAME_BYTES = 1 << 20  # announcements and plans take kilobytes; what is larger belongs on the bulk lane
MAX_BULK_FRAME_BYTES = (64 << 20) + 4096  # a shard of 16 Mi parameters in fp32, and the envelope in front of it
MAX_BODY_BYTES = {"control": MAX_CONTROL_FRAME_BYTES - 4096, "bulk": MAX_BULK_FRAME_BYTES - 4096}

MAX_REQUESTS_OUT = {"control": 64, "bulk": 8}  # in flight to one peer, of each priority on the lane; further ones wait for a slot
MAX_REQUESTS_IN = 96  # handlers running for one peer: what an honest one may send (64 + 3 * 8), and slack; further are refused
MAX_REQUESTS_IN_TOTAL = 2048  # handlers running for all peers together
MAX_BUFFERED_BYTES = 512 << 20  # of requests being received from all peers together: 8 of the largest; beyond it: refused
MAX_QUEUED_PONGS = 64  # a peer that pings without reading our answers gets no more of them
MAX_INBOUND_STREAMS = 128  # open at once from one peer, all protocols: 2 lanes, gossip, identify, and a burst of DHT queries
MAX_STREAMS_PER_LANE_IN = 4  # of one peer: 1, and 1 more for each broken one that this side has not noticed yet

MAX_CONNECTIONS = 512  # 200 peers of a run that all know each other, some twice after a simultaneous dial, and DHT queries
MAX_HANDSHAKES = 128  # inbound connections that are not authenticated yet; Noise costs some 10 ms of CPU each
HANDSHAKE_TIMEOUT_S = 15.0  # for the other side to authenticate; a loaded notebook over a slow link needs 2
OPEN_TIMEOUT_S = 15.0  # for a stream on a connection that is there; a stopped process keeps its connections and never answers

DIAL_TIMEOUT_S = 5.0  # one attempt on one address, handshake included
DIAL_STAGGER_S = 0.25  # head start of each address over the next (RFC 8305 says 250 ms)
MAX_DIALS = 8  # attempts in flight; each costs both ends some 10 ms of CPU, and many at once only make all of them late
REDIAL_PAUSE_S = 1.0  # after all addresses of a peer failed, requests to it fail at once for so long: no dial storms
DOWNLOAD_STALL_S = 15.0  # 64 KiB of what can wait must be taken within this time: a peer that does not read holds up others
FRAME_STALL_S = 30.0  # a frame that has begun must bring further bytes within so long
WRITE_STALL_S = 15.0  # the kernel must take 64 KiB within so long, or the connection counts as dead

MAX_KNOWN_PEERS = 4096  # in the address book; the ones heard of longest ago are forgotten
MAX_ADDRESSES_PER_PEER = 8  # a host with more interfaces than this has others that work
MAX_CIRCUITS_PER_PEER = 4  # relays through which one peer is known: it keeps two, and one of each may just be replaced

CIRCUIT_HEAD_START_S = 3.0  # of circuits over private addresses of other networks, which mostly lead nowhere
CIRCUIT_TIMEOUT_S = 10.0  # for a circuit: the relay asks the other side, then both authenticate; 5 round trips
CIRCUIT_STALL_S = 60.0  # a circuit must take 64 KiB within so long: a full relay passes 64 kbit/s to each, which takes 8 s
CIRCUIT_READ_S = 10.0  # for a relay's or a peer's word about a circuit
MAX_CIRCUIT_MESSAGE_BYTES = 4096  # a reservation names 8 addresses of 150 bytes
MAX_CIRCUITS_IN = 128  # connections through relays that this side has accepted; further ones are refused

SCORE_HALF_LIFE_S = 60.0  # misbehaviour counts half after this time: a bug in an honest peer does not add up over days
MAX_SCORE = 8.0  # of a peer that is not refused yet; most misbehaviour counts 1, garbage on the wire GARBAGE_SCORE
GARBAGE_SCORE = 3.0  # for what no honest version of this program can send: the third time is the last
REFUSAL_S = 120.0  # how long such a peer is refused afterwards; its identity is free, its address is not, so no longer
MAX_SCORED_PEERS = 4096  # whose misbehaviour is remembered

MAX_GOSSIP_BYTES = 64 << 10  # of one message; larger ones multiply by the mesh degree at every hop
MAX_GOSSIP_RATE_HZ = 32.0  # messages per topic from one origin; an announcement every 2 s needs 0.5
GOSSIP_BUFFER = 1024  # messages kept for a slow subscriber: 10 s of 200 peers that announce every 2 s
MAX_TOPIC_CHARS = 256

MAX_SEARCHED = 16  # keys of which it is remembered who could not be asked
MAX_UNREACHABLE = 32  # peers of which it is remembered why they could not be asked, for one key
MAX_KEYS_PROVIDED = 4096  # by this peer; a peer that owns all 64 shards of 8 runs provides 512
MAX_PROVIDER_KEYS = 32768  # held for others in the DHT, some 0.5 KiB each
MAX_PROVIDER_RECORDS = 65536  # of all keys together, some 1 KiB each with 8 addresses; libp2p's 20 of every key would be 655,360
MAX_PROVIDER_RATE = 600  # records per peer and 10 s: 512 renewed every 20 s, in bursts
MAX_KEY_CHARS = 512

MAX_WANTLIST_BYTES = 256 << 10  # of one bitswap message of a client: 4000 wants; none has reason to send us blocks
MAX_BITSWAP_WANTS = 4096  # of one client, unanswered: 1 GiB of leaves
MAX_BITSWAP_CLIENTS = 256  # whose wants are kept; others are not answered, and ask another peer
MAX_BITSWAP_SERVED = 4  # clients that are sent blocks at the same time; more only make each of them slower
MAX_BITSWAP_BATCH_BYTES = 1 << 20  # of blocks in one message, before the last one: clients take 4 MiB


class NetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What may be chosen about the network; everything else is in the constants of legion_p2p.net.limits."""

    dht_server: bool = True
    """Store and answer for others in the DHT. False: only ask. A peer that cannot be dialed should only ask."""

    provider_lifetime_s: float = 60.0
    """How long a DHT record says "this peer provides the key" without renewal. Renewed at a third of it. Longer: fewer messages,
    more dead entries to ask in vain. All peers of a network should agree."""

    replication: int = 8
    """Nodes that hold each provider record. More survive more churn; each costs a message of some 5 ms CPU per renewal."""

    redial_max_s: float = 30.0
    """Longest pause between two attempts to reach an initial peer that is down; a restarted bootstrap is found within it."""

    gossip_heartbeat_s: float = 1.0
    """Period of gossipsub's mesh repair. Shorter: quicker repair, more messages."""

    port_mapping: bool = False
    """Ask the router to forward a port to this host."""

    lan: bool = False
    """Meet the peers of the same LAN by mDNS. True: every machine on it learns that this peer is there."""

    network_key: bytes = b""
    """32 bytes that all peers of the network share; others get no answer. Empty: every peer is answered."""

    relay: RelayLimits | None = None
    """What passes through this host for peers that others cannot dial. None: it does not relay."""

    relay_unproven: bool = False
    """Relay from the start, as a bootstrap node does, and not only once others have dialed this host."""

    speed_tests: int = 0
    """Tests of bandwidth that others may make against this host in an hour, each of 4 MiB both ways at most. 0: none."""

    bulk_lanes: bool = True
    """Use TCP connections with TLS of their own for bulk, beside the libp2p connections. False: a quarter of the rate, and more
    CPU; one connection per peer."""

    def __post_init__(self) -> None:
        for name in ("provider_lifetime_s", "redial_max_s", "gossip_heartbeat_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}, must be positive")
        if self.replication < 1:
            raise ValueError(f"replication = {self.replication}, must be at least 1")
