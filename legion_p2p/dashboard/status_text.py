"""Everything that a peer knows, as `legion-ctl status` prints it once."""

from rich.console import Group, RenderableType
from rich.text import Text

from legion_p2p.dashboard.fit import Column, fit_table, line
from legion_p2p.dashboard.live import member_columns, members_in_order
from legion_p2p.observe import human
from legion_p2p.observe.event_text import rounds_of
from legion_p2p.observe.status import ConnectionStatus, ServiceStatus, Status
from legion_p2p.observe.words import alone_text, connection_text, own_left_text, reach_text, reason_text, scores_text, target_text

MAX_ERRORS_SHOWN = 5
ROOM_FOR_IDS = 110  # columns of a terminal in which whole peer ids leave room for everything else


def render_status(status: Status, *, width: int = 80, ascii_only: bool = False, now: float = 0.0) -> RenderableType:
    """A report of `width` characters and any length; `now`, in seconds since the epoch, gives errors their age."""
    if status.run is None and status.service is not None:
        return Group(*_node_facts(status, status.service, width), Text(""), *_errors(status, width, now))
    parts: list[RenderableType] = [*_facts(status, width), Text("")]
    parts.append(line(f"members ({len(status.members)})", width=width, style="bold"))
    parts += [fit_table(member_columns(status), members_in_order(status), width, ascii_only=ascii_only), Text("")]
    parts.append(line(f"shards ({len(status.shards)})", width=width, style="bold"))
    parts += [fit_table(_shard_columns(status), status.shards, width, ascii_only=ascii_only), Text("")]
    parts += _errors(status, width, now)
    return Group(*parts)


def render_connections(status: Status, *, width: int = 80, ascii_only: bool = False) -> RenderableType:
    """How this peer is reached, and a table of its connections: to members first, then to bootstrap nodes and others."""
    members = {member.peer_id: member for member in status.members}

    def peer(connection: ConnectionStatus) -> str:
        return human.clean(connection.peer_id) if width >= ROOM_FOR_IDS else human.short_id(connection.peer_id)

    def role(connection: ConnectionStatus) -> str:
        member = members.get(connection.peer_id)
        return "not in the run" if member is None else human.clean(member.role)

    def reach(connection: ConnectionStatus) -> str:
        member = members.get(connection.peer_id)
        return human.NOTHING if member is None else human.clean(member.reach)

    columns = (
        Column("peer", peer, 0, right=False, max_chars=64),
        Column("connection", connection_text, 0, right=False, max_chars=24),
        Column("delay", lambda c: human.NOTHING if c.rtt_s is None else human.duration_text(c.rtt_s), 0),
        Column("rate", lambda c: human.rate_text(c.rate_bps), 0),
        Column("role", role, 1, right=False),
        Column("its reach", reach, 2, right=False),
    )
    rows = sorted(status.connections, key=lambda c: (c.peer_id not in members, c.peer_id))
    table = fit_table(columns, rows, width, ascii_only=ascii_only) if rows else line("no connections", width=width)
    return Group(*_fact("reach", reach_text(status.reach), width), Text(""), table)


def _node_facts(status: Status, service: ServiceStatus, width: int) -> list[Text]:
    """Of a node that is in no run, and serves others."""
    facts = [
        ("peer", human.clean(status.peer_id) + (f"  (process {status.pid})" if status.pid else "")),
        *(("" if i else "addresses", human.clean(address)) for i, address in enumerate(status.addresses)),
        ("state", f"{human.clean(status.state)}, {human.seconds_text(status.uptime_s)} elapsed"),
        ("connected", f"{human.whole_text(status.n_connected)} peer{'s' * (status.n_connected != 1)}; since the start "
                      f"{human.whole_text(service.n_connections)}, and {human.whole_text(service.n_refused)} turned away"),
        ("known", f"{human.whole_text(service.n_known)} peer{'s' * (service.n_known != 1)}, kept over a restart"),
        ("directory", f"{human.whole_text(service.n_records)} records, "
                      f"{human.whole_text(service.n_questions)} questions answered"),
        ("relay", f"{human.bytes_text(service.relayed_bytes)} relayed; now {human.whole_text(service.n_circuits)} circuits, "
                  f"for {human.whole_text(service.n_reservations)} peers; "
                  f"refused {human.whole_text(service.n_relay_refusals)} times"),
        ("traffic", f"sent {human.bytes_text(status.sent_bytes)}, received {human.bytes_text(status.received_bytes)}"),
        *(("" if i else "also", f"{human.clean(contact.address)}  {human.clean(contact.problem) or 'connected'}")
          for i, contact in enumerate(status.contacts)),
    ]  # fmt: skip
    return [text for name, value in facts for text in _fact(name, value, width)]


def _facts(status: Status, width: int) -> list[Text]:
    run = f"{human.clean(status.run.name)}  {human.clean(status.run.id)}" if status.run else "none yet"
    target = f" of {human.whole_text(status.target_steps)}" if status.target_steps else ""
    left = f", {own_left_text(status)}" if own_left_text(status) else ""
    facts = [
        ("peer", human.clean(status.peer_id) + (f"  (process {status.pid})" if status.pid else "")),
        *(("" if i else "addresses", human.clean(address)) for i, address in enumerate(status.addresses)),
        ("reach", reach_text(status.reach)),
        ("run", run),
        ("region", human.clean(status.region) or human.NOTHING),
        ("state", f"{human.clean(status.state)}, {human.seconds_text(status.uptime_s)} elapsed{left}"),
        ("progress", f"step {human.whole_text(status.step)}{target}, loss {human.loss_text(status.loss)}, "
                     f"{human.count_text(status.tokens_per_s)} tokens/s, {human.count_text(status.tokens)} tokens"),
        *([] if status.target is None else [("target", target_text(status.target))]),
        ("traffic", f"sent {human.bytes_text(status.sent_bytes)}, received {human.bytes_text(status.received_bytes)}, "
                    f"training waited {human.percent_text(status.blocked_fraction)} of the time"),
        ("connected", f"{human.whole_text(status.n_connected)} peer{'s' * (status.n_connected != 1)}"),
        ("rates", f"up {_rate_text(status.upload_bps, status.upload_limit_bps)}, "
                  f"down {_rate_text(status.download_bps, status.download_limit_bps)}"),
        ("rounds", _round_text(status)),
        *([("answers", scores_text(status.test))] if status.test else []),
        *([("alone", alone_text(status).removeprefix("alone: "))] if alone_text(status) else []),
        ("model", f"digest {human.clean(status.common_digest)}" if status.common_digest else human.NOTHING),
    ]  # fmt: skip
    if status.last_round:
        facts += [("" if i else "not in it", f"{human.clean(failed.peer_id)}: {reason_text(failed)}")
                  for i, failed in enumerate(status.last_round.failed)]  # fmt: skip
    return [text for name, value in facts for text in _fact(name, value, width)]


def _fact(name: str, value: str, width: int) -> list[Text]:
    """A fact under its name; an address that is longer than the line goes on in the next, because it is there to be copied."""
    room = max(20, width - 11)
    pieces = [value[i : i + room] for i in range(0, len(value), room)] or [""]
    return [Text.assemble((f"{name if not i else '':<11}", "bold"), piece, no_wrap=True) for i, piece in enumerate(pieces)]


def _rate_text(reached_bps: float | None, limit_bps: float | None) -> str:
    return human.rate_text(reached_bps) + ("" if limit_bps is None else f" (limit {human.rate_text(limit_bps)})")


def _round_text(status: Status) -> str:
    last = status.last_round
    if last is None:
        return "none yet"
    of = f" ({last.n_included} of {last.n_expected} members)" if last.n_expected else ""
    return (
        f"{human.whole_text(rounds_of(status))}, last: shard {last.shard} version {last.version}, "
        f"averaged {human.percent_text(last.averaged_fraction)}{of}"
        + ("" if status.agreement is None else f", pushes agree by {status.agreement:.2f}")
    )


def _shard_columns(status: Status) -> tuple[Column, ...]:
    def peer(peer_id: str | None) -> str:
        if peer_id is None:
            return "nobody"
        return human.short_id(peer_id) + (" (me)" if peer_id == status.peer_id else "")

    return (
        Column("shard", lambda s: str(s.shard), 0),
        Column("version", lambda s: human.whole_text(s.version), 0),
        Column("owner", lambda s: peer(s.owner), 0, right=False),
        Column("standby", lambda s: peer(s.standby), 1, right=False),
        Column("digest", lambda s: human.clean(s.digest)[:16], 2, right=False, max_chars=16),
    )


def _errors(status: Status, width: int, now: float) -> list[Text]:
    if not status.errors:
        return [line("no errors", width=width)]
    shown = status.errors[-MAX_ERRORS_SHOWN:]
    title = f"last errors ({len(shown)} of {len(status.errors)})" if len(shown) < len(status.errors) else "last errors"
    lines = [line(title, width=width, style="bold")]
    for error in reversed(shown):
        age = f"{human.seconds_text(now - error.at)} ago" if now else human.clock_text(error.at)
        text = f"{age}  {human.clean(error.event)}: {human.clean(error.text)}"
        lines += [Text(text[i : i + width], no_wrap=True) for i in range(0, len(text), width)]
    return lines
