"""A user pauses a peer, limits it and ends its training while it trains with another one; on loopback, in one process."""

import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import trio
from workers import loss_of, model_of

import legion_p2p as legion
from legion_p2p.core.control import Finish, Pause
from legion_p2p.errors import ClosedError
from legion_p2p.files.paths import user_data_folder
from legion_p2p.net.control_http import send_command
from legion_p2p.store.control_key import load_or_create_control_key
from tests.waiting import PATIENCE_S, eventually


class Loop:
    """A training loop as users write it, on a thread of its own."""

    def __init__(self, run: legion.Run, seed: int) -> None:
        self.model = model_of(seed=seed)
        self.opt = run.optimizer(torch.optim.SGD(self.model.parameters(), lr=0.05), self.model)
        self.thread = threading.Thread(target=self._train, args=(seed,), daemon=True)
        self.thread.start()

    def _train(self, seed: int) -> None:
        while not self.opt.should_stop:
            self.opt.zero_grad()
            loss_of(self.model, seed, self.opt.steps).backward()
            self.opt.step()
            time.sleep(0.01)


def test_a_paused_peer_stops_within_two_steps_goes_on_serving_and_nobody_waits_for_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0")
    wanted = legion.NewRun(f"control/{time.time_ns()}", rounds=legion.Rounds(local_steps=2))
    with ExitStack() as stack:
        mine = stack.enter_context(legion.create(wanted, model_of(), peer=peer))
        theirs = stack.enter_context(legion.join(wanted.name, initial_peers=mine.addresses(), peer=peer))
        a, b = Loop(mine, 1), Loop(theirs, 2)
        eventually(lambda: a.opt.steps > 4 and b.opt.steps > 4)
        (served,) = [event.fields["address"] for event in mine.events() if event.name == "status.served"]
        key, port = load_or_create_control_key(user_data_folder()), int(str(served).rpartition(":")[2])

        status = trio.run(send_command, "127.0.0.1", port, key, Pause(3600.0))
        asked_at = a.opt.steps
        eventually(lambda: mine.status().members and any(m.paused for m in theirs.members()))
        rounds = theirs.status().rounds
        eventually(lambda: theirs.status().rounds > rounds + 10)  # shards that it owns are combined as before
        stopped_at = a.opt.steps
        assert stopped_at - asked_at <= 2  # one that was under way, and one that had just begun
        assert status.wish == "pause" and status.until is not None
        assert mine.status().state == "paused: by you" and not mine.status().control.upload_bps
        assert [m.training for m in theirs.members() if m.paused] == [False]

        mine.control.limits(upload="50mbit", max_cpu="50%")
        assert (mine.status().control.upload_bps, mine.status().upload_limit_bps) == (50e6, 50e6)
        mine.control.resume()
        eventually(lambda: a.opt.steps > stopped_at + 2)
        assert not any(m.paused for m in mine.members())

        trio.run(send_command, "127.0.0.1", port, key, Finish())
        a.thread.join(PATIENCE_S)
        assert not a.thread.is_alive() and mine.should_stop and not theirs.should_stop
        with pytest.raises(ClosedError, match="looks at should_stop"):
            a.opt.step()
        theirs.control.leave()
        b.thread.join(PATIENCE_S)
        assert not b.thread.is_alive()
