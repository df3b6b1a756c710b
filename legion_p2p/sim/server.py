"""One simulated peer's end of the requests of others, with the limits and errors of the real one."""

import math

import trio

from legion_p2p.core.contact import Handler
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.receive_budget import TOO_LONG, ServedRequests, too_long
from legion_p2p.core.slots import SlotLimits, Slots
from legion_p2p.errors import LegionError, RefusedError, UsageError
from legion_p2p.net.limits import MAX_BODY_BYTES, MAX_REQUESTS_IN, MAX_REQUESTS_IN_TOTAL
from legion_p2p.sim.fabric import Station
from legion_p2p.sim.request import RequestOutcome


class SimServer:
    """Answers requests."""

    def __init__(self, network: Station) -> None:
        self._network = network
        self._services: dict[str, ServedRequests] = {}
        self._handling = Slots(SlotLimits(max_items=MAX_REQUESTS_IN_TOTAL, max_per_peer=MAX_REQUESTS_IN))

    def serve(self, service: str, handler: Handler, longest: float = math.inf) -> None:
        """Answer requests to this service from now on, but those of more than `longest` bytes; "" is the application."""
        self._services[service] = ServedRequests(handler, longest)

    async def handle(self, outcome: RequestOutcome, asker: PeerId, service: str, body: bytes, lane: str) -> None:
        """What a request leads to here: `outcome` gets the reply, or the error that the asker gets. Cancelled, if this peer dies
        meanwhile; never ends, if it is dead already: the asker learns of that by a reset."""
        if not self._network.alive:
            await trio.sleep_forever()
        served = self._services.get(service)
        if served is None:
            outcome.error = RefusedError(self._network.peer_id, "NotServingError", "this peer does not answer such requests yet")
            return
        if len(body) > served.longest:
            outcome.error = RefusedError(self._network.peer_id, TOO_LONG, too_long(len(body), served))
            return
        slot = self._handling.begin(asker)
        if slot is None:
            reason = f"more than {MAX_REQUESTS_IN} requests at once, or many of others"
            outcome.error = RefusedError(self._network.peer_id, "BusyError", reason)
            return
        try:
            await self._run_handler(outcome, served.handler, asker, body, lane)
        finally:
            self._handling.end(slot)

    async def _run_handler(self, outcome: RequestOutcome, handler: Handler, asker: PeerId, body: bytes, lane: str) -> None:
        try:
            reply = await handler(asker, body)
            if isinstance(reply, ThrottledReply):
                outcome.throttle(reply)
                reply = reply.reply
            limit = MAX_BODY_BYTES[lane]
            if len(reply) > limit:
                raise UsageError(f"reply of {len(reply)} bytes on the {lane} lane, limit is {limit}")
            outcome.reply = bytes(reply)
        except LegionError as refused:
            outcome.error = RefusedError(self._network.peer_id, type(refused).__name__, str(refused))
        except Exception as failed:  # as over a real network: a handler that fails ends no peer
            self._network.handler_errors.append(failed)
            reason = "the other side failed to handle it; its log tells why"
            outcome.error = RefusedError(self._network.peer_id, "InternalError", reason)
