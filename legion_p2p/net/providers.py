"""Which peers announced that they provide what, as this node keeps it for the DHT."""

import time

from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from legion_p2p.core.identity import PeerId
from legion_p2p.net.limits import MAX_ADDRESSES_PER_PEER, MAX_PROVIDER_KEYS, MAX_PROVIDER_RECORDS


class Providers(ProviderStore):
    """Provider records held here: bounded in number, and forgotten after our own lifetime instead of 48 hours.

    libp2p keeps at most 20 of one key. The keys are in the order in which they were first heard of.
    """

    def __init__(self, host: BasicHost, lifetime_s: float) -> None:
        super().__init__(host)
        self.lifetime_s = lifetime_s
        self.n_records = 0

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        self.restore(key, provider, time.time())

    def restore(self, key: bytes, provider: PeerInfo, at: float) -> None:
        """Hold a record that was made at `at`, in seconds since the epoch."""
        self._forget_old(key)
        n_before = len(self.providers.get(key, ()))
        if (n_before == 0 and len(self.providers) >= MAX_PROVIDER_KEYS) or self.n_records >= MAX_PROVIDER_RECORDS:
            self._drop(next(iter(self.providers)))
            n_before = len(self.providers.get(key, ()))
        super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[:MAX_ADDRESSES_PER_PEER]))
        self.n_records += len(self.providers[key]) - n_before
        record = self.providers[key].get(str(provider.peer_id))
        if record is not None:  # else libp2p has enough of this key
            record.timestamp = min(at, time.time())

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        self._forget_old(key)
        return [PeerInfo(r.peer_id, r.addresses) for r in self.providers.get(key, {}).values()]

    def remove(self, key: bytes, peer_id: ID) -> None:
        if self.providers.get(key, {}).pop(str(peer_id), None) is not None:
            self.n_records -= 1
        self._forget_old(key)

    def cleanup_expired(self) -> None:
        for key in tuple(self.providers):
            self._forget_old(key)

    def by_peer(self) -> dict[PeerId, list[tuple[bytes, float]]]:
        """Who provides which keys, and when each of them said so."""
        self.cleanup_expired()
        found: dict[PeerId, list[tuple[bytes, float]]] = {}
        for key, records in self.providers.items():
            for peer, record in records.items():
                found.setdefault(PeerId(peer), []).append((key, record.timestamp))
        return found

    def _forget_old(self, key: bytes) -> None:
        records = self.providers.get(key)
        if records is None:
            return
        oldest = time.time() - self.lifetime_s
        for peer in [peer for peer, record in records.items() if record.timestamp < oldest]:
            del records[peer]
            self.n_records -= 1
        if not records:
            del self.providers[key]

    def _drop(self, key: bytes) -> None:
        self.n_records -= len(self.providers.pop(key))
