"""A peer that creates a run and trains in it with an ordinary loop until it is told to end: `other_peer.py KIND RUN`."""

import json
import sys
import threading
import time

import torch

import legion_p2p as legion
from tests.small_models import MODELS, parameters_digest
from tests.waiting import PATIENCE_S

kind, run = sys.argv[1:]
torch.set_num_threads(1)
make, loss_of = MODELS[kind]
model = make(1)
peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", status=False, lan=False, port_mapping=False, dashboard="no")
new_run = legion.NewRun(run, rounds=legion.Rounds(local_steps=2))
opt = legion.Optimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, new_run, peer=peer)
print(json.dumps({"event": "in_run", "addresses": opt.status.addresses}), flush=True)

may_end = threading.Event()


def listen() -> None:
    sys.stdin.readline()
    may_end.set()


threading.Thread(target=listen, daemon=True).start()
while not may_end.is_set():
    opt.zero_grad()
    loss_of(model).backward()
    opt.step()
    time.sleep(0.02)
common = opt.finish(together=True, timeout_s=PATIENCE_S)
largest = max(float(p.detach().abs().max()) for p in model.parameters())
print(json.dumps({"event": "ended", "common": common, "model": parameters_digest(model), "largest": largest}), flush=True)
sys.stdin.readline()  # serves on, as a peer does, until the other has what it wants
opt.close()
