"""What peers get done behind NATs: how soon they join, how much of their training counts, what it costs, how much they say.

    python benchmarks/reach.py
    python benchmarks/reach.py --only "two behind cones" --seconds 60
    python benchmarks/reach.py --only "three of five" --at-once
    python benchmarks/reach.py --transfer 50

Each situation is a public bootstrap node and some peers, real processes in network namespaces (tests/netns.py), that
train the smallest model for a while, each with at most a tenth of the processors. Needs root, `ip`, `tc` and `nft`.

| figure | is |
|---|---|
| joining s | from the first event of each peer, when its imports are done, until it is in the run |
| on time | share of the pushes that a round waited for and got; the others come into a later one |
| included | of the pushes that ended, the share that came into a round, this one or a later one |
| of training | of the tokens that peers trained in the time, the share that the model has from them |
| longest owner out of reach s | longest time for which a peer had no connection to the owner of some shard, by its own status |
| longest without news s | longest time in which a peer got no new version of some shard |
| log lines | that the most talkative peer has printed, and how many of them are errors |

Shares count from the moment when all have joined and a grace of 10 s is over, the longest times from when the peer has joined.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parent.parent))

from legion_p2p.core.round import LATE
from tests.netns import Command, Internet, Namespace, opened, skip_reason

PEER = "legion_p2p.cli.peer"
GRACE_S = 10.0  # after the last one has joined: it owns nothing before
LOOK_S = 0.5  # between two looks at the status of a peer
IDLE_S = 75.0  # longer than a router of a carrier remembers a flow that carries nothing
LOOK = f"""
import http.client, json, sys, time
while True:
    began = time.monotonic()
    connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
    connection.request("GET", "/status")
    said = json.loads(connection.getresponse().read())
    there = {{c["peer_id"] for c in said["connections"] if c["kind"] != "unknown"}} | {{said["peer_id"], None}}
    away = [s["shard"] for s in said["shards"] if s["owner"] not in there]
    print(json.dumps([time.time(), time.monotonic() - began, away]), flush=True)
    time.sleep({LOOK_S})
"""
"""Run in the namespace of a peer: which shards have an owner to which it has no connection."""

Said = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """Which peers stand behind which routers."""

    name: str
    places: Callable[[Internet], list[Namespace]]
    words: tuple[str, ...] = ()
    """Further options of every peer."""
    harm: Callable[[Internet], None] = lambda internet: None
    """What is done to the network once the places are there."""
    has_ipv6_only: bool = False
    idle_s: float = 0.0
    """How long all pause before the pushes are counted."""


def homes(*kinds: str, forgets_s: int = 0, upload: str = "") -> Callable[[Internet], list[Namespace]]:
    """A home of its own for each peer; "public": none."""

    def made(internet: Internet) -> list[Namespace]:
        found = []
        for n, kind in enumerate(kinds):
            if kind == "public":
                found.append(internet.host(f"peer{n}"))
                continue
            home = internet.home(f"home{n}", kind, forgets_s=forgets_s)
            found.append(home.host(f"peer{n}"))
            if upload:
                home.limit_upload(upload)
        return found

    return made


def behind_carriers(internet: Internet) -> list[Namespace]:
    """Each peer at home behind a router, behind the carrier's, which forgets a flow after 60 s."""
    carriers = [internet.home(f"carrier{n}", "cone", forgets_s=60) for n in range(2)]
    return [internet.home(f"home{n}", behind=carrier).host(f"peer{n}") for n, carrier in enumerate(carriers)]


def one_home(internet: Internet) -> list[Namespace]:
    """Both in one network."""
    home = internet.home("home")
    return [home.host("peer0"), home.host("peer1")]


SITUATIONS = (
    Situation("two public ones, to compare with", homes("public", "public")),
    Situation("two behind cones", homes("cone", "cone")),
    Situation("two behind symmetric NATs", homes("symmetric", "symmetric")),
    Situation("a cone and a public one", homes("cone", "public")),
    Situation("three of five behind NATs", homes("public", "cone", "cone", "public", "symmetric")),
    Situation("carriers that forget in 60 s", behind_carriers, idle_s=IDLE_S),
    Situation("one home", one_home),
    Situation("IPv6 only, public", homes("public", "public"), has_ipv6_only=True),
    Situation("IPv6 only, behind firewalls", homes("cone", "cone"), has_ipv6_only=True),
    Situation("a black hole at 1280 bytes", homes("cone", "public"), harm=lambda internet: internet.swallow_above(1280)),
    Situation("5 % loss at 150 ms", homes("cone", "cone"), ("--netem", "rtt=150ms,loss=5%")),
    Situation("256 kbit/s upload", homes("cone", "cone", upload="256kbit")),
)


class Peer:
    """One peer of a situation: what it prints as a person reads it, its events, and what its status shows."""

    def __init__(self, where: Namespace, folder: Path, name: str, *words: str) -> None:
        self.command = Command(where, folder, name, [PEER, "--out", "out", *words])
        self._where = where
        self._looks: subprocess.Popen[str] | None = None
        self._looks_file = self.command.folder / "looks"

    def events(self) -> list[Said]:
        """All so far, oldest first."""
        try:
            lines = (self.command.folder / "out" / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, name: str, within_s: float = 150.0) -> Said:
        """The first event of that name."""
        deadline = time.monotonic() + within_s
        while True:
            for said in self.events():
                if said["event"] == name:
                    return said
            if self.command.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.command.folder.name}: no {name} in {within_s:.0f} s\n{self.command.text()[-3000:]}")
            time.sleep(0.2)

    def look_on(self) -> None:
        """Watch its status from the moment when it is in the run."""
        address = self.wait_for("status.served")["address"]
        with self._looks_file.open("w") as file:
            self._looks = subprocess.Popen(
                [*self._where.inside, sys.executable, "-SEc", LOOK, str(address)], stdout=file, text=True
            )

    def tell(self, what: str) -> None:
        """As a person does with legion-ctl."""
        words = [*self._where.inside, sys.executable, "-m", "legion_p2p.cli.ctl", what]
        folder = str(self.command.folder)
        done = subprocess.run(words, cwd=folder, env={**os.environ, "HOME": folder}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def longest_out_of_reach_s(self) -> float:
        """For which one shard had an owner that it was not connected to."""
        since: dict[int, float] = {}
        longest = 0.0
        for line in self._looks_file.read_text().splitlines():
            at, _, away = json.loads(line)
            longest = max([longest, *(at - since[shard] for shard in since)])
            since = {shard: since.get(shard, at) for shard in away}
        return longest

    def longest_without_news_s(self, from_at: float, until_at: float) -> float:
        """For which it got no new version of some shard."""
        newest: dict[int, float] = {}
        longest = 0.0
        for said in self.events():
            if said["event"] == "round.closed" and said["at"] <= until_at:
                at, shard = max(said["at"], from_at), said["shard"]
                longest = max(longest, at - newest.get(shard, from_at))
                newest[shard] = at
        return max([longest, *(until_at - at for at in newest.values())])

    def close(self) -> None:
        if self._looks is not None:
            self._looks.kill()
            self._looks.wait()
        self.command.close()


def cpu_s(command: Command) -> float:
    """That its process has taken so far."""
    spent = psutil.Process(command.process.pid).cpu_times()
    return float(spent.user + spent.system)


def trained(peer: Peer, from_at: float, until_at: float) -> float:
    """Tokens that it trained in the time, by its own count."""
    counts = [(said["at"], said["tokens"]) for said in peer.events() if said["event"] in ("step", "sample")]
    before, after = ([tokens for at, tokens in counts if at <= moment] for moment in (from_at, until_at))
    return float(max(after, default=0) - max(before, default=0))


def rounds_between(peers: list[Peer], from_at: float, until_at: float) -> list[Said]:
    """Each round once, as the first peer that heard of it says."""
    found: dict[tuple[int, int], Said] = {}
    for peer in peers:
        for said in peer.events():
            if said["event"] == "round.closed" and from_at <= said["at"] <= until_at:
                found.setdefault((said["shard"], said["version"]), said)
    return list(found.values())


def start(
    situation: Situation, internet: Internet, folder: Path, nodes: list[Command], peers: list[Peer], *, at_once: bool
) -> None:
    """The node first, then the one that creates the run, then the others; returns when all are in the run."""
    node_at = internet.host("node")
    places = situation.places(internet)
    situation.harm(internet)
    nodes.append(Command(node_at, folder, "node", ["legion_p2p.cli.bootstrap", "--identity", "key"]))
    address = next(word for word in nodes[0].line_with("--initial-peers", node_at.address).split() if node_at.address in word)
    common = ("--threads", "1", "--max-cpu", "10%", "--initial-peers", address, "--identity", "key")
    new = ("--new-run", "far", "--preset", "xxs", "--local-steps", "5", "--batch", "1")
    for n, place in enumerate(places):
        peers.append(Peer(place, folder, f"peer{n}", *common, *(("--run", "far") if n else new), *situation.words))
        if n == 0 or not at_once:
            peers[n].look_on()
    for peer in peers[1:] if at_once else ():
        peer.look_on()


def joining_s(peer: Peer) -> float:
    """From the end of its imports."""
    at = {said["event"]: said["at"] for said in reversed(peer.events())}
    return float(round(at.get("run.joined", at.get("run.created")) - at["peer.phase"], 1))


def measure(situation: Situation, seconds: float, *, at_once: bool) -> dict[str, object]:
    """Run it; what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="legion-reach-"))
    peers: list[Peer] = []
    with opened(has_ipv6_only=situation.has_ipv6_only) as internet:
        nodes: list[Command] = []
        try:
            start(situation, internet, folder, nodes, peers, at_once=at_once)
            time.sleep(GRACE_S)
            if situation.idle_s:
                for peer in peers:
                    peer.tell("pause")
                time.sleep(situation.idle_s)
                for peer in peers:
                    peer.tell("resume")
            from_at, before = time.time(), [cpu_s(one) for one in (*nodes, *(peer.command for peer in peers))]
            time.sleep(seconds)
            until_at, after = time.time(), [cpu_s(one) for one in (*nodes, *(peer.command for peer in peers))]
            node_s, *peers_s = (then - now for then, now in zip(after, before, strict=True))
            return {
                "situation": situation.name,
                "joining s": [joining_s(peer) for peer in peers],
                **shares(peers, from_at, until_at),
                "CPU-s of a peer": round(sum(peers_s) / len(peers_s), 1),
                "CPU-s of the node": round(node_s, 2),
                "load average": round(os.getloadavg()[0], 1),
            }  # fmt: skip
        except AssertionError as failed:
            return {"situation": situation.name, "failed": str(failed)[-2000:]}
        finally:
            for peer in peers:
                peer.close()
            for node in nodes:
                node.close()


def shares(peers: list[Peer], from_at: float, until_at: float) -> dict[str, object]:
    """What of the pushes and the training in that time came in, and what else the peers said."""
    rounds = rounds_between(peers, from_at, until_at)
    included = sum(said["n_included"] for said in rounds)
    expected = sum(said["n_expected"] for said in rounds)
    lost = sum(failed["reason"] != LATE for said in rounds for failed in said["failed"])
    heard = [said for peer in peers for said in peer.events() if from_at <= said["at"] <= until_at]
    tokens = sum(said["tokens"] for said in rounds) / max(1, len({said["shard"] for said in rounds}))
    joined = [max(said["at"] for said in peer.events() if said["event"] in ("run.joined", "run.created")) for peer in peers]
    lines = [peer.command.text().splitlines() for peer in peers]
    return {
        "rounds": len(rounds),
        "on time": round(included / expected, 3) if expected else None,
        "included": round(included / (included + lost), 3) if included else None,
        "of training": round(tokens / max(1.0, sum(trained(peer, from_at, until_at) for peer in peers)), 3),
        "requests failed": sum(said["event"] in ("push.failed", "push.refused", "shard.sync_failed") for said in heard),
        "longest owner out of reach s": round(max(peer.longest_out_of_reach_s() for peer in peers), 1),
        "longest without news s": round(
            max(peer.longest_without_news_s(max(at, from_at), until_at) for peer, at in zip(peers, joined, strict=True)), 1),
        "log lines": [max(map(len, lines)), max(sum(" error: " in line for line in said) for said in lines)],
        "reach": [next((str(e["reach"]) for e in reversed(peer.events()) if e["event"] == "reach.found"), "unknown")
                  for peer in peers],
    }  # fmt: skip


def transfer(n_megabytes: int) -> dict[str, object]:
    """Send that much through a relay without a rate limit, between two peers that cannot punch; what it costs the relay."""
    folder = Path(tempfile.mkdtemp(prefix="legion-reach-"))
    commands: list[Command] = []
    with opened() as internet:
        try:
            node = internet.host("node")
            a, b = homes("symmetric", "symmetric")(internet)
            commands.append(Command(node, folder, "node", ["legion_p2p.cli.bootstrap", "--identity", "key", "--relay", "1gbit"]))
            line = commands[0].line_with("--initial-peers", node.address)
            address = next(word for word in line.split() if node.address in word)
            commands.append(Command(a, folder, "a", ["tests.reach_worker", "a", address]))
            commands[1].line_with('"relays": 1')
            commands.append(Command(b, folder, "b", ["tests.reach_worker", "b", address, "--send", "a", str(n_megabytes)]))
            commands[2].line_with('"sending"')
            before = cpu_s(commands[0])
            said = json.loads(commands[2].line_with('"sent"'))
            spent_s = cpu_s(commands[0]) - before
            return {
                "situation": f"{n_megabytes} MB through a relay",
                "went": said["kind"],
                "Mbit/s": round(8 * n_megabytes / said["took_s"], 1),
                "CPU-s of the relay": round(spent_s, 2),
                "CPU-s per GiB": round(spent_s * (1 << 30) / (n_megabytes * 1e6), 1),
            }
        finally:
            for command in commands:
                command.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="situations whose names contain this")
    parser.add_argument("--transfer", type=int, default=0, metavar="MB", help="send so much through a relay instead")
    parser.add_argument("--at-once", action="store_true", help="start all that join at the same moment, as many as there are")
    parser.add_argument("--seconds", type=float, default=40.0, help="of training in each")
    options = parser.parse_args()
    if skip_reason():
        sys.exit(skip_reason())
    if options.transfer:
        print(json.dumps(transfer(options.transfer)), flush=True)
        return
    for situation in SITUATIONS:
        if options.only in situation.name:
            print(json.dumps(measure(situation, options.seconds, at_once=options.at_once)), flush=True)


if __name__ == "__main__":
    main()
