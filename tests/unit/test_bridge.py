"""A peer in a thread of its own: leaving that takes long goes on without the caller, and the script's end waits for it."""

import threading
from contextlib import asynccontextmanager

import trio

from legion_p2p.observe.events import HANDING_OVER, Events
from legion_p2p.train import bridge
from legion_p2p.train.bridge import PeerThread
from tests.waiting import PATIENCE_S


class Leaver:
    """What stands for an engine; it has left when `may_go` is set."""

    def __init__(self) -> None:
        self.events = Events()
        self.leaving, self.may_go = threading.Event(), threading.Event()

    @asynccontextmanager
    async def opened(self):
        yield self
        self.leaving.set()
        while not self.may_go.is_set():
            self.events.emit(HANDING_OVER, n_shards=2, left_bytes=2_000_000, remaining_s=16.2)
            await trio.sleep(0.01)


def test_leaving_goes_on_in_the_background_and_the_end_of_the_script_waits_and_tells(capsys) -> None:
    engine = Leaver()
    thread = PeerThread(engine.opened)

    thread.close(wait_s=0.0)

    assert engine.leaving.wait(PATIENCE_S) and thread.alive
    assert capsys.readouterr().err == ""
    ending = threading.Thread(target=bridge._close_all)
    ending.start()
    while not (told := capsys.readouterr().err):
        assert ending.is_alive()
    engine.may_go.set()
    ending.join(PATIENCE_S)
    assert not ending.is_alive() and not thread.alive
    assert told.startswith("legion_p2p: handing over 2 shards, 2.00 MB, about 16 s; Ctrl+C")
    thread.close()
