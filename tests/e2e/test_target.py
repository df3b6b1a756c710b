"""What `legion-peer` does at the target of its run: two of them, in one process, on loopback."""

import threading
import time
from pathlib import Path

from legion_p2p.config import Inner, NewRun, Peer, Rounds, RunChoice, Store, Training
from legion_p2p.observe.events import Events
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import find_manifests
from legion_p2p.train.control import Control
from legion_p2p.train.job import run_job
from legion_p2p.train.outcome import Outcome
from tests.waiting import PATIENCE_S

STEPS = 60
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def test_both_end_at_the_target_with_the_same_model_and_a_last_checkpoint(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a run that has a target ends there by itself, everywhere. " * 60)
    name, training = f"target/{time.time_ns()}", Training(data=str(text), threads=1, wait_for_members=2)
    store = Store(str(tmp_path / "store"), checkpoint_every_s=600)
    outcomes: dict[str, Outcome] = {}
    addresses: list[str] = []
    joinable = threading.Event()

    def train(who: str, entry: RunChoice, peer: Peer) -> None:
        def on_status(status: object) -> None:
            addresses[:] = status.addresses  # type: ignore[attr-defined]
            joinable.set()

        events, told = Events(), on_status if who == "first" else None
        outcomes[who] = run_job(entry, peer, training, events=events, control=Control(), on_status=told)

    of_steps = {"inner": Inner(batch=1, context=16), "rounds": Rounds(local_steps=5)}
    new_run = NewRun(name, preset="xxs", data=text.name, target_steps=STEPS, **of_steps)
    quiet = {"listen": LISTEN, "lan": False, "port_mapping": False, "status": False}
    first = threading.Thread(target=train, args=("first", RunChoice(new_run=new_run), Peer(store=store, **quiet)), daemon=True)
    first.start()
    assert joinable.wait(PATIENCE_S)
    second = threading.Thread(target=train, args=("second", RunChoice(name, tuple(addresses)), Peer(**quiet)), daemon=True)
    second.start()
    for thread in (first, second):
        thread.join(PATIENCE_S)

    assert {who: outcome.reason for who, outcome in outcomes.items()} == {"first": "target", "second": "target"}
    assert outcomes["first"].digest == outcomes["second"].digest and outcomes["second"].steps > 0
    with BlockStore(store.path) as blocks:
        newest, *_ = find_manifests(blocks).values()
        assert newest.step >= STEPS and newest.state["run_tokens"] > 0
