"""How much memory there is, and what is said where it does not suffice."""

import errno

import pytest

from legion_p2p.cli.failures import MISFIT, failure_of, memory_problem
from legion_p2p.errors import IncompatibleModelError
from legion_p2p.observe import memory
from legion_p2p.observe.memory import FreeMemory, free_memory, used_memory


def test_the_tightest_bound_counts_and_is_named(tmp_path, monkeypatch):
    for name, value in (("max", "700000000"), ("now", "600000000")):
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(memory, "_CGROUP_MAX", tmp_path / "max")
    monkeypatch.setattr(memory, "_CGROUP_NOW", tmp_path / "now")

    assert free_memory() == FreeMemory(100_000_000, "the limit of its container or control group")

    (tmp_path / "max").write_text("max")
    assert free_memory().n_bytes > 0 and used_memory() > 10_000_000


@pytest.mark.parametrize(
    "bad",
    [
        MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes. Error code 12"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        ExceptionGroup("of a nursery", [RuntimeError("out of memory")]),
    ],
)  # fmt: skip
def test_memory_that_does_not_suffice_is_exit_code_4_with_what_there_is(bad):
    failure = failure_of(bad, "legion-peer")

    assert failure.code == MISFIT and "too little memory" in failure.text and "this process has" in failure.text


def test_what_was_asked_for_is_said_where_it_is_known():
    told = memory_problem(RuntimeError("can't allocate memory: you tried to allocate 4096 bytes"))

    assert told is not None and "for 4096 bytes more" in told
    assert memory_problem(RuntimeError("something else")) is None


def test_a_model_that_is_too_large_is_refused_before_it_is_made_by_founders_too(monkeypatch):
    from legion_p2p.config import new_run_of
    from legion_p2p.train import described

    monkeypatch.setattr(described, "free_memory", lambda: FreeMemory(1_000_000, "its limit on address space, ulimit -v"))
    new_run = new_run_of({"name": "x", "preset": "xxs"})

    with pytest.raises(IncompatibleModelError, match=r"needs about 7\.07 MB of memory, and 1\.00 MB are free here .*ulimit -v"):
        described.spec_of(new_run)
