"""The Trainer of transformers in a run.

from legion_p2p.integrations.transformers import LegionCallback

opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])
trainer = Trainer(model, args, train_dataset=data, optimizers=(opt, None), callbacks=[LegionCallback()])
trainer.train()
"""

import logging
from typing import Any

from legion_p2p.errors import UsageError
from legion_p2p.integrations.common import check_processes, note_loss
from legion_p2p.train.optimizer import Optimizer

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as bad:
    raise ImportError('this module needs the Trainer of transformers: pip install "legion_p2p[trainer]"') from bad

_log = logging.getLogger(__name__)


class LegionCallback(TrainerCallback):
    """What the Trainer does not know of a run.

    It tells losses to the other members, and after the last step pushes everything, so that `save_model` and `push_to_hub` have
    the common model. A Trainer that resumes takes its step, its schedule and the optimizer's moments from its own checkpoint,
    and the parameters from the run, which went on meanwhile. In a run that has made no step yet, its checkpoint's parameters
    count.

    Args:
        together: stay at the end until every member is done, so that all end with the same model.
        timeout_s: how long the end may take; None: as long as it takes.
    """

    def __init__(self, *, together: bool = False, timeout_s: float | None = None) -> None:
        self.together = together
        self.timeout_s = timeout_s

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Raises: UsageError, if this Trainer would do what a run cannot follow."""
        optimizer = _of_run(given)
        check_processes("this Trainer", args.world_size)
        if args.load_best_model_at_end:
            raise UsageError(
                "load_best_model_at_end=True would push the parameters of an old checkpoint into the run: leave it off, and "
                "choose among the checkpoints afterwards"
            )
        if state.global_step and optimizer.run_step:
            optimizer.forget_changes()
            _log.info("the parameters are the run's, of step %d, not those of the checkpoint", optimizer.run_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = (given.get("logs") or {}).get("loss")
        if loss is not None:
            note_loss(_of_run(given), loss)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        _of_run(given).finish(together=self.together, timeout_s=self.timeout_s)


def _of_run(given: dict[str, Any]) -> Optimizer:
    """The optimizer that a callback was given, out of accelerate's wrapper. Raises: UsageError, if it is in no run."""
    optimizer = given.get("optimizer")
    optimizer = optimizer if isinstance(optimizer, Optimizer) else getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"the Trainer's optimizer is {type(optimizer).__name__}, which is in no run: "
            f"Trainer(..., optimizers=(legion.Optimizer(inner, model, run=...), None))"
        )
    return optimizer
