"""A guest of a private run, on a network with a key, trains on prepared data that only members have."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from legion_p2p.config import Inner, NewRun, Peer, RunChoice, Store, Training
from legion_p2p.core.admission import as_text, from_text, make_token
from legion_p2p.core.identity import Identity
from legion_p2p.errors import MissingBlockError
from legion_p2p.observe.events import Event, Events
from legion_p2p.observe.status import Status
from legion_p2p.services.checkpoint import fetch
from legion_p2p.store.identity import identity_of
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.train.control import Control
from legion_p2p.train.datasets.fetch import fetch_dataset
from legion_p2p.train.datasets.preparation import Preparation
from legion_p2p.train.datasets.prepare import prepare
from legion_p2p.train.datasets.prepared import open_prepared
from legion_p2p.train.datasets.sources import find_sources
from legion_p2p.train.datasets.tokenizer import Tokenizer
from legion_p2p.train.job import look_up, run_job
from legion_p2p.visit import Visitor
from tests.waiting import PATIENCE_S, eventually

DAY_S = 86_400


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the {i}th line of a story that has many"}) + "\n" for i in range(200)))
    settings = Preparation((str(rows),), validation=0.2)
    prepare(settings, find_sources(settings.sources, "text"), Tokenizer(), tmp_path / "data")
    return str(tmp_path / "data")


class Host:
    """A member that has the data, and is paused; its run admits by tokens, its network has a key."""

    def __init__(self, folder: Path, data: str) -> None:
        self.folder = folder
        (folder / "net.key").write_text("ab" * 32)
        self.identity, release = identity_of(str(folder / "host.key"))
        release()
        self.address = ""
        self._control = Control()
        self._control.pause()
        seen: list[Event] = []
        events = Events()
        events.add_sink(seen.append)
        new_run = NewRun(f"private/{time.time_ns()}", preset="xxs", admission="token", inner=Inner(batch=1))
        self._thread = threading.Thread(
            target=run_job,
            args=(RunChoice(new_run=new_run), self.peer("host"), Training(data=data, threads=1)),
            kwargs={"events": events, "control": self._control, "on_status": self._look},
            daemon=True,
        )
        self._thread.start()
        eventually(lambda: self.address)
        self.run = next(str(event.fields["run"]) for event in seen if event.name == "run.created")

    def _look(self, status: Status) -> None:
        self.address = next(iter(status.addresses), "")

    def peer(self, name: str, token: str = "") -> Peer:
        store = Store(str(self.folder / f"{name}-store"))
        return Peer(
            identity=str(self.folder / f"{name}.key"), listen="/ip4/127.0.0.1/tcp/0", lan=False, port_mapping=False, status=False,
            dashboard="no", store=store, token=token, network_key=str(self.folder / "net.key"),
        )  # fmt: skip

    def token_for(self, peer: str) -> str:
        return as_text(make_token(self.identity, self.run, peer, int(time.time()) + DAY_S))

    def close(self) -> None:
        self._control.leave()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def host(tmp_path: Path, data: str) -> Iterator[Host]:
    made = Host(tmp_path, data)
    yield made
    made.close()


def test_it_fetches_them_from_the_members_and_others_get_nothing(
    tmp_path: Path, data: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_prepared(data)
    assert folder is not None
    entry = RunChoice(run=host.run, initial_peers=(host.address,))
    guest, release = identity_of(str(tmp_path / "guest.key"))
    release()
    key = load_network_key(str(tmp_path / "net.key"))

    assert look_up(entry, host.peer("guest")).admission == "token"  # which needs the key of the network alone
    somebody = Visitor(network_key=key)
    thief = Visitor(Identity.generate(), from_text(host.token_for(guest.peer_id)), key)
    with monkeypatch.context() as context:
        context.setattr(fetch, "SEARCH_S", 0.5)
        for visitor in (somebody, thief):
            with pytest.raises(MissingBlockError):
                fetch_dataset(folder.cid, entry.initial_peers, tmp_path / "stolen", run=host.run, visitor=visitor)
    outcome = run_job(
        entry, host.peer("guest", host.token_for(guest.peer_id)), Training(steps=2, threads=1), events=Events(), control=Control()
    )

    assert outcome.steps == 2
    there = open_prepared(str(tmp_path / "guest-store-data" / str(folder.cid)))
    assert there is not None and there.cid == folder.cid
