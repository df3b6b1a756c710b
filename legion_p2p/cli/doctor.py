"""legion-ctl doctor: problems of this machine and its network that keep a peer from working, and what to do about each."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.cli.common import addresses_of_peers
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import print_json
from legion_p2p.cli.visitors import NetworkKeyOption
from legion_p2p.config import Peer, RunChoice
from legion_p2p.core.findings import (
    Finding,
    Health,
    has_problem,
    judge_addresses,
    judge_clock,
    judge_disk,
    judge_files,
    judge_memory,
    ok,
    problem,
    warning,
)
from legion_p2p.errors import LegionError, MissingDataError
from legion_p2p.files.paths import user_data_folder
from legion_p2p.observe import human

if TYPE_CHECKING:
    from legion_p2p.core.run import RunSpec

BUILT_YEAR = 2026
PACKAGES = ("torch", "libp2p", "trio", "numpy", "msgspec", "cryptography", "zstandard", "psutil")
OLDEST, NEWEST = (3, 11), (3, 13)
ASK_S = 5.0  # what another program may take to answer


def doctor(
    *,
    initial_peers: Annotated[tuple[str, ...], Parameter(converter=addresses_of_peers, metavar="ADDR...")] = (),
    run: str = "",
    network_key: NetworkKeyOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Check this machine and its network for anything that keeps a peer from working well. Exits with 1 if there is anything.

    Example: legion-ctl doctor --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...

    Parameters
    ----------
    initial_peers
        Addresses to try; @FILE reads them from a file. If they are given, reachability is checked as well.
    run
        A run to look for through them: checks whether it is found, fits into memory, and has its data here.
    json
        Print the findings as JSON, on one line.
    """
    findings = examine(initial_peers, run, network_key)
    if json:
        print_json(findings)
    else:
        print("\n".join(lines_of(findings)))
    return FAILED if has_problem(findings) else DONE


def examine(contacts: tuple[str, ...] = (), run: str = "", network_key: str = "") -> list[Finding]:
    """All checks."""
    looks: list[Callable[[], Finding]] = [python, packages, torch_and_devices, disk, open_files, memory, clock, addresses]
    findings = [_looked(look) for look in looks]
    if contacts:
        findings += _network(contacts, network_key)
        if run:
            findings += _run(RunChoice(run=run, initial_peers=contacts), Peer(network_key=network_key))
    return findings


def lines_of(findings: list[Finding]) -> list[str]:
    """As text: first the findings, then what to do about them."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.health.value:<8} {finding.name}: {human.clean(finding.text)}")
        if finding.remedy:
            lines.append(f"{'':<8} -> {finding.remedy}")
    n_problems = sum(finding.health is Health.PROBLEM for finding in findings)
    n_warnings = sum(finding.health is Health.WARNING for finding in findings)
    told = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((n_problems, "problem"), (n_warnings, "warning")) if n]
    return [*lines, "", " and ".join(told) if told else "nothing is wrong here"]


def python() -> Finding:
    version = platform.python_version()
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return problem("Python", version, f"install Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}")
    return ok("Python", f"{version}, {platform.system()} {platform.machine()}")


def packages() -> Finding:
    found: list[str] = []
    missing: list[str] = []
    for name in ("legion_p2p", *PACKAGES):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            (missing if name != "legion_p2p" else found).append(name)
    if missing:
        return problem("packages", f"not installed: {', '.join(missing)}", "install the package again: pip install legion_p2p")
    return ok("packages", ", ".join(found))


def torch_and_devices() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as bad:
        return problem("torch", f"cannot be loaded: {bad}", "install torch again, the build that fits this machine")
    if torch.cuda.is_available():
        return ok("device", f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}")
    if torch.backends.mps.is_available():
        return ok("device", f"torch {torch.__version__}, Apple GPU (mps)")
    return warning(
        "device", f"torch {torch.__version__}, no GPU: a peer trains on the CPU",
        "use a small --preset, or --role helper; for an NVIDIA GPU install its driver and a CUDA build of torch",
    )  # fmt: skip


def disk() -> Finding:
    folder = user_data_folder()
    place = folder
    while not place.exists():
        place = place.parent
    return judge_disk(float(shutil.disk_usage(place).free), str(folder))


def open_files() -> Finding:
    try:
        import resource
    except ImportError:  # Windows
        return judge_files(None)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judge_files(None if soft == resource.RLIM_INFINITY else soft)


def memory() -> Finding:
    from legion_p2p.observe.memory import free_memory

    free = free_memory()
    return judge_memory(float(free.n_bytes), free.bound_by)


def clock() -> Finding:
    return judge_clock(time.localtime().tm_year, BUILT_YEAR, _is_synchronized())


def addresses() -> Finding:
    import socket

    import psutil

    hosts = {
        each.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for each in interface
        if each.family in (socket.AF_INET, socket.AF_INET6)
    }
    return judge_addresses(sorted(host for host in hosts if not host.startswith(("127.", "fe80:")) and host != "::1"))


def _is_synchronized() -> bool | None:
    """As systemd reports it; None where there is no systemd or it does not say."""
    if shutil.which("timedatectl") is None:
        return None
    try:
        asked = subprocess.run(
            ["timedatectl", "show", "--property", "NTPSynchronized", "--value"],
            capture_output=True, text=True, timeout=ASK_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"yes": True, "no": False}.get(asked.stdout.strip())


def _looked(look: Callable[[], Finding]) -> Finding:
    """The result of a check. A check that fails is a finding as well, and the others go on."""
    try:
        return look()
    except (LegionError, OSError, RuntimeError, ValueError) as bad:
        return warning(look.__name__.replace("_", " "), f"could not be checked: {bad}", "see the message")


def _network(contacts: tuple[str, ...], network_key: str) -> list[Finding]:
    import trio

    from legion_p2p.net.checkup import examine_network
    from legion_p2p.store.network_key_file import load_network_key

    try:
        return trio.run(examine_network, contacts, load_network_key(network_key))
    except LegionError as bad:
        return [problem("network", str(bad), "see the message")]


def _run(entry: RunChoice, peer: Peer) -> list[Finding]:
    from legion_p2p.observe.memory import free_memory
    from legion_p2p.train.job import look_up
    from legion_p2p.train.job_plan import plan_of

    try:
        spec = look_up(entry, peer)
        plan = plan_of(spec, (1,), None)
    except LegionError as bad:
        return [problem("run", str(bad), "check the name, and that the initial peers belong to the same network")]
    free = free_memory()
    needs = f"{human.bytes_text(plan.memory_bytes)} of memory, {human.bytes_text(free.n_bytes)} may be used"
    fits = plan.memory_bytes <= free.n_bytes
    return [
        ok("run", f"{human.clean(plan.run)} is found: {human.whole_text(plan.n_params)} parameters"),
        ok("run fits", needs) if fits else problem("run fits", needs, "end other programs, or join a smaller run"),
        data_of(spec, str(user_data_folder() / "store")),
    ]


def data_of(spec: "RunSpec", store: str) -> Finding:
    """Whether a peer with its store there has what the run trains on."""
    from legion_p2p.store.dataset_files import is_dataset
    from legion_p2p.train.run_text import check_source, data_folder

    try:
        return ok("data", f"{human.clean(check_source(spec, ''))} is part of legion_p2p")
    except MissingDataError as missing:
        if is_dataset(data_folder(store) / missing.dataset):
            return ok("data", f"the prepared data {missing.dataset} are here")
        wanted = f"the run trains on the prepared data {missing.dataset}, which are not here"
        return warning("data", wanted, "legion-peer fetches them from other members as it joins; or give a folder with --data")
    except LegionError as own:
        return warning("data", str(own), "legion-peer trains on the text that --data names")


def versions() -> list[str]:
    """What a report of a fault begins with."""
    return [finding.text for finding in (python(), packages())] + [f"package in {Path(__file__).parents[1]}"]
