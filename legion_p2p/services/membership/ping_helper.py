"""Pings members for others, in case only the path from there is broken."""

from collections import Counter
from collections.abc import Callable

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Done, Ping, PingFor
from legion_p2p.errors import NetworkError, NoAnswerError, UnreachableError
from legion_p2p.services.membership.roster import Roster
from legion_p2p.services.rpc import Rpc

MAX_PINGS_FOR = 16  # under way for one peer: it asks about few suspects at once, and of each again after a second
MAX_PINGS_FOR_ALL = 128


class PingHelper:
    """Answers `PingFor`: each holds a request open for as long as a suspect may take."""

    def __init__(
        self,
        run: str,
        me: PeerId,
        roster: Roster,
        rpc: Rpc,
        heard: Callable[[PeerId], None],
        lost: Callable[[PeerId], None],
        grace_s: float,
    ) -> None:
        """`heard`, `lost`: told what came of it. `grace_s`: for a suspect to answer."""
        self._run = run
        self._me = me
        self._roster = roster
        self._rpc = rpc
        self._heard = heard
        self._lost = lost
        self._grace_s = grace_s
        self._under_way: Counter[PeerId] = Counter()

    async def on_ping_for(self, asker: PeerId, message: PingFor) -> Done:
        """Ping a member. Raises: NetworkError, to be sent back."""
        if self._under_way[asker] >= MAX_PINGS_FOR or self._under_way.total() >= MAX_PINGS_FOR_ALL:
            raise NetworkError(f"{self._under_way[asker]} pings for {asker} are under way already")
        self._under_way[asker] += 1
        try:
            return await self._ping(PeerId(message.peer))
        finally:
            self._under_way -= Counter([asker])

    async def _ping(self, suspect: PeerId) -> Done:
        if suspect == self._me or not self._roster.is_known(suspect):  # nobody is to be reached through us but members
            raise UnreachableError(suspect, "it is no other member that I know of")
        try:
            await self._rpc.ask(suspect, Ping(self._run), within_s=self._grace_s)
        except UnreachableError:
            self._lost(suspect)  # a next owner that has sent nothing to a dead owner would learn of it seconds later
            raise
        except NoAnswerError as silent:
            raise UnreachableError(suspect, f"no answer in {self._grace_s:.1f} s") from silent
        self._heard(suspect)
        return Done()
