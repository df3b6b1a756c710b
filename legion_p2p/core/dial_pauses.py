"""How often an address that does not answer is dialed, whoever names it.

A member may announce the address of a machine outside the run, and every other member would dial it. So a host that does not
answer is not dialed for a while, longer each time, whichever peer claims to be there. A host that answers as the expected peer
may be dialed again at once.

Can never happen: more than FREE_FAILURES dials of a host that fails, and one for each pause after that; a pause for a host that
answered.
"""

from legion_p2p.core.bounded import BoundedMap

FREE_FAILURES = 4  # in a row without a pause: a peer that starts again is found at once, and one may have several ports
FIRST_PAUSE_S = 2.0  # doubled with each further failure
MAX_PAUSE_S = 60.0
FORGET_S = 600.0  # without a dial: then all is as before
MAX_HOSTS = 2048  # that are remembered


class DialPauses:
    """The hosts that failed lately."""

    def __init__(self) -> None:
        self._failed: BoundedMap[str, tuple[int, float]] = BoundedMap(MAX_HOSTS)  # host -> (failures in a row, when the last)

    def allows(self, host: str, now: float) -> bool:
        """Whether `host` may be dialed now."""
        n_failed, when = self._failed.get(host, (0, now))
        return n_failed < FREE_FAILURES or now - when >= min(FIRST_PAUSE_S * 2 ** (n_failed - FREE_FAILURES), MAX_PAUSE_S)

    def failed(self, host: str, now: float) -> None:
        """It did not answer, or answered as somebody else."""
        self._failed.drop_while(lambda failed: now - failed[1] >= FORGET_S)
        n_failed, when = self._failed.get(host, (0, now))
        self._failed[host] = (1 if now - when >= FORGET_S else min(n_failed + 1, 64), now)

    def succeeded(self, host: str) -> None:
        """The peer that was meant is there."""
        self._failed.pop(host, None)

    def forget(self) -> None:
        """This side's network has changed: what failed may work."""
        self._failed.clear()
