"""legion-demo from start to end, as real processes; and what is left of it when it is stopped in the middle."""

import contextlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import is_alive

from legion_p2p.cli import ctl
from legion_p2p.cli.running import run_app
from legion_p2p.web.report import page_of_report
from tests.fork_server import NAME as FORK_SERVER
from tests.forking import ForkServer
from tests.waiting import eventually

KEYS = {
    "run", "n_peers", "local_steps", "tokens", "swarm_val_loss", "lone_val_loss", "digests", "sent_bytes", "received_bytes",
    "wall_s", "sample", "round_period_s", "swarm_tokens_per_s", "lone_tokens_per_s", "settings", "python", "torch",
}  # fmt: skip
SMALL = ("--batch", "2")


def start(script, out: Path, *args: str, forks: ForkServer | None = None, peers: int = 2):
    words = ("-m", "legion_p2p.cli.demo", "--peers", str(peers), *SMALL, "--out", str(out), *args)
    return script(*words, forks=forks, starts_others=forks is not None)


def nobody_of(family: list[psutil.Process]) -> bool:
    return not [process for process in family if is_alive(process)]


def family_of(demo) -> list[psutil.Process]:
    """Its processes, without the server that forks them where they are forks."""
    return [process for process in psutil.Process(demo.pid).children(recursive=True) if not is_server(process)]


def is_server(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == FORK_SERVER)
    except psutil.Error:
        return False


def is_child(process: psutil.Process, name: str) -> bool:
    """Whether it is this one of the demo's, whose stderr is the log in its folder. One that has ended is none."""
    try:
        return Path(os.readlink(f"/proc/{process.pid}/fd/2")).parent.name == name
    except OSError:
        return False


def block_of(report: dict[str, Any], id: str) -> dict[str, Any]:
    return next(block for block in report["blocks"] if block["id"] == id)


def checkpoint(what: str, cid: str, store: Path) -> Any:
    """What legion-ctl checkpoint says of a store."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run_app(ctl.app, ["checkpoint", what, *([cid] if cid else []), "--store", str(store), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.mark.timeout(400)
def test_two_peers_end_with_one_model_and_the_demo_leaves_what_it_promises(script, forks, tmp_path):
    out = tmp_path / "a folder"

    demo = start(script, out, "--steps", "20", forks=forks)
    family = eventually(lambda: len(found := family_of(demo)) >= 5 and found)
    code = demo.wait()

    assert code == 0, demo.story()
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["n_peers"] == 2 and summary["local_steps"] == 20 and summary["tokens"] == 2 * 20 * 2 * 128
    assert (summary["killed"], summary["joined"], summary["lost"]) == ("", "", [])  # of two none is
    assert summary["lone_tokens"] == summary["tokens"] / 2 and summary["lone_all_text_tokens"] == summary["tokens"]
    assert len(summary["digests"]) == 2 and len(set(summary["digests"].values())) == 1 and all(summary["digests"].values())
    assert all(peer.startswith("12D3KooW") for peer in summary["digests"])
    assert 1 < summary["swarm_val_loss"] < 5.2 and 1 < summary["lone_val_loss"] < 5.2
    assert summary["sent_bytes"] > 100_000 and summary["rounds"] >= 2
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (out / "curves.png").stat().st_size > 10_000
    assert json.loads((out / "curves.json").read_text())["lone_validation"]
    report = page_of_report((out / "report.html").read_bytes())
    assert block_of(report, "result")["text"].startswith("2 peers made 20 local steps each")
    assert [line["label"] for line in report["points"]["held-out"]] == [
        "the swarm",
        "alone, as many steps",
        "alone, as much text",
    ]
    for n in (1, 2):
        events = [json.loads(line) for line in (out / f"peer-{n}" / "metrics.jsonl").read_text().splitlines()]
        assert {"step", "round.closed", "run.finished"} <= {event["event"] for event in events}
        assert (out / f"peer-{n}" / "model.safetensors").exists()
    stored = checkpoint("show", summary["checkpoint"], out / "store")
    assert stored["checkpoint"]["run_name"] == "demo" and stored["checkpoint"]["n_missing"] == 0
    assert summary["checkpoint"] in [one["cid"] for one in checkpoint("list", "", out / "store")]
    told = [str(m.get("text")) for m in demo.said]
    assert any("dashboard: http://127.0.0.1:" in line for line in told[:3])
    assert any(f"export {summary['checkpoint']} --safetensors" in line for line in told)
    assert not (out / "bootstrap" / "identity.key").exists()
    eventually(lambda: nobody_of(family))
    left = [path for path in demo.left_files() if "matplotlib" not in path]  # which keeps its list of fonts
    assert [path for path in left if not path.endswith("legion_p2p/control.key")] == []  # which every peer of the user shares


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("way", "n", "alone"), [(signal.SIGINT, 4, []), (signal.SIGKILL, 3, ["--no-lone"])])
def test_no_process_outlives_a_demo_that_is_stopped(script, forks, tmp_path, way, n, alone):
    # The one that is killed is started as users start it; nobody but its children themselves can end them then.
    demo = start(script, tmp_path / "out", "--steps", "100000", *alone, forks=None if way == signal.SIGKILL else forks)
    family = eventually(lambda: len(found := family_of(demo)) >= n and found)
    eventually(lambda: any("training" in str(m.get("text")) for m in demo.said))

    os.kill(demo.pid, way)
    code = demo.wait()

    eventually(lambda: nobody_of(family))  # the steps would take hours
    assert code == (130 if way == signal.SIGINT else -signal.SIGKILL)


@pytest.mark.timeout(400)
def test_a_peer_that_dies_is_named_and_the_others_go_on(script, forks, tmp_path):
    demo = start(script, tmp_path / "out", "--no-lone", "--no-kill", "--steps", "30", forks=forks, peers=3)
    eventually(lambda: any("training" in str(m.get("text")) for m in demo.said))

    next(p for p in family_of(demo) if is_child(p, "peer-3")).kill()
    code = demo.wait()

    assert code == 0, demo.story()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["lost"] == ["peer-3 was killed by signal 9"]
    assert len(summary["digests"]) == 2 and len(set(summary["digests"].values())) == 1
    assert summary["lone_val_loss"] is None
