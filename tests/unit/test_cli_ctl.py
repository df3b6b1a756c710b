"""legion-ctl against real status endpoints on this machine."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
import trio

from legion_p2p.cli import ctl
from legion_p2p.cli.find_peer import parse_status_address
from legion_p2p.cli.running import run_app
from legion_p2p.errors import UsageError
from legion_p2p.net import status_http
from legion_p2p.net.status_http import serve_status
from legion_p2p.observe.status import ConnectionStatus, MemberStatus, RoundStatus, RunStatus, ShardStatus, Status
from tests.ports import free_ports
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
STATUS = Status(
    "12D3KooWme", ("/ip4/127.0.0.1/tcp/1",), RunStatus("bafkreiid", "demo"), "home", "training", 1234,
    (MemberStatus("12D3KooWme", "home", "ALIVE", 7, 12.5),), (ShardStatus(0, 3, "ab" * 32, "12D3KooWme", None),), 10, 20,
    RoundStatus(0, 3, 1.0), (),
)  # fmt: skip


@contextmanager
def peers(*statuses, ports=()):
    """Status endpoints in a thread of their own, as in running peers; yields their addresses."""
    addresses, ready, stop = [], threading.Event(), trio.Event()
    token = []

    async def serve():
        token.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            for status in statuses:

                async def one(*, task_status, status=status):
                    await serve_status(lambda: status, ports=ports, task_status=task_status)

                addresses.append(await nursery.start(one))
            ready.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield addresses
    finally:
        token[0].run_sync_soon(stop.set)
        thread.join()


@pytest.fixture
def own_ports(monkeypatch):
    """Three ports that nobody else on this machine uses, where legion-ctl is told to look."""
    ports = free_ports(3)
    monkeypatch.setattr(status_http.find_peers, "__defaults__", (ports,))
    return ports


def test_with_one_peer_it_is_found_and_its_record_is_printed(own_ports, capsys):
    with peers(STATUS, ports=own_ports):
        assert run_app(ctl.app, ["status", "--json"]) == 0
        as_json = capsys.readouterr().out
        assert run_app(ctl.app, ["status"]) == 0

    assert as_json == msgspec.json.encode(STATUS).decode() + "\n"
    record = json.loads(as_json)
    assert {
        "peer_id",
        "addresses",
        "run",
        "region",
        "step",
        "members",
        "shards",
        "sent_bytes",
        "received_bytes",
        "last_round",
        "errors",
    } <= (record.keys())
    assert {"peer_id", "region", "liveness", "step", "tokens_per_s"} <= record["members"][0].keys()
    assert {"shard", "version", "digest", "owner", "standby"} <= record["shards"][0].keys()
    assert {"shard", "version", "averaged_fraction", "failed"} <= record["last_round"].keys()
    shown = capsys.readouterr().out
    assert "run        demo  bafkreiid" in shown and "members (1)" in shown and "shards (1)" in shown


def test_with_several_it_lists_them_and_one_is_chosen(own_ports, capsys):
    other = msgspec.structs.replace(STATUS, peer_id="12D3KooWother", step=5, run=None)

    with peers(STATUS, other, ports=own_ports) as addresses:
        code = run_app(ctl.app, ["status"])
        err = capsys.readouterr().err
        chosen = run_app(ctl.app, ["status", "--json", "--peer", addresses[1]])
        by_port = run_app(ctl.app, ["status", "--json", "--peer", addresses[1].rpartition(":")[2]])

    assert code == 2 and "2 peers run on this machine, choose one with --peer HOST:PORT" in err
    assert f"  {addresses[0]}  12D3KooWme  run demo  step 1,234" in err.splitlines()
    assert f"  {addresses[1]}  12D3KooWother  no run yet  step 5" in err.splitlines()
    assert (chosen, by_port) == (0, 0)
    assert [json.loads(line)["peer_id"] for line in capsys.readouterr().out.splitlines()] == ["12D3KooWother"] * 2


def test_with_none_it_says_so_and_how_to_start_one(own_ports, capsys):
    code = run_app(ctl.app, ["status"])

    err = capsys.readouterr().err
    assert code == 3 and "no peer runs on this machine" in err and "legion-peer --run NAME --initial-peers ADDR" in err


def test_a_port_where_nobody_listens_is_told(own_ports, capsys):
    code = run_app(ctl.app, ["status", "--peer", f"localhost:{own_ports[0]}"])

    assert code == 3 and f"nobody listens on localhost:{own_ports[0]}" in capsys.readouterr().err


def test_a_web_server_on_the_port_of_a_peer_is_told_in_plain_words(own_ports, capsys):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "File not found")

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", own_ports[0]), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        codes = [run_app(ctl.app, ["status"]), run_app(ctl.app, ["status", "--peer", str(own_ports[0])])]
        server.shutdown()

    err = capsys.readouterr().err
    assert codes == [3, 3] and "<" not in err and "html" not in err.lower()
    assert err.count(f"something else answers on 127.0.0.1:{own_ports[0]}: it is not a peer of legion_p2p") == 2


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1:", ":47110", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²"])
def test_an_address_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_status_address(text)


def test_an_ipv6_host_may_stand_in_brackets():
    assert parse_status_address("[::1]:47110") == ("::1", 47110)


def test_a_strangers_names_do_not_act_on_the_terminal(own_ports, capsys):
    evil = msgspec.structs.replace(STATUS, peer_id="\x1b[2Jevil\nlegion-ctl: error: forged")

    with peers(evil, evil, ports=own_ports):
        run_app(ctl.app, ["status"])

    err = capsys.readouterr().err
    assert "\x1b" not in err and not any(line.startswith("legion-ctl: error: forged") for line in err.splitlines())


def test_the_connections_of_a_peer_are_listed_for_people_and_for_machines(own_ports, capsys):
    relayed = ConnectionStatus("12D3KooWother", "relayed", "12D3KooWtherelay", 0.08)
    with peers(msgspec.structs.replace(STATUS, connections=(relayed,)), ports=own_ports):
        run_app(ctl.app, ["peers"])
        shown = capsys.readouterr().out
        run_app(ctl.app, ["peers", "--json"])
        listed = json.loads(capsys.readouterr().out)

    assert "relayed via therelay" in shown and "80 ms" in shown and "reach      unknown" in shown
    assert (listed["connections"][0]["kind"], listed["connections"][0]["rate_bps"]) == ("relayed", None)
    assert listed["reach"]["reach"] == "unknown"


def test_watching_repeats_until_the_peer_has_gone_or_ctrl_c():
    with peers(STATUS) as addresses:
        words = [sys.executable, "-m", "legion_p2p.cli.ctl", "status", "--watch", "--json", "--peer", addresses[0]]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first, second = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)

    assert first == second and json.loads(first)["step"] == 1234
    assert (process.returncode, err) == (130, "")


def test_help_is_quick_and_light():
    code = (
        "import sys; from legion_p2p.cli.ctl import app; from legion_p2p.cli.running import run_app; "
        "run_app(app, ['status', '--help']); "
        "print('LOADED', [m for m in ('torch', 'libp2p', 'numpy', 'trio') if m in sys.modules])"
    )

    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    assert out.endswith("LOADED []\n") and "--watch" in out
