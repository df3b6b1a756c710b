"""What Prometheus reads of a node, and to whom it is told."""

import re

import trio
from prometheus_client.parser import text_string_to_metric_families

from legion_p2p.net.metrics_http import serve_metrics
from legion_p2p.observe.prometheus import metrics_text
from legion_p2p.observe.status import ContactStatus, ServiceStatus, Status

SERVICE = ServiceStatus(
    n_connections=7,
    n_refused=2,
    n_questions=5,
    n_records=3,
    n_known=4,
    n_reservations=8,
    n_circuits=9,
    n_relay_refusals=11,
    relayed_bytes=1_000_000,
)
STATUS = Status(
    peer_id="12D3KooWMe", addresses=(), run=None, region="", state="bootstrap node", step=0, members=(), shards=(), sent_bytes=10,
    received_bytes=20, last_round=None, errors=(), n_connected=6, service=SERVICE, uptime_s=3600.0,
    contacts=(ContactStatus("/ip4/1.2.3.4/tcp/1", "no answer"), ContactStatus("/ip4/1.2.3.4/tcp/2")),
)  # fmt: skip


async def asked(address: str, path: str, host: str) -> bytes:
    where, _, port = address.rpartition(":")
    async with await trio.open_tcp_stream(where, int(port)) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return b"".join([chunk async for chunk in stream])


def test_every_number_of_a_node_can_be_parsed() -> None:
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics_text(STATUS).decode())
        for sample in family.samples
    }

    ours = {name.removeprefix("legion_"): value for name, value in told.items() if name.startswith("legion_")}
    assert ours == {
        "uptime_seconds": 3600,
        "connected_peers": 6,
        "lost_contacts": 1,
        "dht_records": 3,
        "known_peers": 4,
        "relay_reservations": 8,
        "relay_circuits": 9,
        "relay_refusals_total": 11,
        "sent_bytes_total": 10,
        "received_bytes_total": 20,
        "relayed_bytes_total": 1_000_000,
        "connections_total": 7,
        "refused_connections_total": 2,
        "dht_questions_total": 5,
    }
    assert told["process_resident_memory_bytes"] > 1e7


async def test_metrics_are_served_where_they_were_asked_for(nursery: trio.Nursery) -> None:
    address = await nursery.start(serve_metrics, lambda: STATUS, "127.0.0.1", 0)

    answer = await asked(address, "/metrics", address)

    assert answer.startswith(b"HTTP/1.1 200") and b"legion_connected_peers 6.0" in answer
    assert re.search(rb"Content-Type: text/plain; version=[0-9.]+", answer)
    assert b"404" in (await asked(address, "/status", address)).splitlines()[0]


async def test_on_this_machine_a_web_page_cannot_read_them_and_elsewhere_any_name_will_do(nursery: trio.Nursery) -> None:
    here = await nursery.start(serve_metrics, lambda: STATUS, "127.0.0.1", 0)
    everywhere = await nursery.start(serve_metrics, lambda: STATUS, "0.0.0.0", 0)

    refused = await asked(here, "/metrics", "evil.example")
    answered = await asked(everywhere.replace("0.0.0.0", "127.0.0.1"), "/metrics", "node.example:9100")

    assert refused.startswith(b"HTTP/1.1 403") and b"legion_" not in refused
    assert answered.startswith(b"HTTP/1.1 200")
