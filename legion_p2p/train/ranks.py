"""Several processes of one training job that are one peer: DistributedDataParallel or FSDP2 inside, one network outside.

Rank 0 has the peer. The others follow: where rank 0 reads parameters that are spread over all, or writes what came from the
swarm, they take part; and whatever rank 0 does in one of the optimizer's methods, they wait for its end in the same method.

    rank 0   begin(method)   [read or write of a slice]*   end(method), or the failure
    others   the same method: do as told until the end

Every rank calls the same methods in the same order, as with any collective of torch.distributed. What passes here goes over a
gloo group of its own, so that a pause of days runs into no timeout, and a GPU waits for nothing.
"""

import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.parameters import ModelView, Named

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = timedelta(days=365)  # of a rank that waits for rank 0: a pause may last
BEGIN, VIEW, READ, WRITE, RESULT, END, FAILED = range(7)
N_WORDS = 5  # of what rank 0 tells: what to do, and up to four numbers
SHOULD_STOP, TARGET_REACHED = 1, 2  # bits of the last number at the end of a method

_names: list[str] = []
"""Of the methods that all ranks call."""


class RankState(msgspec.Struct, frozen=True):
    """What every rank knows after each method, so that all leave their loops together."""

    steps: int = 0
    tokens: int = 0
    run_step: int = 0
    should_stop: bool = False
    target_reached: bool = False

    def words(self) -> tuple[int, int, int, int]:
        """As rank 0 tells it."""
        return self.steps, self.tokens, self.run_step, SHOULD_STOP * self.should_stop + TARGET_REACHED * self.target_reached

    @classmethod
    def of(cls, steps: int, tokens: int, run_step: int, bits: int) -> "RankState":
        return cls(steps, tokens, run_step, bool(bits & SHOULD_STOP), bool(bits & TARGET_REACHED))


class RankGroup:
    """The processes of this job."""

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self._depth = 0
        self.rank = rank
        self.size = size
        self.state = RankState()

    @classmethod
    def of_this_job(cls) -> "RankGroup | None":
        """None: this process is alone. Waits until all ranks ask."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return None
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(group, dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """This process has the peer."""
        return self.rank == 0

    # rank 0

    def lead(self, name: str, method: Callable[[], R], state: Callable[[], RankState]) -> R:
        """Run a method while the others follow. One that is called by another is part of that."""
        if self._depth:
            return method()
        self.tell(BEGIN, _names.index(name))
        self._depth += 1
        try:
            result = method()
        except BaseException as failed:
            self.tell(FAILED)
            self.share(f"{type(failed).__name__}: {failed}")
            raise
        finally:
            self._depth -= 1
        self.state = state()
        if isinstance(result, bool | int | float | str):
            self.tell(RESULT)
            self.share(result)
        self.tell(END, *self.state.words())
        return result

    def view(self, named: Named) -> FlatView:
        """A view of these tensors that the others have as well."""
        self.tell(VIEW)
        self.share([name for name, _ in named])
        return FlatView(named, self)

    def reading(self, start: int, end: int) -> None:
        """The others take part in reading a slice of parameters that are spread."""
        self.tell(READ, start, end)

    def writing(self, start: int, values: Tensor) -> None:
        """The others write the same."""
        self.tell(WRITE, start, start + len(values))
        self._broadcast(values.detach().to("cpu", torch.float32).contiguous())

    # the others

    def follow(self, name: str, held: "SameModel") -> Any:
        """Do as rank 0 says until it has done the same method; its result.

        Raises: ClosedError, where it failed there, or is gone; UsageError, where it does something else.
        """
        begun, which, *_ = self.told()
        if begun != BEGIN or _names[which] != name:
            raise UsageError(
                f"rank {self.rank} called Optimizer.{name}, and rank 0 Optimizer.{_names[which]}: all ranks call the same "
                "methods in the same order"
            )
        result = None
        while True:
            command, *words = self.told()
            if command == VIEW:
                held.build(self.share())
            elif command == READ:
                held.view.read_slice(words[0], words[1])
            elif command == WRITE:
                values = torch.empty(words[1] - words[0], dtype=torch.float32, device="cpu")
                self._broadcast(values)
                held.view.assign_slice(words[0], values)
            elif command == RESULT:
                result = self.share()
            elif command == END:
                self.state = RankState.of(*words)
                return result
            else:
                raise ClosedError(f"rank 0, which has the peer, failed in Optimizer.{name}: {self.share()}")

    # both

    def share(self, value: Any = None) -> Any:
        """What rank 0 gives, at all ranks. Raises: ClosedError."""
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self._group)
        except RuntimeError as broken:
            raise self.lost() from broken
        return box[0]

    def sum(self, number: float) -> float:
        """At rank 0 the sum of what all ranks give. Raises: ClosedError."""
        total = torch.tensor(number, dtype=torch.float64, device="cpu")
        try:
            dist.reduce(total, dst=0, group=self._group)
        except RuntimeError as broken:
            raise self.lost() from broken
        return float(total)

    def tell(self, command: int, *words: int) -> None:
        """What the others are to do, from rank 0. Raises: ClosedError."""
        self._broadcast(torch.tensor([command, *words, *[0] * (N_WORDS - 1 - len(words))], dtype=torch.int64, device="cpu"))

    def told(self) -> list[int]:
        """What rank 0 tells, and its words; waits for it. Raises: ClosedError."""
        told = torch.zeros(N_WORDS, dtype=torch.int64, device="cpu")
        self._broadcast(told)
        return [int(word) for word in told]

    def _broadcast(self, values: Tensor) -> None:
        try:
            dist.broadcast(values, src=0, group=self._group)
        except RuntimeError as broken:
            raise self.lost() from broken

    def lost(self) -> ClosedError:
        """What is raised where a collective has failed."""
        return ClosedError(f"another process of this peer is gone, as rank {self.rank} of {self.size} sees it")


class SameModel:
    """What a rank has of the model that rank 0 brings into the run."""

    def __init__(self, own: ModelView) -> None:
        self._own = own
        self.view = FlatView(own.trained)

    def build(self, names: Sequence[str]) -> None:
        """From now on the slices are of these tensors. Raises: UsageError."""
        of = dict([*self._own.frozen, *self._own.buffers, *self._own.trained])
        if missing := [name for name in names if name not in of]:
            raise UsageError(
                f"rank 0 has a parameter {missing[0]}, and this rank none of that name: all ranks hold the same model"
            )
        self.view = FlatView([(name, of[name]) for name in names])


def collective(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that all ranks call: rank 0 does it, and the others follow. Its object has `_ranks`, which may be None;
    `_same_model`; and `_rank_state()`, which rank 0 tells the others at the end.
    """
    _names.append(method.__name__)

    @functools.wraps(method)
    def called(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        ranks: RankGroup | None = self._ranks
        if ranks is None:
            return method(self, *args, **kwargs)
        if not ranks.leads:
            return cast("R", ranks.follow(method.__name__, self._same_model))
        return ranks.lead(method.__name__, lambda: method(self, *args, **kwargs), self._rank_state)

    return cast("Callable[Concatenate[Any, P], R]", called)
