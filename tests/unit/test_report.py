"""`legion-ctl report`: one file that has everything, loads nothing, and takes any file of lines."""

import base64
import hashlib
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.cli import ctl
from legion_p2p.cli.report import label_of
from legion_p2p.cli.running import run_app
from legion_p2p.observe.events import Event
from legion_p2p.observe.metrics import encode_event
from legion_p2p.web.metrics_page import MAX_LINE_BYTES, metrics_page, read_events
from legion_p2p.web.record import RunRecord
from legion_p2p.web.report import page_of_report, report_html

EVIL = "</script><script>alert(1)</script>"


def events(n: int = 30) -> list[Event]:
    return [
        Event("run.created", 100.0, {"name": "stories"}),
        *(Event("step", 100.0 + i, {"step": i, "loss": 5 - i / 10, "tokens_per_s": 9.0}) for i in range(n)),
        Event("eval", 120.0, {"step": 20, "val_loss": 3.1}),
        Event("member.dead", 121.0, {"text": EVIL, "peer": "p"}, is_error=True),
        Event(
            "run.finished", 140.0, {"reason": "steps", "step": n, "val_loss": 2.9, "sent_bytes": 5_000_000, "received_bytes": 7}
        ),
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    lines = b"".join(encode_event(event) + b"\n" for event in events())
    (tmp_path / "mine" / "metrics.jsonl").write_bytes(lines + b'{"event":"step","at":14')  # killed while it wrote
    return tmp_path / "mine"


def test_the_curves_rounds_and_errors_of_a_peer_are_in_the_file(folder, tmp_path, capsys) -> None:
    out = tmp_path / "report.html"

    assert run_app(ctl.app, ["report", str(folder), "--out", str(out)]) == 0

    page = page_of_report(out.read_bytes())
    assert page["head"]["title"] == "stories" and page["head"]["control"] is None
    training, _, held_out = page["points"]["loss"]
    assert training["y"][0] == 5.0 and len(training["y"]) == 30 and held_out["y"] == [3.1, 2.9]
    assert {"label": "sent", "value": "5.00 MB"} in page["head"]["figures"]
    assert "skipped 1 line without an event" in capsys.readouterr().out


def test_it_loads_nothing_and_runs_nothing_but_its_own_scripts(folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    run_app(ctl.app, ["report", str(folder), "--out", str(out)])
    html = out.read_bytes()

    policy = re.search(rb'content="(default-src[^"]*)"', html)[1].decode()
    scripts = re.findall(rb"<script>(.*?)</script>", html, re.DOTALL)
    allowed = {f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts}
    assert len(scripts) == 4 and allowed <= set(policy.split())
    assert "unsafe" not in policy and "default-src 'none'" in policy and "connect-src" not in policy
    assert EVIL.encode() not in html and json.dumps(page_of_report(html)).count("alert(1)") == 1
    assert not re.search(rb'(?:src|href)="(?!data:|#)', html) and len(html) < 300_000


def test_several_peers_are_compared(folder, tmp_path) -> None:
    other = tmp_path / "theirs" / "metrics.jsonl"
    other.parent.mkdir()
    other.write_bytes((folder / "metrics.jsonl").read_bytes())
    out = tmp_path / "both.html"

    assert run_app(ctl.app, ["report", str(folder), str(other), "--out", str(out)]) == 0

    page = page_of_report(out.read_bytes())
    assert [line["label"] for line in page["points"]["loss"]] == ["mine", "theirs"]
    (table,) = [block for block in page["blocks"] if block["type"] == "table"]
    assert [row[0] for row in table["rows"]] == ["mine", "theirs"] and table["rows"][0][-1] == "steps"


def test_a_folder_without_metrics_and_a_file_of_something_else_are_named(tmp_path, capsys) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello\n")

    assert run_app(ctl.app, ["report", str(tmp_path)]) == 2
    assert run_app(ctl.app, ["report", str(other), "--out", str(tmp_path / "x.html")]) == 2
    assert run_app(ctl.app, ["report"]) == 2

    told = capsys.readouterr().err
    assert "metrics.jsonl is not there" in told and "notes.txt has no events" in told and "give 1 to 64" in told


def test_peers_of_one_name_are_told_apart(tmp_path) -> None:
    path = tmp_path / "out" / "metrics.jsonl"

    assert label_of(path, {}) == "out" and label_of(path, {"out", "out (2)"}) == "out (3)"


@given(st.binary(max_size=300))
def test_no_file_can_break_it(raw: bytes) -> None:
    record = RunRecord()

    n_bad = read_events(io.BytesIO(raw), record)

    assert n_bad <= raw.count(b"\n") + 1
    assert report_html(metrics_page({"x": record}))


def test_a_line_without_end_is_left_out_in_bounded_memory() -> None:
    record = RunRecord()
    good = encode_event(Event("step", 1.0, {"step": 1, "loss": 2.0})) + b"\n"

    n_bad = read_events(io.BytesIO(b"x" * (3 * MAX_LINE_BYTES + 5) + b"\n" + good), record)

    assert n_bad == 1 and record.newest("loss") == 2.0
