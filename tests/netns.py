"""A small internet on one machine: network namespaces for hosts and home routers, for tests of what addresses and NATs do.

Every place has a network of its own, which looks public, behind one router without limits: 11.1.0.0/24, 11.2.0.0/24 and so on.
A home is a NAT gateway there, with hosts in 192.168.N.0/24 behind it. An internet with IPv6 only has 2a0e:1::/64, 2a0e:2::/64 and
so on, and its homes have a firewall and no NAT: hosts have public addresses, and nothing comes in that nobody inside asked for.
Needs root, `ip` and `nft`; `skip_reason` says what is missing.

Each namespace lives as long as a process in it, which ends with this one: nothing is left behind.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.waiting import PATIENCE_S

if TYPE_CHECKING:
    from tests.forking import ForkServer

# What a NAT lets in and how it chooses ports. Linux keeps one outer port for each inner one while it is free ("cone"); with
# fully-random it takes another one for each destination ("symmetric"). Both drop what nobody inside asked for.
SNAT = {"cone": "masquerade", "symmetric": "masquerade fully-random", "restricted": "masquerade"}
# "restricted": lets in, to its first host and at the port outside, whatever comes from an address that was contacted from inside
RESTRICTED = """
    set contacted {{ type ipv4_addr; flags dynamic; size 1024; timeout 120s; }}
    chain back {{ type nat hook prerouting priority dstnat;
        iifname "wan0" ip saddr @contacted meta l4proto tcp dnat ip to {host}; }}
    chain note {{ type filter hook forward priority filter - 1; oifname "wan0" update @contacted {{ ip daddr }}; }}
"""


@cache
def skip_reason() -> str:
    """Why there can be no such internet here; empty: there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [tool for tool in ("ip", "nft", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", "nft add table ip t && ip link add left type veth peer name right"],
        capture_output=True, text=True,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"no network namespaces with NAT here: {tried.stderr.strip()}"


@dataclass
class Namespace:
    """One host or router."""

    name: str
    holder: subprocess.Popen[bytes]
    address: str = ""
    """Where others see it: its own address, or that of the gateway in front of it."""

    @property
    def network(self) -> str:
        """The file by which a process enters it."""
        return f"/proc/{self.holder.pid}/ns/net"

    @property
    def inside(self) -> list[str]:
        """The words before a command that run it here."""
        return ["nsenter", f"--net={self.network}"]

    def run(self, script: str) -> str:
        done = subprocess.run([*self.inside, "sh", "-ec", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stderr}"
        return done.stdout

    def nft(self, rules: str) -> None:
        done = subprocess.run([*self.inside, "nft", "-f", "-"], input=rules, capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {rules}\n{done.stderr}"


class Internet:
    """Makes hosts and homes; `opened` ends it."""

    def __init__(self, *, has_ipv6_only: bool = False) -> None:
        self.made: list[Namespace] = []
        self.has_ipv6_only = has_ipv6_only
        self._n_links = 0
        self._n_places = 0
        self._n_homes = 0
        self.router = self._namespace("router")
        self.router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")

    def host(self, name: str) -> Namespace:
        """A host with a public address."""
        made = self._namespace(name)
        self._at_public_place(made)
        return made

    def home(self, name: str, kind: str = "cone", *, behind: "Home | None" = None, forgets_s: int = 0) -> "Home":
        """A NAT gateway. `behind`: another one, of a carrier; `forgets_s`: after so long without a packet it forgets a flow."""
        gateway = self._namespace(name)
        if behind is None:
            self._at_public_place(gateway)
        else:
            behind.attach(gateway)
        self._n_homes += 1
        home = Home(self, gateway, kind, self._n_homes)
        if forgets_s:  # and a packet of a flow that it does not know opens none, unlike Linux without this
            timeout = f"net.netfilter.nf_conntrack_tcp_timeout_established={forgets_s}"
            gateway.run(f"sysctl -qw {timeout} net.netfilter.nf_conntrack_tcp_loose=0")
        return home

    def swallow_above(self, most_bytes: int) -> None:
        """From now on longer packets vanish between the places that there are, and nobody is told: an MTU black hole."""
        for made in self.made:
            if made is not self.router:  # one packet at a time: the kernel hands on larger ones where it sends to itself
                made.run("ip link set wan0 gso_max_segs 1")
        self.router.nft(
            f"""table ip hole {{
                chain through {{ type filter hook forward priority filter; meta length > {most_bytes} drop; }}
            }}"""
        )

    def _at_public_place(self, made: Namespace) -> None:
        self._n_places += 1
        network, length = (f"2a0e:{self._n_places}::", 64) if self.has_ipv6_only else (f"11.{self._n_places}.0.", 24)
        made.address, router = f"{network}1", f"{network}254"
        self.link(made, "wan0", f"{made.address}/{length}", self.router, f"{router}/{length}")
        made.run(f"ip route add default via {router}")

    def link(self, near: Namespace, near_name: str, near_ip: str, far: Namespace, far_ip: str) -> None:
        """A cable between two namespaces."""
        self._n_links += 1
        far_name, at_once = f"to{self._n_links}", " nodad" if self.has_ipv6_only else ""
        near.run(
            f"ip link add {near_name} type veth peer name {far_name} netns {far.holder.pid}; "
            f"ip addr add {near_ip} dev {near_name}{at_once}; ip link set {near_name} up"
        )
        far.run(f"ip addr add {far_ip} dev {far_name}{at_once}; ip link set {far_name} up")

    def _namespace(self, name: str) -> Namespace:
        # `cat` ends when this process does, however that happens
        holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        made = Namespace(name, holder)
        self.made.append(made)
        deadline = time.monotonic() + 30
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert holder.poll() is None and time.monotonic() < deadline, name
            time.sleep(0.01)
        made.run("ip link set lo up")
        return made

    def close(self) -> None:
        for made in self.made:
            made.holder.kill()
        for made in self.made:
            made.holder.communicate()


class Home:
    """A gateway with a NAT, or with IPv6 only a firewall, and the hosts behind it."""

    def __init__(self, internet: Internet, gateway: Namespace, kind: str, number: int) -> None:
        self.gateway = gateway
        self._internet = internet
        self._number = number
        self._n_hosts = 0
        gateway.run("ip link add lan0 type bridge; ip link set lan0 up")
        if internet.has_ipv6_only:
            gateway.run(f"sysctl -qw net.ipv6.conf.all.forwarding=1; ip addr add {self._inside(254)} dev lan0 nodad")
            internet.router.run(f"ip -6 route add {self._inside(0)} via {gateway.address}")
            nat = ""
        else:
            gateway.run(f"sysctl -qw net.ipv4.ip_forward=1; ip addr add {self._inside(254)} dev lan0")
            nat = f'chain out {{ type nat hook postrouting priority srcnat; oifname "wan0" {SNAT[kind]}; }}'
        gateway.nft(
            f"""table inet home {{ {nat}
                chain in {{ type filter hook input priority filter; iifname "wan0" ct state established,related accept;
                    iifname "wan0" meta l4proto != ipv6-icmp drop; }}
                chain through {{ type filter hook forward priority filter; iifname "wan0" ct state established,related accept;
                    iifname "wan0" ct state new ct status dnat accept; iifname "wan0" ct state new drop; }}
                {RESTRICTED.format(host=self._inside(1).split("/")[0]) if kind == "restricted" else ""}
            }}"""
        )

    def host(self, name: str) -> Namespace:
        """A host in this home."""
        made = self._internet._namespace(name)
        self.attach(made)
        return made

    def attach(self, made: Namespace) -> None:
        self._n_hosts += 1
        self._internet._n_links += 1
        far_name, inside = f"to{self._internet._n_links}", self._inside(self._n_hosts)
        has_ipv6_only = self._internet.has_ipv6_only
        made.address = inside.split("/")[0] if has_ipv6_only else self.gateway.address
        made.run(
            f"ip link add wan0 type veth peer name {far_name} netns {self.gateway.holder.pid}; "
            f"ip addr add {inside} dev wan0{' nodad' if has_ipv6_only else ''}; ip link set wan0 up; "
            f"ip route add default via {self._inside(254).split('/')[0]}"
        )
        self.gateway.run(f"ip link set {far_name} master lan0; ip link set {far_name} up")

    def limit_upload(self, rate: str) -> None:
        """What leaves this home goes at that rate from now on, such as 256kbit, with a queue of a quarter of a second."""
        self.gateway.run(f"tc qdisc add dev wan0 root tbf rate {rate} burst 4kb latency 250ms")

    def _inside(self, n: int) -> str:
        """The address of its n-th host, with the length of the prefix."""
        return f"2a0e:ffff:{self._number}::{n or ''}/64" if self._internet.has_ipv6_only else f"192.168.{self._number}.{n}/24"


@contextmanager
def opened(*, has_ipv6_only: bool = False) -> Iterator[Internet]:
    """An internet, for as long as the block lasts."""
    internet = Internet(has_ipv6_only=has_ipv6_only)
    try:
        yield internet
    finally:
        internet.close()


def _paths() -> str:
    """Where commands in another folder find the modules of the tests."""
    root = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))


class Command:
    """A command of this project in a namespace; what it says goes to a file."""

    def __init__(
        self, where: Namespace, folder: Path, name: str, line: list[str], forks: "ForkServer | None" = None, **how: bool
    ) -> None:
        """`line`: a module and its arguments. `forks`: starts it as `how` says, which is cheaper than `python` is."""
        self.folder = folder / name
        self.folder.mkdir()
        self.said = self.folder / "said"
        self._file: IO[str] = self.said.open("w")
        env = {
            **os.environ, "PYTHONPATH": _paths(), "OMP_NUM_THREADS": "1", "HOME": str(self.folder), "TMPDIR": str(self.folder),
        }  # fmt: skip
        words = [sys.executable, "-m", *line]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._file, "stderr": self._file}
        self.process: subprocess.Popen[bytes] = (
            subprocess.Popen([*where.inside, *words], cwd=self.folder, env=env, **streams)
            if forks is None
            else forks.popen(words, cwd=self.folder, env=env, network=where.network, **streams, **how)
        )

    def text(self) -> str:
        return self.said.read_text()

    def lines_with(self, *words: str) -> list[str]:
        return [line for line in self.text().splitlines() if all(word in line for word in words)]

    def line_with(self, *words: str, within_s: float = PATIENCE_S, n: int = 1) -> str:
        """The n-th line with all these words, waiting for it."""
        deadline = time.monotonic() + within_s
        while len(found := self.lines_with(*words)) < n:
            is_waiting = self.process.poll() is None and time.monotonic() < deadline
            assert is_waiting, f"{self.folder.name}: no {words}\n{self.text()[-6000:]}"
            time.sleep(0.1)
        return found[n - 1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


class Commands:
    """What a test runs in its namespaces, in the order of its start."""

    def __init__(self, folder: Path, forks: "ForkServer | None" = None) -> None:
        self._folder = folder
        self._forks = forks
        self._started: list[Command] = []

    def __getitem__(self, n: int) -> Command:
        return self._started[n]

    def start(self, where: Namespace, name: str, module: str, *words: str, starts_others: bool = False) -> Command:
        """Run this, with a folder of that name as its home. `starts_others`: what it starts itself are forks as well."""
        how = {"starts_others": starts_others} if self._forks else {}
        self._started.append(Command(where, self._folder, name, [module, *words], self._forks, **how))
        return self._started[-1]

    def close(self) -> None:
        for command in self._started:
            command.close()
