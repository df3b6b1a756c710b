"""Which peers of a simulated world are recorded as providers of a key, as the DHT would record them."""

import trio

from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId

PROVIDER_LIFETIME_S = 60.0


class ProviderRecords:
    """The provider records of a world. They expire unless they are stored again."""

    def __init__(self) -> None:
        self._of_key: dict[str, dict[PeerId, tuple[float, tuple[str, ...]]]] = {}

    def store(self, key: str, peer: PeerId, address: str) -> None:
        """`peer` provides the key, and is found at this address."""
        self._of_key.setdefault(key, {})[peer] = (trio.current_time() + PROVIDER_LIFETIME_S, (address,))

    def of(self, key: str) -> list[Contact]:
        """The peers that are said to provide the key, also those that no longer do."""
        records = self._of_key.get(key, {})
        now = trio.current_time()
        for peer in [peer for peer, (until, _) in records.items() if until < now]:
            del records[peer]
        return [Contact(peer, addresses) for peer, (_, addresses) in sorted(records.items())]
