"""Our own checks in front of the swarm's two entries: connections and streams."""

import logging
from typing import cast

from libp2p.abc import IMuxedConn, INetStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import Yamux

from legion_p2p.core.identity import PeerId
from legion_p2p.net.limits import MAX_INBOUND_STREAMS
from legion_p2p.net.liveness import ConnectionLiveness
from legion_p2p.net.patches import replace_attributes
from legion_p2p.net.peer_score import REFUSED, Refusals
from legion_p2p.net.tally import Tally

logger = logging.getLogger("legion_p2p.net")


def guard(swarm: Swarm, refusals: Refusals, liveness: ConnectionLiveness, tally: Tally) -> None:
    """Replace what libp2p calls at each connection and stream."""
    # libp2p's auto-connector dials every peer that it has heard of, up to 256 connections, whatever its configuration says, and
    # never forgets one that has left
    replace_attributes(
        swarm.auto_connector, start=_nothing, stop=_nothing, maybe_connect=_nothing, run_background_task=_nothing,
        record_disconnect=lambda peer_id: None,
    )  # fmt: skip
    n_streams: dict[object, int] = {}
    handle = swarm.common_stream_handler
    add_conn = swarm.add_conn

    async def guarded_stream_handler(stream: INetStream) -> None:
        # an exception out of here would end the host , and a stranger may open streams without end
        peer = stream.muxed_conn.peer_id
        n_streams[peer] = n_streams.get(peer, 0) + 1
        try:
            if n_streams[peer] <= MAX_INBOUND_STREAMS:
                await handle(stream)
                return
            logger.debug("more than %d streams of %s", MAX_INBOUND_STREAMS, peer)
            await stream.reset()
        except Exception as error:
            logger.debug("a stream of %s: %r", peer, error)
            try:
                await stream.reset()
            except Exception as again:
                logger.debug("resetting it: %r", again)
        finally:
            n_streams[peer] -= 1
            if not n_streams[peer]:
                del n_streams[peer]

    async def guarded_add_conn(muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        if refusals.is_refused(PeerId(str(muxed_conn.peer_id))):
            tally.n_refused += 1
            await cast(Yamux, muxed_conn).secured_conn.close()
            raise SwarmException(f"not accepted: {REFUSED}")
        tally.n_connections += 1
        added = await add_conn(muxed_conn, direction)
        liveness.check_older(muxed_conn)
        return added

    async def notify(method: str, *args: object) -> None:
        # nothing here listens for streams, and libp2p starts three tasks for each one that is opened or closed
        if method not in ("opened_stream", "closed_stream"):
            await notify_all(method, *args)

    notify_all = swarm._notify
    replace_attributes(swarm, _notify=notify, common_stream_handler=guarded_stream_handler, add_conn=guarded_add_conn)


async def _nothing(*_: object) -> None:
    """In place of what libp2p would do unasked."""
