"""Weights & Biases. Its own variables apply: WANDB_API_KEY, WANDB_ENTITY, WANDB_MODE=offline, ..."""

from collections.abc import Mapping

from legion_p2p.reporting.tracker import ReportedRun

STEP = "run_step"


class WandbTracker:
    """A run in the project of the swarm's run; all peers of it are one group."""

    def __init__(self, run: ReportedRun) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)  # stdout is the user's
        self._run = wandb.init(
            project=run.project, name=run.name, group=run.project, config=run.config, dir=run.folder, reinit="create_new",
            settings=settings,
        )  # fmt: skip
        self._run.define_metric("*", step_metric=STEP)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, STEP: step})

    def close(self) -> None:
        self._run.finish()
