"""The lone peer that the demo's swarm is compared with, and the calibration before both.

Plain torch, no swarm: the same model from the same first weights, the same optimizer and learning-rate schedule, windows drawn
from the same text in the same way. What it has seen after as many steps is one peer's share.
"""

import argparse
import json
import math
import os
import time
from typing import Any

import msgspec
import torch

from legion_p2p.config import NewRun, read_new_run
from legion_p2p.core.chunks import ChunkLedger
from legion_p2p.core.identity import Identity
from legion_p2p.core.learning_rate import learning_rate
from legion_p2p.train.batches import ChunkedWindows, default_chunk_tokens, n_chunks_of
from legion_p2p.train.corpus import Corpus, open_text
from legion_p2p.train.described import spec_of
from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, evaluate
from legion_p2p.train.inner import inner_optimizer
from legion_p2p.train.loop_report import STEP_EVENT_EVERY_S
from legion_p2p.train.niceness import NICE, lower_priority

WARM_UP_STEPS = 3  # torch plans its kernels in the first ones
PEER_WORK = 1.5  # processor time of a peer's step beside one of plain torch: measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("--calibrate", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--evals", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lone = Lone(read_new_run(options.spec), options.seed, options.times)
    if options.calibrate:
        say("calibrated", step_s=lone.seconds_per_step(options.calibrate))
    else:
        give_way(options.times)
        lone.train(options.steps, options.evals)


def give_way(times: int) -> None:
    """Give way to other programs, as the training of a peer does, and share the processors with the peers by the work that there
    is to do, so that all are done at about the same time. Each level of niceness is a quarter less."""
    if hasattr(os, "nice"):
        os.nice(max(0, NICE + round(math.log(PEER_WORK / times, 1.25))))
    else:
        lower_priority()


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "at": time.time(), **fields}), flush=True)


class Lone:
    """A model, its optimizer and its text."""

    def __init__(self, new_run: NewRun, seed: int, times: int = 1) -> None:
        """`times`: how many peers' windows it reads in each step."""
        spec, model = spec_of(new_run)
        self.model = model
        self.inner = msgspec.structs.replace(spec.inner, batch=times * spec.inner.batch)
        self.corpus: Corpus = open_text(spec.data, self.model.context)
        self.opt = inner_optimizer(self.inner, self.model.module)
        n_tokens, context = len(self.corpus.train), self.model.context
        chunk_tokens = default_chunk_tokens(n_tokens, context)
        ledger = ChunkLedger(n_chunks_of(n_tokens, chunk_tokens), Identity.generate().peer_id)
        self.windows = ChunkedWindows(self.corpus.train, chunk_tokens, context, self.inner.batch, seed, ledger)

    def step(self, number: int) -> float:
        """One step of the training loop of `legion-peer`, without a swarm; the loss."""
        for group in self.opt.param_groups:
            group["lr"] = learning_rate(self.inner, number, number)
        x, y = next(self.windows)
        loss = self.model.loss(x, y)
        torch.autograd.backward(loss)
        if self.inner.clip:
            torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), self.inner.clip)
        self.opt.step()
        self.opt.zero_grad()
        return float(loss.detach())

    def seconds_per_step(self, for_s: float) -> float:
        for number in range(WARM_UP_STEPS):
            self.step(number)
        began, n_steps = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < for_s or n_steps < 2:
            self.step(n_steps)
            n_steps += 1
        return spent / n_steps

    def train(self, n_steps: int, n_evals: int) -> None:
        began = noted_at = time.perf_counter()
        eval_s, smoothed = 0.0, None
        tokens_per_step = self.inner.batch * self.model.context
        every = max(1, n_steps // n_evals) if n_evals else 0
        for number in range(n_steps):
            if every and number % every == 0:
                eval_began = time.perf_counter()
                say("eval", step=number, val_loss=round(evaluate(self.model, self.corpus, EVAL_WINDOWS), 5))
                eval_s += time.perf_counter() - eval_began
            loss = self.step(number)
            smoothed = loss if smoothed is None else 0.9 * smoothed + 0.1 * loss
            now = time.perf_counter()
            if now - noted_at >= STEP_EVENT_EVERY_S or number == 0:
                noted_at = now
                rate = (number + 1) * tokens_per_step / max(1e-9, now - began - eval_s)
                say("step", step=number + 1, loss=round(smoothed, 4), tokens_per_s=round(rate, 1))
        train_s = time.perf_counter() - began - eval_s
        say("eval", step=n_steps, val_loss=round(evaluate(self.model, self.corpus, EVAL_WINDOWS), 5))
        say(
            "lone.finished",
            step=n_steps,
            tokens=n_steps * tokens_per_step,
            val_loss=evaluate(self.model, self.corpus, FINAL_EVAL_WINDOWS),
            train_s=round(train_s, 3),
            tokens_per_s=round(n_steps * tokens_per_step / train_s, 1),
        )


if __name__ == "__main__":
    main()
