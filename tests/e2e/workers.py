"""What a worker process does: `python tests/e2e/workers.py` reads one JSON command a line, and answers with JSON lines.

A command is {"do": name, ...arguments}; what it says meanwhile are {"event": ...} lines, and at its end {"done": result} or
{"failed": class of the exception, "text": ...}. While `train` runs, further lines on stdin tell it to stop, to report, and so on.
A worker can be used again for the next command: each opens a peer of its own, and closes it.
"""

import json
import queue
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import nn

import legion_p2p as legion
from legion_p2p.services.shards import owner as owner_module
from legion_p2p.services.shards import pusher as pusher_module
from legion_p2p.services.shards.replica import Combined
from legion_p2p.tensor.feedback import compress
from legion_p2p.tensor.flatten import digest
from tests.waiting import PATIENCE_S

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
LASTING = ("MainThread", "stdin", "Trio thread")  # idle worker threads of trio end by themselves after some seconds
ENDING_S = 20.0  # until a thread that has done its work has also ended, on a busy machine
SHAPES = ((1,), (1001,), (7, 13, 3))
QUIET = ("round.closed", "shard.fetched", "update.undelivered", "run.not_known_by")  # said only where asked for

_commands: "queue.Queue[dict[str, Any]]" = queue.Queue()
_say_lock = threading.Lock()


def say(**message: Any) -> None:
    line = json.dumps(message, default=str)
    with _say_lock:
        print(line, flush=True)


def told() -> dict[str, Any] | None:
    """The next line that came meanwhile."""
    try:
        return _commands.get_nowait()
    except queue.Empty:
        return None


def peer_with(*also: str, netem: str = "", search_s: float = 15.0, identity: str = "") -> legion.Peer:
    """A peer on loopback that says its events."""
    hidden = set(QUIET) - set(also)

    def on_event(event: legion.Event) -> None:
        if event.name not in hidden:
            say(**event.as_dict())

    limits = legion.Limits(netem=netem)
    return legion.Peer(identity=identity, listen=LISTEN, limits=limits, search_s=search_s, on_event=on_event)


def way_in(run: str, new_run: bool, rounds: dict[str, Any] | None = None) -> str | legion.NewRun:
    """The run to join, or to create."""
    if not new_run:
        return run
    fields = dict(rounds or {})
    return legion.NewRun(run, links=fields.pop("links", "auto"), rounds=legion.Rounds(**fields))


def tensors_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def hex_of(tensors: Any) -> str:
    return b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors).hex()


def model_of(width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def batch_of(seed: int, step: int, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, :1] * x[:, 1:2]).sin() + 0.5 * x[:, 2:3]


def loss_of(model: nn.Module, seed: int, step: int) -> torch.Tensor:
    x, y = batch_of(seed, step)
    return nn.functional.mse_loss(model(x), y)


def average(seed: int, run: str, peers: list[str], new_run: bool, n_peers: int, codec: str, **more: Any) -> dict[str, Any]:
    tensors = tensors_of(seed)
    result = legion.average(
        tensors, way_in(run, new_run), initial_peers=peers, n_peers=n_peers, codec=codec, peer=peer_with(), **more
    )
    assert [t.shape for t in result.tensors] == [t.shape for t in tensors]
    return {
        "bytes": hex_of(result.tensors),
        "digest": result.digest,
        "averaged_fraction": result.averaged_fraction,
        "failed": dict(result.failed),
        "sent_bytes": result.sent_bytes,
        "received_bytes": result.received_bytes,
    }


def data_parallel(rank: int, n: int, steps: int, run: str, peers: list[str], lr: float = 0.05) -> dict[str, Any]:
    """Synchronous training with SGD: what plain data parallelism would do."""
    model = model_of(seed=rank)  # each starts elsewhere: joining gives them the founder's
    rounds = {
        "local_steps": 1,
        "synchronous": True,
        "quorum": 1.0,
        "aggregation": "mean",
        "push_codec": "fp32",
        "update_codec": "fp32",
    }
    opt = legion.Optimizer(
        torch.optim.SGD(model.parameters(), lr=lr), model, way_in(run, rank == 0, rounds), initial_peers=peers, peer=peer_with()
    )
    with opt:
        say(event="in_run", peer_id=opt.status.peer_id)
        opt.wait_for_members(n, timeout_s=PATIENCE_S)
        fractions = []
        for step in range(steps):
            opt.zero_grad()
            loss_of(model, rank, step).backward()
            opt.step()
            last = opt.status.last_round
            fractions.append(last.averaged_fraction if last else None)
        own = hex_of(model.parameters())
        digest = opt.finish(together=True)
        return {"own": own, "digest": digest, "parameters": hex_of([opt.common_parameters()]), "fractions": fractions}


def train(
    rank: int,
    run: str,
    peers: list[str],
    steps: int = 0,
    n: int = 1,
    width: int = 16,
    step_s: float = 0.04,
    also: tuple[str, ...] = (),
    together: bool = True,
    new_run: bool | None = None,
    rounds: dict[str, Any] | None = None,
    netem: str = "",
    identity: str = "",
) -> dict[str, Any]:
    """Train until `steps`, or until told to stop; then serve until all are done. Lines on stdin: stop, report, leave, raise."""
    model = model_of(width, seed=rank)
    new_run = rank == 0 if new_run is None else new_run
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    peer = peer_with(*also, netem=netem, identity=identity)
    with ExitStack() as stack:
        opt = stack.enter_context(legion.Optimizer(inner, model, way_in(run, new_run, rounds), initial_peers=peers, peer=peer))
        status = opt.status
        marks = {s.shard: (s.version, s.digest) for s in status.shards}
        own = [
            (version, digest(opt.local.view.read_slice(*bounds)).hex())
            for version, bounds in zip(opt.local.versions, opt.local.bounds, strict=True)
        ]
        say(event="in_run", peer_id=status.peer_id, addresses=status.addresses, marks=marks, own=own)
        if n > 1:
            opt.wait_for_members(n, timeout_s=PATIENCE_S)
        began, stepped, asked = time.perf_counter(), 0, None
        while not steps or stepped < steps:
            opt.zero_grad()
            loss = loss_of(model, rank, stepped)
            loss.backward()
            opt.step()
            stepped += 1
            if (asked := told()) is not None:
                if asked["say"] == "report":
                    say(event="report", **report_of(opt))
                elif asked["say"] == "raise":
                    raise RuntimeError("told to")
                else:
                    break
            if step_s:
                time.sleep(step_s)
        wall_s = time.perf_counter() - began
        trained = {"steps": stepped, "wall_s": wall_s, "blocked_fraction": opt.blocked_fraction, "loss": float(loss.detach())}
        if asked is not None and asked["say"] == "leave":
            return trained
        common = opt.finish(together=together, timeout_s=PATIENCE_S)
        return {**trained, **report_of(opt), "digest": common, "last_failure": opt.last_failure}


def train_and_publish_lies(**how: Any) -> dict[str, Any]:
    """`train`, by a peer that patches its own program: as an owner it turns each update around, and keeps books that fit it."""
    combine_arrived = owner_module.combine_arrived

    def turned_around(reference: torch.Tensor, *rest: Any) -> Combined:
        made = combine_arrived(reference, *rest)
        if made.payload is None:
            return made
        codec = rest[5]
        sent = codec.decode(made.payload, reference.numel())
        packed = compress(codec, None, -sent)
        wanted = sent if made.owner_residual is None else sent + made.owner_residual
        away = reference - packed.sent
        changed = replace(made, payload=packed.data, reference=away, digest=digest(away), owner_residual=wanted - packed.sent)
        say(event="lied")
        return changed

    owner_module.combine_arrived = turned_around
    return train(**how)


def train_and_push_lies(**how: Any) -> dict[str, Any]:
    """`train`, by a peer that patches its own program: as a member it pushes its changes the other way round."""
    pack = pusher_module.pack

    def turned_around(change: Any, kept: Any, codec: Any, *rest: Any) -> Any:
        payload, kept = pack(change, kept, codec, *rest)
        return codec.encode(-codec.decode(payload, change.base.numel())), kept

    pusher_module.pack = turned_around
    return train(**how)


def report_of(opt: Any) -> dict[str, Any]:
    status = opt.status
    return {
        "peer_id": status.peer_id,
        "step": status.step,
        "members": {m.peer_id: m.liveness for m in status.members},
        "versions": [s.version for s in status.shards],
        "owners": [s.owner for s in status.shards],
        "standbys": [s.standby for s in status.shards],
        "digests": [s.digest for s in status.shards],
        "errors": [(e.event, e.text) for e in status.errors],
        "sent_bytes": status.sent_bytes,
        "last_round": None if status.last_round is None else str(status.last_round),
    }


def join(run: str, peers: list[str], width: int = 16, extra: int = 0, search_s: float = 10.0) -> dict[str, Any]:
    """Join, and leave again."""
    model = model_of(width)
    if extra:
        model.append(nn.Linear(1, extra))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with legion.Optimizer(inner, model, run, initial_peers=peers, peer=peer_with(search_s=search_s)) as opt:
        return {"digest": opt.common_digest(), "members": [m.peer_id for m in opt.status.members]}


def lone(steps: int) -> dict[str, Any]:
    """Losses of a swarm of one, and of plain torch."""

    def losses(wrap: Any) -> tuple[list[float], float]:
        model = model_of(seed=3)
        opt = wrap(torch.optim.AdamW(model.parameters(), lr=0.01), model)
        found, began = [], time.perf_counter()
        for step in range(steps):
            opt.zero_grad()
            loss = loss_of(model, 5, step)
            loss.backward()
            opt.step()
            found.append(float(loss.detach()))
        return [*found, *(float(p.detach().sum()) for p in model.parameters())], time.perf_counter() - began

    plain, plain_s = losses(lambda inner, model: inner)
    opts = []

    def wrap(inner: Any, model: nn.Module) -> Any:
        new_run = legion.NewRun(f"alone/{time.time()}", rounds=legion.Rounds(local_steps=3))
        opts.append(legion.Optimizer(inner, model, new_run, peer=legion.Peer(listen=LISTEN)))
        return opts[0]

    swarm, swarm_s = losses(wrap)
    with opts[0] as opt:
        flushed = opt.flush(30)
        return {
            "plain": plain, "swarm": swarm, "plain_s": plain_s, "swarm_s": swarm_s, "blocked": opt.blocked_fraction,
            "versions": [s.version for s in opt.status.shards], "flushed": flushed,
        }  # fmt: skip


def sharded(rank: int, n: int, steps: int, run: str, peers: list[str]) -> dict[str, Any]:
    """Training in a sharded run; each step is said. Waits for `n` members at the beginning, whoever is left goes on."""
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    rounds = legion.Rounds(push_codec="fp32", update_codec="fp32", quorum=1.0)
    new_run = legion.NewRun(run, sharding="full", rounds=rounds, inner=legion.Inner(warmup_steps=0))
    peer = msgspec.structs.replace(peer_with(), status=False)  # no key for legion-ctl is left behind
    with (
        legion.create(new_run, model, peer=peer, initial_peers=peers)
        if rank == 0
        else legion.join(run, initial_peers=peers, peer=peer) as joined
    ):
        say(event="in_run", peer_id=joined.status().peer_id)
        shard = joined.shard(model)
        shard.wait_for_members(n)
        for step in range(steps):
            x, _ = batch_of(rank, step)
            x = x.repeat(1, 16)[:, :16]
            (model(x) - x).square().mean().backward()
            shard.step()
            say(event="stepped", step=step + 1, at=time.time())
            time.sleep(0.05)
        joined.finish(together=True)
        shard.gather()
        return {"parameters": hex_of(model.parameters()), "run_step": shard.step_of_run}


def leftovers() -> dict[str, Any]:
    """What a command has left behind in this process; what is about to end is given time to."""
    import psutil

    me = psutil.Process()
    deadline = time.monotonic() + ENDING_S
    while True:
        left = {
            # Idle worker threads of trio end by themselves after some seconds.
            "threads": sorted(
                t.name for t in threading.enumerate() if not t.name.startswith(("MainThread", "stdin", "Trio thread"))
            ),
            "sockets": [str(c.laddr) for c in me.net_connections(kind="inet")],
            "children": [c.pid for c in me.children(recursive=True)],
        }
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def main() -> None:
    torch.set_num_threads(1)

    def read() -> None:
        for line in sys.stdin:
            _commands.put(json.loads(line))
        _commands.put({"do": "end"})

    threading.Thread(target=read, name="stdin", daemon=True).start()
    say(event="started")
    while (command := _commands.get()).get("do") != "end":
        if "do" not in command:  # for a `train` that had ended already
            continue
        name = command.pop("do")
        try:
            say(done=globals()[name](**command))
        except Exception as failed:
            say(failed=type(failed).__name__, text=str(failed))


if __name__ == "__main__":
    main()
