"""The page of a peer that trains, in a browser: its curve appears, its buttons work, and a wrong token shows nothing."""

import contextlib
import csv
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from workers import loss_of, model_of

import legion_p2p as legion
from legion_p2p.cli.demo_page import DemoRecord, serve_in_background
from legion_p2p.cli.demo_plan import DemoPlan
from legion_p2p.core.identity import Identity
from legion_p2p.errors import ClosedError
from legion_p2p.observe.status import ServiceStatus, Status
from legion_p2p.services.run import sampling
from legion_p2p.web.node_page import Introduced, NodeDetails, NodeRecord, OpenCircuit, node_page
from tests.waiting import eventually

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

PATIENCE_MS = 60_000
STRANGER = '<img src=x onerror="document.title=1">'
FORMULA = '=HYPERLINK("http://here/", "x")'


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[legion.Run]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sampling, "SAMPLE_EVERY_S", 0.3)
    wanted = legion.NewRun(f"page/{time.time_ns()}", rounds=legion.Rounds(local_steps=2))
    store = legion.Store(str(tmp_path / "store"), checkpoint_every_s=1, exports=str(tmp_path / "exports"))
    with legion.create(wanted, model_of(), peer=legion.Peer(listen="/ip4/127.0.0.1/tcp/0", store=store)) as run:
        yield run


def trained(run: legion.Run) -> legion.Optimizer:
    """A training loop on a thread of its own."""
    model = model_of(seed=1)
    opt = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05), model)

    def train() -> None:
        with contextlib.suppress(ClosedError):  # at the end of the test
            while not opt.should_stop:
                opt.zero_grad()
                loss = loss_of(model, 1, opt.steps)
                loss.backward()
                opt.note(loss=float(loss.detach()))
                opt.step()
                time.sleep(0.02)

    threading.Thread(target=train, daemon=True).start()
    return opt


def clicked_csv(window: Any, card: str) -> list[list[str]]:
    """The rows of the file that the CSV button of a card gives."""
    with window.expect_download(timeout=PATIENCE_MS) as given:
        window.locator(card).get_by_role("button", name="CSV").click()
    assert given.value.suggested_filename == f"{card.removeprefix('#card-')}.csv"
    with open(given.value.path(), encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def table_rows(window: Any, card: str) -> list[list[str]]:
    return [row.locator("td, th").all_inner_texts() for row in window.locator(f"{card} tr").all()]


def test_a_page_is_shown_whose_charts_have_no_line_yet_and_lines_come(browser: Any):
    record = DemoRecord(DemoPlan(n_peers=3, minutes=3, preset="xxs", seed=0, lone=True))
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)

    window.goto(serve_in_background(record.page, (0,)))
    window.locator("#card-loss .empty").wait_for(timeout=PATIENCE_MS)
    for step in (1, 2, 3):
        record.hear("peer-1", {"event": "step", "at": time.time(), "step": step, "loss": 5.0 / step})
    record.mark("peer-1 is killed (kill -9)")

    window.locator("#card-loss canvas").wait_for(timeout=PATIENCE_MS)
    window.get_by_text("peer-1 is killed (kill -9)").first.wait_for(timeout=PATIENCE_MS)
    given = clicked_csv(window, "#card-loss")
    window.locator("#card-loss summary").click()
    shown = table_rows(window, "#card-loss")
    assert given[0] == shown[0] == ["curve", "time", "step", "value"]
    assert [[curve, f"0:{float(at):02.0f}", step, f"{float(loss):.4f}"] for curve, at, step, loss in given[1:]] == shown[1:]
    assert [(step, float(loss)) for _, _, step, loss in given[1:]] == [("1", 5.0), ("2", 2.5), ("3", pytest.approx(5 / 3))]
    assert wrong == []


def test_the_page_of_a_node_shows_introductions_what_is_relayed_and_what_was_refused(browser: Any, tmp_path: Any):
    ids = [Identity(bytes([i]) * 32).peer_id for i in range(1, 5)]
    service = ServiceStatus(relayed_bytes=5_000_000, n_circuits=1, n_relay_refusals=3)
    status = Status(ids[0], (), None, "", "serving", 0, (), (), 0, 0, None, (), n_connected=2, service=service)
    record = NodeRecord()
    for n in range(3):
        record.note(msgspec.structs.replace(status, n_connected=n), 100.0 + n)
    details = NodeDetails(
        introductions=(Introduced(100.0, ids[1], (ids[2], ids[3])),),
        circuits=(OpenCircuit(ids[2], ids[3], 1, 5_000_000),), refusals={f"it carries enough for {STRANGER}": 3, FORMULA: 1},
    )  # fmt: skip
    window = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    wrong: list[str] = []
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)

    window.goto(serve_in_background(lambda: node_page(status, record, details), (0,)))
    window.locator("#card-relayed canvas").wait_for(timeout=PATIENCE_MS)

    introduced = window.locator("#card-introductions")
    assert introduced.get_by_text(ids[1][-8:]).count() == 1
    assert introduced.get_by_text(f"{ids[2][-8:]}, {ids[3][-8:]}").count() == 1
    assert window.locator("#card-circuits").get_by_text("5.00 MB", exact=True).count() == 1
    assert window.locator("#card-refusals").get_by_text(STRANGER).count() == 1 and window.locator("img").count() == 0
    given = clicked_csv(window, "#card-refusals")
    assert given[1:] == [[f"it carries enough for {STRANGER}", "3"], [f"'{FORMULA}", "1"]]  # a text, to a spreadsheet too
    assert [[why.removeprefix("'"), n] for why, n in given] == table_rows(window, "#card-refusals")
    assert window.get_by_role("button", name="Pause").count() == 0  # a node has nothing to pause
    assert window.evaluate("document.documentElement.scrollWidth") <= 390
    window.screenshot(path=str(tmp_path / "node.png"), full_page=True)
    assert wrong == []


def test_a_browser_sees_the_curve_pauses_the_peer_and_is_told_nothing_without_the_token(
    run: legion.Run, browser: Any, tmp_path: Any
):
    opt = trained(run)
    run._thread.engine.events.error("sync.failed", STRANGER)  # such as a peer may have said
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)

    window.goto(run.dashboard.partition("#")[0] + "#" + "x" * 43)
    window.get_by_text("The token is wrong").wait_for(timeout=PATIENCE_MS)
    assert window.locator(".card").count() == 0 and run.name not in window.content()
    assert [told for told in wrong if "401" not in told] == []
    wrong.clear()

    window.get_by_label("Address or token").fill(run.dashboard)
    window.keyboard.press("Enter")
    window.locator("#card-loss canvas").wait_for(timeout=PATIENCE_MS)
    assert run.dashboard.partition("#")[2] not in window.url

    window.get_by_role("button", name="Pause", exact=True).click()
    eventually(lambda: run.status().control.wish == "pause")
    asked_at = opt.steps
    window.get_by_role("button", name="Resume").wait_for(timeout=PATIENCE_MS)
    stopped_at = opt.steps
    assert stopped_at - asked_at <= 2  # one that was under way, and one that had just begun

    window.get_by_role("button", name="Resume").click()
    eventually(lambda: opt.steps > stopped_at)
    window.get_by_role("button", name="Limits").click()
    window.get_by_label("Upload").fill("5mbit")
    window.get_by_role("button", name="Set").click()
    eventually(lambda: run.status().control.upload_bps == 5e6)

    window.get_by_role("button", name="Verify").first.click()
    window.locator("#card-checkpoints").get_by_text("whole: every block").first.wait_for(timeout=PATIENCE_MS)
    window.get_by_role("button", name="Export").first.click()
    window.locator("#card-checkpoints").get_by_text("exported to").first.wait_for(timeout=PATIENCE_MS)
    assert len(list((tmp_path / "exports").glob("page-*/model.safetensors"))) == 1

    assert window.locator("#card-errors").get_by_text(STRANGER).count() == 1 and window.locator("img").count() == 0
    shot = tmp_path / "page.png"
    window.screenshot(path=str(shot))
    assert shot.stat().st_size > 20_000
    assert wrong == []
