"""A loop written for accelerate in a run: in place of `accelerate.local_sgd.LocalSGD`, and of the same shape.

from legion_p2p.integrations.accelerate import LegionSGD

with LegionSGD(accelerator=accelerator, model=model, run="my-run", initial_peers=[...]) as local_sgd:
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            local_sgd.step(loss)
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from legion_p2p.config import NewRun, Peer
from legion_p2p.errors import UsageError
from legion_p2p.integrations.common import check_processes, note_loss
from legion_p2p.train.optimizer import Optimizer

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as bad:
    raise ImportError('this module needs accelerate: pip install "legion_p2p[accelerate]"') from bad


class LegionSGD:
    """While it lasts, steps of the optimizer that `accelerator` has prepared train `model` together with the run.

    Args:
        accelerator: of one process, with one optimizer.
        model: what `accelerator.prepare` returned. It gets the run's parameters; those of a NewRun start as the model is.
        run: name or id of the run to join; or a NewRun("name"), to create it. How often members average is the run's.
        initial_peers, peer, tokens_per_step: as of `legion_p2p.Optimizer`.
        together: stay at the end until every member is done, so that all end with the same model.
        enabled: False: the loop trains alone, as with LocalSGD.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        run: str | NewRun,
        *,
        initial_peers: Iterable[str] = (),
        peer: Peer = Peer(),
        tokens_per_step: int = 1,
        together: bool = False,
        enabled: bool = True,
    ) -> None:
        self.together = together
        self.enabled = enabled
        self.optimizer: Optimizer | None = None
        """The one that is in the run, while the block lasts: its status, its run_step."""
        self._prepared = _only_optimizer(accelerator)
        self._inner: Any = self._prepared.optimizer
        self._model = accelerator.unwrap_model(model)
        self._run = run
        self._initial_peers = initial_peers
        self._peer = peer
        self._tokens_per_step = tokens_per_step

    def __enter__(self) -> Self:
        """Join the run, or create it. Raises: as `legion_p2p.Optimizer`."""
        if self.enabled:
            self.optimizer = Optimizer(
                self._inner, self._model, self._run,
                initial_peers=self._initial_peers, peer=self._peer, tokens_per_step=self._tokens_per_step,
            )  # fmt: skip
            self._put(self.optimizer)
        return self

    def step(self, loss: Any = None) -> None:
        """After each iteration of the loop: tells the other members `loss`. The optimizer itself pushes and averages."""
        if self.optimizer is not None and loss is not None:
            note_loss(self.optimizer, loss)

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        """Push the rest and leave the run; the accelerator gets its previous optimizer back."""
        if self.optimizer is None:
            return
        try:
            if kind is None:
                self.optimizer.finish(together=self.together)
        finally:
            self._put(self._inner)
            self.optimizer.close()

    def _put(self, optimizer: Any) -> None:
        # By its constructor, which also tells a gradient scaler whose step to watch.
        AcceleratedOptimizer.__init__(self._prepared, optimizer, device_placement=False, scaler=self._prepared.scaler)


def _only_optimizer(accelerator: Any) -> Any:
    """What accelerate has made of the loop's optimizer. Raises: UsageError, unless there is just one, in one process."""
    if not isinstance(accelerator, Accelerator):
        raise UsageError(f"accelerator is {type(accelerator).__name__}: the order is LegionSGD(accelerator, model, run)")
    check_processes("this accelerator", accelerator.num_processes)
    prepared = accelerator._optimizers
    if len(prepared) != 1:
        raise UsageError(f"the accelerator has prepared {len(prepared)} optimizers, and a run needs one: prepare it first")
    return prepared[0]
