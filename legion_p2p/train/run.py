"""`join` and `create`, and the `Run` that they return: this peer's part in a run, as ordinary synchronous code sees it."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import Annotated, Self

import msgspec
import torch
from torch import nn

from legion_p2p.config import NewRun, Peer, RunChoice
from legion_p2p.config.fields import argument
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import UsageError
from legion_p2p.files.paths import user_path
from legion_p2p.observe.events import Event, Events
from legion_p2p.observe.status import MemberStatus, Status
from legion_p2p.reporting.reports import DEFAULT_FOLDER, EVERY_S, Reports
from legion_p2p.reporting.trackers import usable
from legion_p2p.services.run.fitting import Params
from legion_p2p.services.run.status import status_of
from legion_p2p.train.arguments import Model, model_view
from legion_p2p.train.bridge import CLOSE_S, PeerAccess
from legion_p2p.train.control import Control
from legion_p2p.train.entering import creation_of, enter, entry_of
from legion_p2p.train.optimizer import Optimizer
from legion_p2p.train.parameters import ModelView
from legion_p2p.train.sharding.model import ShardedModel
from legion_p2p.train.values import MAX_TOKENS_PER_STEP, seconds, whole

MAX_ACCUMULATED = 10_000  # backward passes in a step
MAX_EVENTS_KEPT = 1000  # some minutes of a busy run; a caller that needs all of them gives the peer an on_event


def join(run: str, model: Model | None = None, *, initial_peers: Iterable[str] = (), peer: Peer = Peer()) -> "Run":
    """Join a run. Blocks until this peer has the run's parameters and takes part.

        with legion.join("my-run", initial_peers=[...]) as run:
            opt = run.optimizer(torch.optim.AdamW(model.parameters()), model)

    Args:
        run: name or id of the run.
        model: what shall be trained: a run that trains other parameters is refused before it is joined. None: at `optimizer`.
        initial_peers: addresses of any peers or bootstrap nodes, or "@file"; one that answers is enough. None is needed where the
            peer's store has the run.
        peer: how this peer behaves on the network.

    Raises: NoContactError; UnknownRunError, AmbiguousRunError; IncompatibleModelError; StoreError; UsageError, naming the
    argument.
    """
    return _open(*join_arguments(run, model, initial_peers, peer))


def create(
    new_run: NewRun, model: Model, *, initial_peers: Iterable[str] = (), peer: Peer = Peer(), or_join: bool = False
) -> "Run":
    """Create a run around a model, which starts as it is now. Blocks until this peer takes part.

    Args:
        new_run: its name, and how its members average.
        model: the parameters that require gradients are the run's.
        initial_peers: addresses through which others find the run; none: they need this peer's address.
        peer: how this peer behaves on the network.
        or_join: join or go on with a run of this name, where somebody who answers or the peer's store has one: for scripts that
            are started again and again. A run that differs from what `new_run` chooses is refused.

    Raises: RunExistsError; NoContactError; IncompatibleModelError; UsageError, naming the argument; StoreError.
    """
    return _open(*create_arguments(new_run, model, initial_peers, peer, or_join))


def join_arguments(
    run: str, model: Model | None, initial_peers: Iterable[str], peer: Peer
) -> tuple[RunChoice, Peer, ModelView | None]:
    """The arguments of `join`, checked. Raises: UsageError."""
    argument("join(run=...)", Annotated[str, msgspec.Meta(min_length=1)], run)
    argument("join(peer=...)", Peer, peer)
    return entry_of("join", run, initial_peers), peer, None if model is None else model_view(model)


def create_arguments(
    new_run: NewRun, model: Model, initial_peers: Iterable[str], peer: Peer, or_join: bool
) -> tuple[RunChoice, Peer, ModelView]:
    """The arguments of `create`, checked. Raises: UsageError."""
    argument("create(new_run=...)", NewRun, new_run)
    argument("create(peer=...)", Peer, peer)
    argument("create(or_join=...)", bool, or_join)
    contacts = entry_of("create", new_run, initial_peers).initial_peers
    return RunChoice(new_run=new_run, initial_peers=contacts, create_or_join=or_join), peer, model_view(model)


def _open(entry: RunChoice, peer: Peer, own: ModelView | None) -> "Run":
    events, kept = kept_events()
    creation = None if entry.new_run is None or own is None else creation_of(entry.new_run, own)
    params: Params = None if own is None else own.fit
    if own is not None and entry.new_run is not None and entry.new_run.sharding == "full":
        params = own.fit_by_shape()  # what joins is kept for as long as the peer lives, and the model goes to others
    return Run(enter(entry, peer, creation=creation, params=params, events=events), kept)


def kept_events() -> tuple[Events, "deque[Event]"]:
    """Where a peer's events go, and the newest of them."""
    events = Events()
    kept: deque[Event] = deque(maxlen=MAX_EVENTS_KEPT)
    events.add_sink(kept.append)
    return events, kept


class Run:
    """This peer's part in a run. A context manager: the end of the block leaves the run in order.

    Made by `join` and `create`. Its methods may be called from any thread of this process; most raise ClosedError once the peer
    has left.
    """

    def __init__(self, thread: PeerAccess, events: "deque[Event]") -> None:
        self._thread = thread
        self._events = events
        self._optimizer: Optimizer | None = None
        self.control = Control()
        """Pauses this peer, limits it, or ends its training, from any thread."""
        self.control.attach(thread)
        self._sharded: ShardedModel | None = None
        self._reports: Reports | None = None

    @property
    def id(self) -> str:
        """The run's id, which no other run has."""
        return self._thread.engine.id

    @property
    def name(self) -> str:
        """The run's name, which other runs may have too."""
        return self.spec.name

    @property
    def spec(self) -> RunSpec:
        """The run's specification: how all members average, and the parameters that are trained."""
        return self._thread.engine.spec

    @property
    def dashboard(self) -> str:
        """Address of this peer's page, for a browser on this machine; with its token, so it is for you alone. Empty: none."""
        return self._thread.engine.dashboard

    def optimizer(
        self, inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], model: Model, *, tokens_per_step: int = 1
    ) -> Optimizer:
        """Wrap `inner`, an optimizer or a list of several: its steps train `model` together with the run, whose parameters the
        model gets.

        `tokens_per_step`: weight of one local step relative to those of other members, such as tokens in a batch.

        Raises: IncompatibleModelError, naming the first parameter that differs; UsageError.
        """
        self._optimizer = Optimizer.beside(self._thread, inner, model, tokens_per_step)
        return self._optimizer

    def shard(self, model: nn.Module, *, tokens_per_step: int = 1, accumulate: int = 1, keep: bool = False) -> ShardedModel:
        """Train `model` in a sharded run, `NewRun(..., sharding="full")`: weights come from their owners block by block as the
        model runs, and gradients go there as they arise. The model may be on the device "meta", where it takes no memory.

        `tokens_per_step`: weight of one step relative to those of other members, such as tokens in a batch. `accumulate`:
        backward passes in a step. `keep`: weights stay from the forward to the backward pass, which takes the memory of all
        parameters and halves what is pulled.

        Raises: IncompatibleModelError, naming the first parameter that differs; UsageError, where the run is not sharded.
        """
        tokens = whole(tokens_per_step, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)
        parts = whole(accumulate, "accumulate", 1, MAX_ACCUMULATED)
        self._sharded = ShardedModel(self._thread, model, tokens_per_step=tokens, accumulate=parts, keep=keep)
        return self._sharded

    @property
    def step(self) -> int:
        """Steps of the run, by the count of most of its members: what a learning-rate schedule of the whole run goes by."""
        return self._thread.call(self._thread.engine.run_step)

    @property
    def should_stop(self) -> bool:
        """The user of this peer has ended training here, or the peer has left: a loop ends."""
        if self._optimizer is not None:
            return self._optimizer.should_stop
        return not self._thread.alive or self._thread.engine.control.wish.ends

    def status(self) -> Status:
        """What the peer knows now: the record that `legion-ctl status` and the live view show as well."""
        return self._thread.call(status_of, self._thread.engine)

    def members(self) -> tuple[MemberStatus, ...]:
        """The members of the run that this peer knows, itself included."""
        return self.status().members

    def addresses(self) -> tuple[str, ...]:
        """Where others reach this peer: what they give as `initial_peers`."""
        return self._thread.call(self._thread.engine.network.addresses)

    def events(self) -> tuple[Event, ...]:
        """What has happened, the newest last; at most MAX_EVENTS_KEPT. `Peer(on_event=...)` is called with each as it happens."""
        return tuple(self._events)

    def report_to(self, *trackers: str, folder: str | PathLike[str] = DEFAULT_FOLDER, every_s: float = EVERY_S) -> None:
        """Report this peer's numbers to "wandb", "tensorboard", "trackio" or "otel" from now on, until the peer leaves.

        `folder` is for those that write files. Each needs the extra of its name. One that fails is named on stderr and left out.

        Raises: UsageError, if there is no such tracker, its package is missing, or reports go somewhere already.
        """
        names = usable(trackers)
        pause_s = seconds(every_s, "every_s")
        if not pause_s:
            raise UsageError("every_s is 0: must be more")
        if self._reports is not None:
            raise UsageError("this run reports already: name all trackers in one call")
        self._reports = Reports(names, self.status, tell=_warn, folder=user_path(folder), every_s=pause_s)
        self._thread.engine.events.add_sink(self._reports.on_event, shows=False)

    def finish(self, *, together: bool = False, timeout_s: float | None = None) -> str:
        """End training: push the rest; where `together`, serve on until every member is done.

        Returns the digest of the common model: members with the same one hold the same bits. Empty in a sharded run, where nobody
        holds all of it.
        """
        if self._sharded is not None:
            self._sharded.finish(together=together)
            return ""
        if self._optimizer is None:
            raise UsageError("nothing is trained here: run.optimizer(inner, model) begins")
        return self._optimizer.finish(together=together, timeout_s=timeout_s)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Leave the run in order, and wait for that, at most `wait_s`. Large shards that go to their next owners go on in the
        background; the end of the script waits for that."""
        reports, self._reports = self._reports, None
        if reports is not None:
            reports.close()
        if self._optimizer is not None:
            self._optimizer.close()
        self._thread.close(wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self.close()


def _warn(text: str) -> None:
    print(f"legion_p2p: {text}", file=sys.stderr, flush=True)
