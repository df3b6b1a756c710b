"""How far the training is, as the training thread says."""

import msgspec

from legion_p2p.core.pace import run_step
from legion_p2p.services.membership.service import MemberService


class Progress(msgspec.Struct, frozen=True):
    """What the training thread says of itself. Replaced as a whole, never changed."""

    step: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    loss: float | None = None
    mfu: float | None = None
    """Model FLOPs utilisation, where the trainer knows it."""
    training: bool = False
    done: bool = False
    epoch: int = 0
    chunks: bytes = b""
    blocked_fraction: float = 0.0
    target_steps: int | None = None
    remaining_s: float | None = None
    """Until what this peer's user asked for is done: at least, or about, where `remaining_most_s` is not known."""
    remaining_most_s: float | None = None
    state: str = ""
    run_step: int = 0
    """Step of the run, where the trainer counts that; otherwise the peer counts it by `step`."""
    trouble: str = ""
    """Why this peer has nothing to push, in words for the others' users; empty while all is well."""
    paused: bool = False
    """Training rests, because the user or one of their conditions says so, and what was trained has been handed in."""

    def changes_what_others_do(self, before: "Progress") -> bool:
        """Whether the others should hear of it at once."""
        return _urgent(self) != _urgent(before)


def _urgent(progress: Progress) -> tuple[bool, bool, bool, int, bytes, str]:
    return progress.training, progress.done, progress.paused, progress.epoch, progress.chunks, progress.trouble


class StepCount:
    """The newest progress, and the step of the run that follows from it."""

    def __init__(self, began_at: int = 0) -> None:
        """`began_at`: the step of the run at which this peer began to train."""
        self.began_at = began_at
        self.progress = Progress()

    def own(self) -> int:
        """The step of the run, as this peer has counted it."""
        return max(self.progress.run_step, self.began_at + self.progress.step)

    def of_run(self, members: MemberService) -> int:
        """The step of the run, by all that is known: see `core.pace.run_step`."""
        return run_step(self.own(), [a.run_step for a in members.roster.others() if a.ready])
