"""The torch optimizer that trains in a swarm: the user's own one inside, the peer beside it.

`step()` lets the inner optimizer step, takes in what has arrived from the swarm, and every so many steps hands the local change
over. It never waits for the network, except in a synchronous run, where it waits for the round by choice.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from legion_p2p.core.pace import Ewma
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RoundSpec
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.observe.status import Status
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.run import Run
from legion_p2p.services.run.status import status_of
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.train.bridge import PeerThread

REPORT_EVERY_S = 0.5  # how often the training thread tells the network's what it has done
WAIT_SLICE_S = 0.2  # so that Ctrl+C gets through while waiting


def trainable(model: nn.Module | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The parameters that a run is about: those that require gradients, in the model's order, tied ones once."""
    named = model.named_parameters() if isinstance(model, nn.Module) else model
    return [(name, p) for name, p in named if p.requires_grad]


def param_specs(view: FlatView) -> tuple[ParamSpec, ...]:
    """Names and shapes as they stand in a run's specification."""
    return tuple(ParamSpec(name, shape) for name, shape in zip(view.names, view.shapes, strict=True))


class SwarmOptimizer(torch.optim.Optimizer):
    """Wraps `inner`, beside a peer that is in its run already. See `legion_p2p.Optimizer` for the public face.

    It is a torch.optim.Optimizer: param_groups, state, state_dict, zero_grad, hooks and lr schedulers are the inner optimizer's.
    """

    def __init__(self, inner: torch.optim.Optimizer, view: FlatView, thread: PeerThread, *, tokens_per_step: int = 1) -> None:
        # No super().__init__: it would copy the groups, and the inner optimizer should stay the one that holds them.
        self.inner = inner
        self.tokens_per_step = tokens_per_step
        self._step_s = Ewma(0.1)
        self._blocked_s = 0.0
        self._started_at = time.perf_counter()
        self._last_at: float | None = None
        self._reported_at = 0.0
        self._extra = Progress()
        self._thread = thread
        engine = self._thread.engine
        plan = engine.plan
        rounds = engine.spec.round if engine.spec else RoundSpec()
        exact = all(p.dtype == torch.float32 for p in _unique(inner))
        self.local = LocalCopy(view, [plan.bounds(shard) for shard in range(plan.n_shards)], exact, rounds.mixing)
        self.synchronous = rounds.synchronous
        self._trainee = LocalTrainer(self.local, engine.mailbox, streaming=rounds.streaming and not rounds.synchronous)
        self._trainee.take_in()

    # torch.optim.Optimizer, by way of the inner one

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def __getattr__(self, name: str) -> Any:
        # The hook tables and flags that torch keeps on an optimizer live on the inner one.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # A fused inner optimizer would take the scale from attributes that GradScaler sets on this one, and not find them.
        return False

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError("a swarm optimizer cannot be copied or pickled, for it has a live peer: use its state_dict()")

    def __repr__(self) -> str:
        return f"legion_p2p.Optimizer({self.inner!r})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise UsageError("the parameters of a run are fixed: give all of them to the inner optimizer before wrapping it")

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One local step; then take in what has come, and hand in the local change where it is time.

        Raises: ClosedError, if the peer has left or its thread has failed.
        """
        loss = self.inner.step() if closure is None else self.inner.step(closure)
        began = time.perf_counter()
        self._check_open()
        self._trainee.stepped(self.tokens_per_step)
        self._trainee.take_in()
        if due := self._trainee.due(self._engine.local_steps):
            self._push(due)
            if self.synchronous:
                self._wait_for_round()
        if loss is not None and closure is not None:
            self.note(loss=float(loss.detach() if isinstance(loss, Tensor) else loss))
        self._account(began)
        return loss

    # what a training loop may use

    @property
    def steps(self) -> int:
        """Local steps made."""
        return self._trainee.steps

    @property
    def tokens(self) -> int:
        return self._trainee.tokens

    @property
    def last_failure(self) -> str | None:
        """Why the last contribution that failed did."""
        return self._trainee.last_failure

    @property
    def status(self) -> Status:
        """What the peer knows now."""
        return self._thread.call(status_of, self._engine)

    @property
    def blocked_s(self) -> float:
        """Seconds that step() has spent on the swarm instead of training."""
        return self._blocked_s

    @property
    def blocked_fraction(self) -> float:
        """Share of the wall time that step() spent on the swarm instead of training."""
        return self._blocked_s / max(1e-9, time.perf_counter() - self._started_at)

    def note(self, *, loss: float | None = None, **more: Any) -> None:
        """Tell the swarm's displays what only the loop knows: the loss, and for trainers any other field of Progress."""
        if loss is not None:
            more["loss"] = loss
        self._extra = msgspec.structs.replace(self._extra, **more)

    def speed(self) -> dict[str, float]:
        """Tokens and seconds per step, smoothed."""
        step_s = self._step_s.value or 0.0
        return {"tokens_per_s": round(self.tokens_per_step / step_s, 1) if step_s > 0 else 0.0, "step_s": round(step_s, 6)}

    def wait_briefly(self) -> None:
        """Let up to WAIT_SLICE_S pass, taking in what comes."""
        self._wait_once()
        if self._engine.mailbox.closed is None:
            time.sleep(0.02)

    def wait_for_members(self, n: int, timeout_s: float | None = None) -> None:
        """Wait until the run has `n` members that train, or are about to, as this one says from now on.

        From here on the others' rounds wait for this peer, so that not even the first one closes without it.

        Raises: UsageError after `timeout_s`; ClosedError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._check_open()
        self.report(training=True)
        while (have := self._thread.call(self._count_training)) < n:
            if deadline is not None and time.monotonic() > deadline:
                self.report()
                raise UsageError(f"{have} members after {timeout_s} s, waited for {n}")
            self._wait_once()
            time.sleep(0.02)
            self._check_open()

    def flush(self, timeout_s: float | None = None, *, last: bool = False) -> bool:
        """Push what was trained since the last push and wait until an update contains it; False after `timeout_s`.

        `last`: no training follows, so what compression left out before goes with it as far as the connection allows.
        """
        if last:
            self._thread.post(self._engine.push_last)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._thread.alive and self._engine.mailbox.closed is None:
            self._trainee.take_in()
            if not self._trainee.busy:
                if self._trainee.all_handed_in:
                    return True
                self._push()
            if deadline is not None and time.monotonic() > deadline:
                return False
            self._wait_once()
        return False

    def finish(self, *, together: bool = False, timeout_s: float | None = None) -> str:
        """End training: push the rest; where `together`, serve on until every member is done. The common model's digest."""
        self.flush(timeout_s, last=True)
        self.report(training=False, done=True)
        while together and self._thread.alive and not self._thread.call(self._engine.all_done):
            self._wait_once()
        self._trainee.take_in()
        return self.common_digest()

    @property
    def all_done(self) -> bool:
        """Every member has trained all it wanted to, and all hold the same versions."""
        return self._thread.call(self._engine.all_done)

    def common_digest(self) -> str:
        """Digest of the region's common model: equal at two peers means equal bits."""
        return self._thread.call(self._engine.common_digest)

    def common_parameters(self) -> Tensor:
        """The region's common model, flat: 1-D fp32 on the CPU."""
        return self._thread.call(self._engine.common_parameters)

    def report(self, **changes: Any) -> None:
        """Tell the network's thread what this one has done, now."""
        elapsed = max(1e-9, time.perf_counter() - self._started_at)
        step_s = self._step_s.value or 0.0
        rate = self.tokens_per_step / step_s if step_s > 0 else self.tokens / elapsed
        base = {"step": self.steps, "tokens": self.tokens, "tokens_per_s": rate, "step_s": step_s}
        base["blocked_fraction"] = self.blocked_fraction
        base["training"] = self.steps > 0
        self._extra = msgspec.structs.replace(self._extra, **(base | changes))
        self._thread.post(self._engine.report, self._extra)

    def close(self) -> None:
        """Leave the run in order, which takes less than 2 s where the model is small. What was trained since the last push, and
        large shards that go to their next owners, are sent in the background; the end of the script waits for that. The inner
        optimizer goes on without a swarm.
        """
        if self._thread.alive and self._engine.mailbox.closed is None:
            self._thread.post(self._engine.push_last)
            self._push()
        self._thread.close()

    def __enter__(self) -> "SwarmOptimizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # inner steps

    @property
    def _engine(self) -> Run:
        return self._thread.engine

    def _count_training(self) -> int:
        return sum(a.ready and (a.training or a.done) for a in self._engine.members.everyone())

    def _check_open(self) -> None:
        reason = self._engine.mailbox.closed
        if reason is not None:
            raise ClosedError(reason)
        if not self._thread.alive:
            self._thread.post(lambda: None)  # raises for a fork, by name
            raise ClosedError("the network's thread has ended")

    def _push(self, shards: Sequence[int] | None = None) -> None:
        """Hand in the changes of `shards` (all) whose last one is settled; the others' go on growing until the next time."""
        changes = self._trainee.hand_in(shards, warming_up=getattr(self.inner, "warming_up", False))
        if changes:
            self._thread.post(self._engine.contribute, changes)

    def _wait_for_round(self) -> None:
        while self._trainee.busy:
            self._wait_once()
            self._check_open()

    def _wait_once(self) -> None:
        if self._thread.alive:  # not in a forked process, where the mailbox's lock may be held for ever
            self._engine.mailbox.wait(WAIT_SLICE_S)
            self._trainee.take_in()

    def _account(self, began: float) -> None:
        now = time.perf_counter()
        self._blocked_s += now - began
        if self._last_at is not None:
            self._step_s.add(max(1e-6, began - self._last_at))
        self._last_at = now
        if now - self._reported_at >= REPORT_EVERY_S or self.steps == 1:
            self._reported_at = now
            self.report()


def _unique(inner: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in inner.param_groups for p in group["params"]]
