"""Each thing has a name of its own: no two classes of the package share one."""

import ast
from collections import defaultdict

from tests.package_trees import PACKAGE, trees

# Classes that still share a name; the list only shrinks. `Run` stays: legion.Run and legion.aio.Run are one thing to a user. So
# does `LegionCallback`: that of a user's training library, of which there is one.
SHARED = {"LegionCallback", "Run"}

# The only modules that share a name. Each name means one thing, as several packages see it: core decides and services waits, net
# and sim are one port over sockets and in memory, config says it, store keeps it, and train, cli and web show it to users.
MIRRORED = {
    "access": "who may take part: the check, and the command",
    "blocks": "blocks by content id: in messages, and on disk",
    "bootstrap": "a node that only introduces peers, and its command",
    "checkpoint": "a stored checkpoint: as tensors, and the command that looks into it",
    "client": "the half of a messenger that asks",
    "common": "what the modules of one package share",
    "contacts": "addresses of peers to begin with",
    "control": "what a user asks of a running peer",
    "discovery": "finding the providers of a key",
    "evidence": "proof that an owner cheated: judged, as messages, and passed on",
    "fetch": "fetching by content id: a checkpoint, or a data set that is stored like one",
    "follower": "taking over an owner's updates: decided, and carried out",
    "gossip": "gossip",
    "handover": "what the next owner of a shard gets: decided, and carried out",
    "holders": "which members have which checkpoints: kept, and asked for",
    "identity": "the key of a peer: in memory, and on disk",
    "loop": "the training loop: of a run, and of a sharded run",
    "manners": "when a peer may train: chosen, decided, and looked at",
    "messenger": "requests and replies between peers",
    "muon": "Muon: the arithmetic, and the optimizer",
    "network": "what a peer has of the network",
    "owner": "the owner of a shard: decided, and carried out",
    "peer": "a peer: its settings, how it is put together, its command",
    "placement": "which peer owns what: shards, or the units of a sharded run",
    "plan": "how a model is cut: into shards, or into the units of a sharded run",
    "privacy": "differential privacy: the account, the noise, and how it is applied",
    "providers": "records of who provides what",
    "reachability": "who can be reached",
    "receipts": "receipts for pushes: judged, and kept",
    "regions": "regions: chosen, and in messages",
    "report": "a page as one file: how, and those of a run and of a simulation",
    "resume": "going on after a stop: the run, and the trainer",
    "run": "a run: its specification, and a user's part in it",
    "server": "the half of a messenger that answers",
    "service": "the service that runs the machines of one kind",
    "status": "what a peer says of itself: the record, and how it is filled in",
    "target": "the loss at which a run ends: decided, and looked at",
    "volume": "bytes sent and received in a month: kept, and counted",
}


def shared_names() -> dict[str, list[str]]:
    """Names of more than one class, and the modules of these."""
    where: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def test_no_two_classes_share_a_name() -> None:
    assert {name: modules for name, modules in shared_names().items() if name not in SHARED} == {}


def shared_modules() -> dict[str, list[str]]:
    """Names of modules that several packages have, and where."""
    where: dict[str, list[str]] = defaultdict(list)
    for path in trees():
        if path.stem != "__init__":
            where[path.stem].append(str(path.relative_to(PACKAGE)))
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def test_a_module_name_in_several_packages_means_one_thing() -> None:
    assert {name: modules for name, modules in shared_modules().items() if name not in MIRRORED} == {}
    assert MIRRORED.keys() - shared_modules().keys() == set()
