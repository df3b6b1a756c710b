"""What differential privacy of all members' pushes costs in loss.

    python benchmarks/privacy.py
    python benchmarks/privacy.py --peers 5 20 --noise 0.5 2 --clip 0.03 0.1 0.3

The real engine in virtual time, on the task of benchmarks/churn.py: 240 parameters, a round in 5 s, 300 s. A row has the final
loss divided by that of the same run without noise, with the best length of --clip, and the epsilon that each member spends.
"""

import argparse
import statistics
import time

import torch
import trio
from churn import NUMEL, Task, run

from legion_p2p.config import PeerConfig
from legion_p2p.core.privacy import Privacy
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.run.status import status_of
from legion_p2p.sim.swarm import Swarm

HORIZON_S = 300.0  # virtual
STEP_S = 0.5
DELTA = 1e-6


async def outcome(seed: int, n: int, privacy: Privacy | None) -> tuple[float, float | None]:
    """The mean of three looks at the end, and the epsilon of one member."""
    task = Task(seed)
    spec = RoundSpec(
        local_steps=10, push_codec="int8", update_codec="int8", dense_codec="", shard_elements=60, aggregation="mean"
    )
    config = PeerConfig(privacy=privacy)
    async with Swarm(
        seed=seed, numel=len(task.start), start=task.start, local_step=task.local_step, round=spec, step_s=STEP_S, config=config
    ) as swarm:
        members = [await swarm.add(f"p{i}") for i in range(n)]
        await trio.sleep(HORIZON_S)
        losses = []
        for _ in range(3):
            await trio.sleep(5)
            losses.append(task.loss(members[0].engine.common_parameters()))
        spent = status_of(members[0].engine).privacy
        return statistics.mean(losses), None if spent is None else spent.epsilon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--clip", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    print(f"{NUMEL} parameters")
    print("| members | noise | best clip | loss beside none | epsilon |")
    print("|---|---|---|---|---|")
    for n in args.peers:
        plain, _ = run(outcome, args.seed, n, None)
        for noise in args.noise:
            tried = [(run(outcome, args.seed, n, Privacy(noise, clip, DELTA)), clip) for clip in args.clip]
            (loss, epsilon), clip = min(tried)
            print(f"| {n} | {noise:g} | {clip:g} | {loss / plain:.2f} | {epsilon:.1f} |", flush=True)
    print(f"{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
