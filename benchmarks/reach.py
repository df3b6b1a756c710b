"""What peers get done behind NATs: how soon they join, how many pushes count, what it costs, how much they say.

    python benchmarks/reach.py
    python benchmarks/reach.py --only "two behind cones" --seconds 60
    python benchmarks/reach.py --transfer 50

Each situation is a public bootstrap node and some peers, real processes in network namespaces (tests/netns.py), that
train the smallest model for a while. Needs root, `ip` and `nft`. Pushes count from the moment when all have joined and a grace of
10 s is over.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parent.parent))

from tests.netns import Command, Internet, Namespace, opened, skip_reason

PEER = "legion_p2p.cli.peer"
GRACE_S = 10.0  # after the last one has joined: it owns nothing before


@dataclass(frozen=True)
class Situation:
    """Which peers stand behind which routers."""

    name: str
    places: Callable[[Internet], list[Namespace]]
    words: tuple[str, ...] = ()
    """Further options of every peer."""
    harm: Callable[[Internet], None] = lambda internet: None
    """What is done to the network once the places are there."""


def homes(*kinds: str, forgets_s: int = 0) -> Callable[[Internet], list[Namespace]]:
    """A home of its own for each peer; "public": none."""

    def made(internet: Internet) -> list[Namespace]:
        found = []
        for n, kind in enumerate(kinds):
            if kind == "public":
                found.append(internet.host(f"peer{n}"))
            else:
                found.append(internet.home(f"home{n}", kind, forgets_s=forgets_s).host(f"peer{n}"))
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
    Situation("carriers that forget in 60 s", behind_carriers),
    Situation("one home", one_home),
    Situation("a black hole at 1280 bytes", homes("cone", "public"), harm=lambda internet: internet.swallow_above(1280)),
    Situation("5 % loss at 150 ms", homes("cone", "cone"), ("--netem", "rtt=150ms,loss=5%")),
    Situation("256 kbit/s upload", homes("cone", "cone"), ("--upload", "256kbit")),
)


def events(command: Command) -> list[dict[str, object]]:
    """What a peer has said so far."""
    found = []
    for line in command.text().splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            found.append(said)
    return found


def between(command: Command, first: str, last: str) -> float:
    """Seconds between two events of a peer."""
    at = {name: next(float(str(e["at"])) for e in events(command) if e.get("event") == name) for name in (first, last)}
    return round(at[last] - at[first], 1)


def measure(situation: Situation, seconds: float) -> dict[str, object]:
    """Run it; what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="legion-reach-"))
    commands: list[Command] = []
    with opened() as internet:
        try:
            node = internet.host("node")
            places = situation.places(internet)
            situation.harm(internet)
            commands.append(Command(node, folder, "node", "legion_p2p.cli.bootstrap", "--identity", "key"))
            line = commands[0].line_with("--initial-peers", node.address)
            address = next(word for word in line.split() if node.address in word)
            common = ("--json", "--threads", "1", "--initial-peers", address, "--identity", "key")
            new = ("--new-run", "far", "--preset", "xxs", "--local-steps", "5", "--batch", "1")
            for n, place in enumerate(places):
                words = ("--run", "far") if n else new
                commands.append(Command(place, folder, f"peer{n}", PEER, *common, *words, *situation.words))
                if n == 0:
                    commands[1].line_with('"run.created"', within_s=120)
            for peer in commands[2:]:
                peer.line_with('"run.joined"', within_s=120)
            joined_s = [between(peer, "peer.phase", "run.joined") for peer in commands[2:]]
            time.sleep(GRACE_S)
            before = [len(events(command)) for command in commands[1:]]
            cpu = [psutil.Process(command.process.pid).cpu_times() for command in commands]
            time.sleep(seconds)
            spent = [psutil.Process(command.process.pid).cpu_times() for command in commands]
            heard = [events(command)[n:] for command, n in zip(commands[1:], before, strict=True)]
            rounds = [said for of_one in heard for said in of_one if said.get("event") == "round.closed"]
            expected = sum(int(str(said["n_expected"])) for said in rounds)
            included = sum(int(str(said["n_included"])) for said in rounds)
            return {
                "situation": situation.name,
                "joining s": joined_s,
                "rounds": len(rounds),
                "included": round(included / expected, 3) if expected else None,
                "pushes failed": sum(said.get("event") == "push.failed" for of_one in heard for said in of_one),
                "reach": [next((str(e["reach"]) for e in reversed(events(c)) if e.get("event") == "reach.found"), "unknown")
                          for c in commands[1:]],
                "CPU-s of the node": round(spent[0].user + spent[0].system - cpu[0].user - cpu[0].system, 2),
            }  # fmt: skip
        except AssertionError as failed:
            return {"situation": situation.name, "failed": str(failed)[-600:]}
        finally:
            for command in commands:
                command.close()


def transfer(n_megabytes: int) -> dict[str, object]:
    """Send that much through a relay without a rate limit, between two peers that cannot punch; what it costs the relay."""
    folder = Path(tempfile.mkdtemp(prefix="legion-reach-"))
    commands: list[Command] = []
    with opened() as internet:
        try:
            node = internet.host("node")
            a, b = homes("symmetric", "symmetric")(internet)
            commands.append(Command(node, folder, "node", "legion_p2p.cli.bootstrap", "--identity", "key", "--relay", "1gbit"))
            line = commands[0].line_with("--initial-peers", node.address)
            address = next(word for word in line.split() if node.address in word)
            commands.append(Command(a, folder, "a", "tests.reach_worker", "a", address))
            commands[1].line_with('"relays": 1')
            commands.append(Command(b, folder, "b", "tests.reach_worker", "b", address, "--send", "a", str(n_megabytes)))
            commands[2].line_with('"sending"')
            before = psutil.Process(commands[0].process.pid).cpu_times()
            said = json.loads(commands[2].line_with('"sent"'))
            after = psutil.Process(commands[0].process.pid).cpu_times()
            spent_s = after.user + after.system - before.user - before.system
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
    parser.add_argument("--seconds", type=float, default=40.0, help="of training in each")
    options = parser.parse_args()
    if skip_reason():
        sys.exit(skip_reason())
    if options.transfer:
        print(json.dumps(transfer(options.transfer)), flush=True)
        return
    for situation in SITUATIONS:
        if options.only in situation.name:
            print(json.dumps(measure(situation, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
