"""Views of status records on a terminal. What is listed here is what others may use."""

from legion_p2p.dashboard.live import LiveView, render_peer
from legion_p2p.dashboard.status_text import render_connections, render_status
from legion_p2p.dashboard.swarm_view import LoneProgress, PeerRow, SwarmStatus, SwarmView, render_swarm

__all__ = [
    "LiveView",
    "LoneProgress",
    "PeerRow",
    "SwarmStatus",
    "SwarmView",
    "render_connections",
    "render_peer",
    "render_status",
    "render_swarm",
]
