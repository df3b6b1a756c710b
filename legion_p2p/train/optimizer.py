"""The torch optimizer that trains in a swarm: the user's own one inside, the peer beside it.

`step()` lets the inner optimizer step, applies the updates that have arrived from the swarm, and hands over the local change once
a round. It never waits for the network, except in a synchronous run, where it waits for the round by choice.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from legion_p2p.config import NewRun, Peer, RunChoice
from legion_p2p.config.fields import argument
from legion_p2p.config.old_names import OPTIMIZER_ARGUMENTS, explains
from legion_p2p.core.control import Wish
from legion_p2p.core.plan import check_fit
from legion_p2p.core.roles import Role
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.observe.status import Status
from legion_p2p.services.run.status import status_of
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.arguments import Model, checked_inner, model_view, must_hold, must_train
from legion_p2p.train.bridge import PeerAccess
from legion_p2p.train.control import Control
from legion_p2p.train.entering import creation_of, enter, entry_of
from legion_p2p.train.inner_guard import InnerGuard
from legion_p2p.train.inner_list import as_one
from legion_p2p.train.live_parameters import check_free
from legion_p2p.train.parameters import ModelView, Named
from legion_p2p.train.participation import Participation
from legion_p2p.train.ranks import RankGroup, RankState, SameModel, collective
from legion_p2p.train.sharing import Make, Reader
from legion_p2p.train.values import MAX_TOKENS_PER_STEP, deadline_after, loss_in, whole

OF_THE_PEER = frozenset({"_part", "local", "synchronous"})
"""What only the rank has that has the peer."""


class Optimizer(torch.optim.Optimizer):
    """A torch optimizer that trains `model` together with all other members of a run.

        opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])

    It is used like the optimizer inside it: step(), zero_grad(), closures, state_dict(), hooks and lr schedulers are the inner
    optimizer's. Joining replaces the model's parameters by the run's. Where `run` is a NewRun, it is created instead, and this
    model's parameters are its start.

    Args:
        inner: the optimizer that makes the local steps, or a list of several. It holds all trainable parameters of `model`.
        model: a module, or its (name, parameter) pairs. The parameters that require gradients are the run's.
        run: name or id of the run to join; or a NewRun("name"), to create it.
        initial_peers: addresses of any peers or bootstrap nodes, or "@file"; one that answers is enough.
        peer: how this peer behaves on the network; the default suits a machine at home.
        tokens_per_step: weight of one local step relative to those of other members, such as tokens in a batch; of several
            ranks, that of one rank's batch.

    Several ranks of torch.distributed are one peer: each makes this optimizer around its DistributedDataParallel or FSDP2 model,
    and all call the same methods in the same order. Rank 0 has the peer: see docs/several-gpus.md.

    Raises: NoContactError, if no initial peer answers; UnknownRunError; RunExistsError; IncompatibleModelError, naming the first
    parameter that differs; UsageError, naming the argument.
    """

    inner: torch.optim.Optimizer

    @explains(OPTIMIZER_ARGUMENTS)
    def __init__(
        self,
        inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: Model,
        run: str | NewRun,
        *,
        initial_peers: Iterable[str] = (),
        peer: Peer = Peer(),
        tokens_per_step: int = 1,
    ) -> None:
        entry = entry_of("Optimizer", run, initial_peers)
        argument("Optimizer(peer=...)", Peer, peer)
        must_train(Role(peer.role))
        one = as_one(checked_inner(inner))
        own = model_view(model)
        check_wrappable(one, FlatView(own.trained))
        tokens = whole(tokens_per_step, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)
        self._ranks = RankGroup.of_this_job()
        # No super().__init__: it would copy the groups, and the inner optimizer should stay the one that holds them.
        self.inner = one
        self._tokens_per_step = tokens
        if self._ranks is not None:
            own.fixed()  # while all ranks are here
            self._same_model = SameModel(own)
            self._guard = InnerGuard(one, self._same_model.view, own.name_of)
        self._join(entry, peer, own)

    @collective
    def _join(self, entry: RunChoice, peer: Peer, own: ModelView) -> None:
        creation = None if entry.new_run is None else creation_of(entry.new_run, own, self.inner, self._view_of)
        thread = enter(entry, peer, creation=creation, params=own.fit)
        try:
            if self._ranks is not None:
                self._guard.release()
            self._attach(self.inner, own, thread, self._tokens_per_step)
        except BaseException:  # Ctrl+C as well: the peer would stay in the run
            thread.close()
            raise

    @classmethod
    def beside(
        cls,
        thread: PeerAccess,
        inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: Model,
        tokens_per_step: int = 1,
        obeys: bool = True,
    ) -> "Optimizer":
        """One for a peer that is in its run already, which leaves with it.

        `obeys`: `step()` does what the peer's user asks meanwhile; False: the caller looks at `wish` itself.

        Raises: IncompatibleModelError; UsageError.
        """
        must_train(thread.engine.role)
        one = as_one(checked_inner(inner))
        own = model_view(model)
        spec = thread.engine.spec
        check_fit(own.fit(spec), spec.params)
        opt = cls.__new__(cls)
        opt._ranks = None
        opt._attach(one, own, thread, tokens_per_step, obeys)
        return opt

    def _attach(
        self, inner: torch.optim.Optimizer, own: ModelView, thread: PeerAccess, tokens_per_step: int, obeys: bool = True
    ) -> None:
        view = self._view_of(own.in_run(thread.engine.spec.round.untrained))
        self.inner = inner
        check_wrappable(inner, view)
        self._tokens_per_step = whole(tokens_per_step, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)
        self._guard = InnerGuard(inner, view, own.name_of)
        self._part = Participation(thread, view, inner, self._guard, self._n_tokens, obeys=obeys)
        self.local = self._part.local
        self.synchronous = self._part.synchronous
        # A notebook's cell that runs again drops the previous optimizer: its peer leaves.
        self._dropped = weakref.finalize(self, _leave, thread, self._guard)
        self._dropped.atexit = False  # which the bridge sees to, and it waits

    # torch.optim.Optimizer, by way of the inner one

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # The hook tables and flags that torch keeps on an optimizer live on the inner one.
        if name in ("inner", "_guard", "_ranks"):
            raise AttributeError(name)
        if self._ranks is not None and name in OF_THE_PEER:
            raise UsageError(f"rank 0 has the peer, and this is rank {self._ranks.rank}: what it knows is asked for there")
        return self._guard.attribute(name)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # A fused inner optimizer would take the scale from attributes that GradScaler sets on this one, and not find them.
        return False

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError("a swarm optimizer cannot be copied or pickled, because it has a live peer: use its state_dict()")

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

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One local step; then take in what has come, and hand in the local change where it is time.

        Where the peer's user has paused it (legion-ctl, `run.control`), it returns when training goes on.

        Raises: ClosedError, if the peer has left, from the failure that made it leave, or if its user has ended training and the
        loop did not look at `should_stop`; UsageError, if something moves the parameters that the run does not see: see
        `train.guard`.
        """
        if self._ranks is None:
            self._part.begin_step()
        result = self._guard.step(closure)
        self._stepped(None if closure is None else loss_in(result))
        return result

    @collective
    def _stepped(self, loss: float | None) -> None:
        """The inner optimizer has stepped."""
        if self._ranks is not None:
            self._part.begin_step()
        self._part.stepped(loss)

    # what a training loop may use

    @property
    def tokens_per_step(self) -> int:
        """Weight of one local step relative to those of other members. A loop whose batches differ sets it before each step."""
        return self._tokens_per_step

    @tokens_per_step.setter
    def tokens_per_step(self, tokens: Any) -> None:
        self._tokens_per_step = whole(tokens, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)
        if self._leads:
            self._part.n_tokens = self._n_tokens

    @property
    def _leads(self) -> bool:
        """This process has the peer."""
        return self._ranks is None or self._ranks.leads

    @property
    def _n_tokens(self) -> int:
        """Those of a step of all ranks."""
        return self._tokens_per_step * (1 if self._ranks is None else self._ranks.size)

    @property
    def steps(self) -> int:
        """Local steps made."""
        return self._part.trainer.steps if self._ranks is None or self._ranks.leads else self._ranks.state.steps

    @property
    def run_step(self) -> int:
        """The run's step, for schedules: what the run had come to when this peer made its first step, and its own steps since."""
        if self._ranks is not None and not self._ranks.leads:
            return self._ranks.state.run_step
        return self._part.run_step()

    @property
    def tokens(self) -> int:
        return self._part.trainer.tokens if self._ranks is None or self._ranks.leads else self._ranks.state.tokens

    @property
    def last_failure(self) -> str | None:
        """Why the last contribution that failed did."""
        return self._part.trainer.last_failure

    @property
    def status(self) -> Status:
        """What the peer knows now."""
        return self._part.thread.call(status_of, self._part.engine)

    @property
    def blocked_s(self) -> float:
        """Seconds that step() has spent on the swarm instead of training."""
        return self._part.clock.blocked_s

    @property
    def blocked_fraction(self) -> float:
        """Share of the wall time that step() spent on the swarm instead of training."""
        return self._part.clock.blocked_fraction(time.perf_counter())

    def note(self, *, loss: Any = None, **more: Any) -> None:
        """Tell the swarm's displays what only the loop knows: the loss (a number, or a tensor of one), and for trainers any other
        field of Progress.

        Of several ranks, that of rank 0 counts. Raises: UsageError, if it is no finite number.
        """
        if self._leads:
            self._part.note(**more if loss is None else more | {"loss": loss})

    def share(self, make: Make[Reader]) -> Reader:
        """A reader of text that leaves to other members what they read: each reads its own part, and no two the same.

            data = opt.share(lambda me, members: StreamedWindows(sources, tokenizer, 512, 8, me, members))

        `make` is given this peer's id, and a function that tells which peers train. What the reader has taken goes with this
        peer's announcements from the next step() on. Raises: ClosedError.
        """
        return self._part.share(make)

    def speed(self) -> dict[str, float]:
        """Tokens and seconds per step, smoothed."""
        return self._part.clock.speed(self._n_tokens)

    @property
    def control(self) -> Control:
        """Pauses this peer, limits it, or ends its training, from any thread."""
        control = Control()
        control.attach(self._part.thread)
        return control

    @property
    def wish(self) -> Wish:
        """What the peer's user wants training to do now: see `legion_p2p.core.control`."""
        return self._part.wish

    @property
    def should_stop(self) -> bool:
        """Its user has ended training here, and `step()` has handed in what was trained; or the peer has left: a loop ends."""
        return self._part.has_to_stop if self._ranks is None else self._ranks.state.should_stop

    @property
    def target_reached(self) -> bool:
        """The run has come to the target of its specification, and ends."""
        return self._part.engine.target.reached if self._ranks is None else self._ranks.state.target_reached

    @collective
    def rest(self) -> None:
        """Let up to WAIT_SLICE_S of a pause pass: what was trained is handed in, and what comes is taken in."""
        self._part.rest()

    @collective
    def wait_briefly(self) -> None:
        """Let up to WAIT_SLICE_S pass, taking in what comes."""
        self._part.wait_briefly()

    @collective
    def wait_for_members(self, n: Any, timeout_s: Any = None) -> None:
        """Wait until the run has `n` members that train, or are about to, as this one says from now on.

        From here on the others' rounds wait for this peer, so that not even the first one closes without it.

        Raises: UsageError after `timeout_s`; ClosedError.
        """
        self._part.wait_for_members(whole(n, "n", 1), timeout_s, deadline_after(timeout_s))

    @collective
    def flush(self, timeout_s: Any = None, *, last: bool = False) -> bool:
        """Push what was trained since the last push and wait until an update contains it; False after `timeout_s`.

        `last`: no training follows, so what compression left out before goes with it as far as the connection allows; and what
        moved the parameters without a step goes with it, too.
        """
        return self._part.flush(deadline_after(timeout_s), last=last)

    @collective
    def forget_changes(self) -> None:
        """Take the parameters back to where the run and this peer's last push have left them: for weights that were loaded, from
        an old checkpoint for example, into a model that is in a run already. Steps that were not pushed yet are lost.

        Raises: ClosedError.
        """
        self._part.forget_changes()

    @collective
    def finish(self, *, together: bool = False, timeout_s: Any = None) -> str:
        """End training: push the rest; where `together`, serve on until every member is done. The common model's digest.

        `timeout_s` bounds all of it: what is not done then stays as it is.
        """
        return self._part.finish(deadline_after(timeout_s), together=together)

    @property
    def all_done(self) -> bool:
        """Every member has trained all it wanted to, and all hold the same versions."""
        return self._part.thread.call(self._part.engine.all_done)

    @collective
    def common_digest(self) -> str:
        """Digest of the region's common model: equal at two peers means equal bits."""
        return self._part.thread.call(self._part.engine.common_digest)

    def common_parameters(self) -> Tensor:
        """The region's common model, flat: 1-D fp32 on the CPU."""
        return self._part.thread.call(self._part.engine.common_parameters)

    def report(self, **changes: Any) -> None:
        """Tell the network's thread what this one has done, now."""
        self._part.report(**changes)

    def close(self) -> None:
        """Leave the run in order, which takes less than 2 s where the model is small. What was trained since the last push, and
        large shards that go to their next owners, are sent in the background; the end of the script waits for that. The inner
        optimizer goes on without a swarm.
        """
        if self._ranks is None:
            self._leave_run()
        else:
            with suppress(ClosedError):  # other ranks may be gone
                self._leave_run()
        self._guard.release()

    @collective
    def _leave_run(self) -> None:
        self._part.leave()

    def __enter__(self) -> "Optimizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # several ranks

    def _view_of(self, named: Named) -> FlatView:
        return FlatView(named) if self._ranks is None else self._ranks.view(named)

    def _rank_state(self) -> RankState:
        part = self._part
        return RankState(self.steps, self.tokens, part.last_run_step, part.has_to_stop, part.engine.target.reached)


def check_wrappable(inner: Any, view: FlatView) -> None:
    """Check that `inner` can train the parameters of `view` in a run, and nobody else does.

    Raises: UsageError.
    """
    if isinstance(inner, Optimizer):
        raise UsageError("this optimizer is in a run already: wrapped again, each of its changes would count twice")
    check_free(view)
    must_hold(inner, view)


def _leave(thread: PeerAccess, guard: InnerGuard) -> None:
    """In the background: code that drops an optimizer should not wait for that."""
    guard.release()
    thread.close(0.0)
