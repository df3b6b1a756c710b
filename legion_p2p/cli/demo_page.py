"""The page of the demo: curves of the swarm and of the peers that train alone, who came and went, and bytes."""

import threading
import time
from collections.abc import Callable
from typing import Any

from legion_p2p.cli.demo_plan import ALONE, ALONE_ALL_TEXT, N_PARAMS, DemoPlan
from legion_p2p.observe import human
from legion_p2p.observe.event_text import rounds_of
from legion_p2p.observe.status import Status
from legion_p2p.web.curve import Curve
from legion_p2p.web.page_blocks import (
    Block,
    Cell,
    Chart,
    ChartMark,
    Figure,
    Head,
    Line,
    Notice,
    Prose,
    Table,
    TableColumn,
    WebPage,
)
from legion_p2p.web.run_blocks import plain_bytes, saved_text

START_S = 10.0  # for the address of the page: it takes a tenth of a second
LEARNING, TRAFFIC, PEERS, RESULT = "Learning", "Traffic", "Peers", "Result"
NAMES = {ALONE: "alone, as many steps", ALONE_ALL_TEXT: "alone, as much text"}


class DemoRecord:
    """What the demo's page shows. May be told from any thread."""

    def __init__(self, plan: DemoPlan, wall_time: Callable[[], float] = time.time) -> None:
        self._plan = plan
        self._wall_time = wall_time
        self._began = wall_time()
        self._lock = threading.Lock()
        self._training: dict[str, Curve] = {}
        self._held_out: dict[str, Curve] = {}
        self._speed = Curve()
        self._sent, self._plain = Curve(), Curve()
        self._plain_by_peer: dict[str, float] = {}
        self._steps: dict[str, float] = {}
        self._statuses: dict[str, Status] = {}
        self._states: dict[str, str] = {}
        self._marks: list[ChartMark] = []
        self._phase = "starting"
        self._result: list[str] = []

    def phase(self, text: str) -> None:
        with self._lock:
            self._phase = text

    def hear(self, label: str, event: dict[str, Any]) -> None:
        """An event of a peer, or of one that trains alone."""
        with self._lock:
            at, step = event.get("at"), event.get("step")
            if event.get("event") == "step":
                self._training.setdefault(label, Curve()).add(at or 0.0, event.get("loss"), step)
            elif event.get("event") in ("eval", "lone.finished") and step:  # the height before the first would flatten the rest
                self._held_out.setdefault(label, Curve()).add(at or 0.0, event.get("val_loss"), step)

    def status(self, label: str, status: Status) -> None:
        with self._lock:
            self._statuses[label] = status
            n_alive = sum(member.liveness.upper() != "DEAD" for member in status.members)
            further = status.step - self._steps.get(label, 0.0)
            self._steps[label] = float(status.step)
            self._plain_by_peer[label] = self._plain_by_peer.get(label, 0.0) + plain_bytes(self.n_params, int(further), n_alive)
            now, step = self._wall_time(), max(self._steps.values())
            self._sent.add(now, sum(one.sent_bytes for one in self._statuses.values()), step)
            self._plain.add(now, sum(self._plain_by_peer.values()), step)
            going = [one for label, one in self._statuses.items() if self._states.get(label) is None]
            self._speed.add(now, sum(one.tokens_per_s for one in going), step)

    def state(self, label: str, word: str) -> None:
        """How a peer ended."""
        with self._lock:
            self._states[label] = word

    def mark(self, text: str) -> None:
        """Something that all curves show from now on."""
        with self._lock:
            step = max(self._steps.values(), default=0.0)
            self._marks.append(ChartMark(round(self._wall_time() - self._began, 2), text, step))

    def result(self, lines: list[str]) -> None:
        """What came of it, in words."""
        with self._lock:
            self._result = lines
            self._phase = "done"

    @property
    def n_params(self) -> int:
        return N_PARAMS.get(self._plan.preset, 0)

    def page(self) -> WebPage:
        with self._lock:
            marks = tuple(self._marks)
            blocks: list[Block] = []
            if self._result:
                blocks.append(Prose("result", RESULT, "What came of it", "\n".join(self._result).strip(), is_code=True))
            blocks += [
                Chart("held-out", LEARNING, "Loss on held-out text, in nats per byte", "loss", self._held_out_lines(), marks,
                      "The swarm's common model, and peers that train alone.", over="step"),
                Chart("loss", LEARNING, "Training loss of each peer, in nats per byte", "loss",
                      self._lines(self._training), marks, over="step"),
                Chart("speed", LEARNING, "Tokens per second of all peers", "count",
                      (self._line(self._speed, "all peers"),), marks),
                Chart("bytes", TRAFFIC, "Bytes sent by all peers", "bytes",
                      (self._line(self._sent, "sent"), self._line(self._plain, "plain all-reduce would have sent")), marks,
                      "Plain all-reduce: a ring that sums fp32 gradients of all parameters at every step."),
                self._peers(),
            ]  # fmt: skip
            return WebPage(self._head(), tuple(blocks))

    def _held_out_lines(self) -> tuple[Line, ...]:
        swarm = next((curve for label, curve in self._held_out.items() if label not in NAMES), Curve())
        alone = [(label, self._held_out[label]) for label in NAMES if label in self._held_out]
        return (self._line(swarm, "the swarm"), *(self._line(curve, NAMES[label]) for label, curve in alone))

    def _lines(self, curves: dict[str, Curve]) -> tuple[Line, ...]:
        return tuple(self._line(curve, NAMES.get(label, label)) for label, curve in sorted(curves.items()))

    def _line(self, curve: Curve, label: str) -> Line:
        return curve.line(label, self._began)

    def _head(self) -> Head:
        told = list(self._statuses.values())
        sent, plain = sum(one.sent_bytes for one in told), sum(self._plain_by_peer.values())
        return Head(
            title="legion_p2p demo",
            subtitle=f"{self._plan.n_peers} peers on this machine, model {self._plan.preset}, "
            f"{human.seconds_text(self._wall_time() - self._began)} elapsed",
            state=self._phase,
            figures=(
                Figure("step", human.whole_text(round(max(self._steps.values(), default=0)))),
                Figure("peers", human.whole_text(sum(self._states.get(label) is None for label in self._statuses))),
                Figure("tokens/s", human.count_text(sum(one.tokens_per_s for one in told))),
                Figure("rounds", human.whole_text(max(map(rounds_of, told), default=0))),
                Figure("sent by all", human.bytes_text(sent)),
                Figure("saved", saved_text(plain, sent) if sent else human.NOTHING),
            ),
            notices=tuple(Notice("info", mark.text) for mark in self._marks[-3:]),
        )

    def _peers(self) -> Table:
        rows: list[tuple[Cell, ...]] = [
            (
                label, human.short_id(one.peer_id), self._states.get(label) or one.state, one.step, one.loss, one.tokens_per_s,
                sum(shard.owner == one.peer_id for shard in one.shards), one.sent_bytes, one.received_bytes,
            )
            for label, one in sorted(self._statuses.items())
        ]  # fmt: skip
        columns = (
            TableColumn("name"), TableColumn("peer", "id"), TableColumn("state"), TableColumn("step", "int"),
            TableColumn("loss", "loss"), TableColumn("tokens/s", "count"), TableColumn("shards", "int"),
            TableColumn("sent", "bytes"), TableColumn("received", "bytes"),
        )  # fmt: skip
        return Table("peers", PEERS, "Peers", columns, tuple(rows), is_wide=True)


def serve_in_background(make: Callable[[], WebPage], ports: tuple[int, ...]) -> str:
    """Serve a page on a thread of its own for as long as this process lives. Its address; empty: it could not be served."""
    import queue

    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def serve() -> None:
        from functools import partial

        import trio

        from legion_p2p.web.hosting import host_page

        async with trio.open_nursery() as nursery:
            told.put(await nursery.start(partial(host_page, make, ports=ports)))

    def run() -> None:
        import trio

        try:
            trio.run(serve)
        except BaseException:  # a port that is taken: the demo shows itself on the terminal as well
            told.put("")

    threading.Thread(target=run, name="page", daemon=True).start()
    try:
        return told.get(timeout=START_S)
    except queue.Empty:
        return ""


def has_desktop(environment: "dict[str, str]", platform: str, is_terminal: bool) -> bool:
    """Whether a browser may be opened: the command runs on a desktop, in a terminal."""
    if not is_terminal or any(environment.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "CI")):
        return False
    return platform in ("darwin", "win32") or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
