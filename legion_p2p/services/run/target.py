"""Ending the run at its target: decided in core/target.py; and how long that will take."""

import trio

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.control import Finish
from legion_p2p.core.eta import EtaEstimator, TimeLeft
from legion_p2p.core.pace import run_step
from legion_p2p.core.target import RunProgress, RunTarget, TargetWatch
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.control import ControlService
from legion_p2p.services.run.progress import StepCount
from legion_p2p.services.shards.states import ShardStates

LOOK_EVERY_S = 1.0


class TargetService:
    """Watches how far the run is."""

    def __init__(
        self, ctx: PeerContext, members: MemberService, steps: StepCount, states: ShardStates, control: ControlService
    ) -> None:
        spec = ctx.spec
        self.watch = TargetWatch(RunTarget(spec.target_steps, spec.target_tokens, spec.target_loss))
        self.began_tokens = 0
        """Tokens of the run when this peer came to it."""
        self.seen = RunProgress()
        """How far the run was at the last look."""
        self._ctx = ctx
        self._members = members
        self._steps = steps
        self._states = states
        self._control = control
        self._eta = {"steps": EtaEstimator(), "tokens": EtaEstimator()}

    @property
    def reached(self) -> bool:
        return self.watch.reached

    def own_tokens(self) -> int:
        """Tokens of the run, as this peer has counted them: those of each update of one shard that it saw."""
        return self.began_tokens + self._states.round_log.counted_tokens

    def run_tokens(self) -> int:
        """Tokens of the run, by this peer's count or by what most others announce, if that is more."""
        return run_step(self.own_tokens(), [a.run_tokens for a in self._members.roster.others() if a.ready])

    def left(self) -> TimeLeft | None:
        """How long until the target; None: unknown."""
        target = self.watch.target
        goals = {"steps": float(target.steps), "tokens": float(target.tokens)}
        found = [left for name, goal in goals.items() if goal and (left := self._eta[name].left(goal)) is not None]
        return min(found, key=lambda left: left.most_s, default=None)

    async def run_forever(self) -> None:
        if self.watch.target.is_open_ended:
            return
        while not self.watch.reached:
            self.look_once()
            await trio.sleep(LOOK_EVERY_S)

    def look_once(self) -> None:
        """Whether the target is reached now; then training ends here."""
        now, others = trio.current_time(), [a for a in self._members.roster.others() if a.ready]
        run = self.seen = RunProgress(self._steps.of_run(self._members), self.run_tokens(), self._losses(others))
        self._eta["steps"].count(run.step, now)
        self._eta["tokens"].count(run.tokens, now)
        if self.watch.look(run, [a.reached for a in others if a.role.trains], now):
            self._ctx.events.emit("run.target_reached", text=self.watch.reason, step=run.step, tokens=run.tokens)
            self._control.obey(Finish())
            self._members.announcer.announce_soon()

    def _losses(self, others: list[Announcement]) -> tuple[float, ...]:
        own = self._steps.progress.loss
        told = [a.loss for a in others if a.training and a.loss is not None]
        return tuple([*told, own] if own is not None else told)
