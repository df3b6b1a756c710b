"""A user's script: no `with`, no close, nothing that a person would not write. `loop.py HOW RUN ADDRESS`.

HOW: end, exit, raise, forever; or forever-quietly, which never calls step() again after the first ones.
"""

import json
import sys
import time

import torch
from torch import nn

import legion_p2p as legion

how, run, address = sys.argv[1:4]
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
opt = legion.Optimizer(
    torch.optim.SGD(model.parameters(), lr=0.01),
    model,
    run=run,
    initial_peers=[address],
    peer=legion.Peer(listen="/ip4/127.0.0.1/tcp/0"),
)
status = opt.status
print(json.dumps({"event": "in_run", "peer_id": status.peer_id}), flush=True)
for _ in range(20) if not how.startswith("forever") else iter(int, 1):
    x = torch.randn(8, 8)
    nn.functional.mse_loss(model(x), x[:, :1]).backward()
    opt.step()
    opt.zero_grad()
    time.sleep(0.02)
    if opt.steps == 10:
        print(json.dumps({"event": "tenth"}), flush=True)
        sys.stdin.readline()
        if how == "exit":
            sys.exit(7)
        if how == "raise":
            raise ValueError("a bug of the user's")
        if how == "forever-quietly":
            while True:
                time.sleep(60)
print(json.dumps({"event": "end"}), flush=True)
