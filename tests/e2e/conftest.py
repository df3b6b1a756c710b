"""Processes for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Process, Workers

from tests.forking import ForkServer
from tests.netns import Commands, Internet, opened


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[str]:
    """The address of a bootstrap node."""
    key: Path = tmp_path_factory.mktemp("bootstrap") / "key"
    words = ("--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(key))
    node = Process("-m", "legion_p2p.cli.bootstrap", *words, forks=forks)
    try:
        line = node.wait_for("text")["text"]
        yield line.removeprefix("--initial-peers ")
    finally:
        node.close()


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
        assert not any(left.values()), (worker.pid, left)
        assert worker.left_files() == []


@pytest.fixture
def script() -> Iterator[object]:
    """Starts processes of their own; whatever happens, they and their children are gone after the test."""
    started: list[Process] = []

    def start(*args: str, forks: ForkServer | None = None, starts_others: bool = False, **env: str) -> Process:
        process = Process(*args, env=env, forks=forks, starts_others=starts_others)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.close()


@pytest.fixture
def internet(request: pytest.FixtureRequest) -> Iterator[Internet]:
    """Network namespaces, for tests that may make some here; `indirect`: with which protocol."""
    with opened(has_ipv6_only=getattr(request, "param", "IPv4") == "IPv6") as made:
        yield made


@pytest.fixture
def commands(tmp_path: Path, forks: ForkServer) -> Iterator[Commands]:
    """What runs in them, as forks; it is gone after the test."""
    started = Commands(tmp_path, forks)
    try:
        yield started
    finally:
        started.close()
