"""Processes for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from processes import Process, Workers


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bootstrap node."""
    key: Path = tmp_path_factory.mktemp("bootstrap") / "key"
    node = Process("-m", "legion_p2p.cli.bootstrap", "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(key))
    try:
        line = node.wait_for("text")["text"]
        yield line.removeprefix("--initial-peers ")
    finally:
        node.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts processes that need not import torch."""
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def _all_workers(forks: ForkServer) -> Iterator[Workers]:
    workers = Workers(forks)
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture
def workers(_all_workers: Workers) -> Iterator[Workers]:
    """Worker processes. After the test, those that ended their commands have left nothing open."""
    yield _all_workers
    for worker, left in _all_workers.give_back():
        assert left["sockets"] == [], (worker.pid, left)
        assert left["children"] == [], (worker.pid, left)
        # Idle worker threads of trio end by themselves after some seconds.
        assert [t for t in left["threads"] if not t.startswith(("MainThread", "stdin", "Trio thread"))] == [], (worker.pid, left)
        assert worker.left_files() == []


@pytest.fixture
def script() -> Iterator[object]:
    """Starts processes of their own; whatever happens, they and their children are gone after the test."""
    started: list[Process] = []

    def start(*args: str, forks: ForkServer | None = None, **env: str) -> Process:
        process = Process(*args, env=env, forks=forks)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.close()
