"""Into a run, from ordinary synchronous code: a peer in a thread of its own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import msgspec
from torch import Tensor
from torch.optim import Optimizer

from legion_p2p.config import NewRun, Peer, RunChoice
from legion_p2p.config.fields import argument
from legion_p2p.config.forms import PeerAddresses, refusal
from legion_p2p.config.new_run import chosen_rounds, sharded_inner, sharded_rounds
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import InnerSpec, RunSpec
from legion_p2p.errors import UsageError
from legion_p2p.observe.events import Events
from legion_p2p.peer import open_peer
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.fitting import Fitting, Params, check_model
from legion_p2p.services.run.joiner import RunCreation
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.checkpoint_tools import CHECKPOINT_TOOLS
from legion_p2p.train.described import check_choices, specified
from legion_p2p.train.inner_list import is_proportional
from legion_p2p.train.parameters import ModelView, Named, param_specs

_RUN = 'the name or id of a run to join, or NewRun("name") to create one'


def enter(
    entry: RunChoice,
    peer: Peer,
    *,
    creation: RunCreation | None = None,
    params: Params = None,
    start: Tensor | None = None,
    events: Events | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> PeerThread:
    """A peer in the run of `entry`; `creation` is that run where it is new. `given_up` ends joining, with ClosedError.

    Raises: as `open_peer`; IncompatibleModelError, where a run is joined instead of created and differs from what was asked for.
    """

    def opener() -> AbstractAsyncContextManager[ActiveRun]:
        return open_peer(
            creation or entry.run,
            peer,
            initial_peers=entry.initial_peers,
            create_or_join=entry.create_or_join,
            params=fit_of(entry, params),
            start=start,
            events=events,
            tools=CHECKPOINT_TOOLS,
        )

    return PeerThread(opener, given_up)


def fit_of(entry: RunChoice, params: Params) -> Params:
    """The parameters with which a run is joined; one that should have been created is first compared with what was chosen."""
    new_run = entry.new_run
    if new_run is None:
        return params

    def fit(spec: RunSpec) -> Sequence[ParamSpec]:
        check_choices(new_run, spec)
        check_model(params, spec)
        return spec.params

    return replace(params, params=fit) if isinstance(params, Fitting) else fit


def entry_of(place: str, run: object, initial_peers: object) -> RunChoice:
    """The way into a run, from the arguments of a public function. Raises: UsageError, naming function and argument."""
    if not isinstance(run, str | NewRun) or run == "":
        raise UsageError(f"{place}(run=...): {refusal(run, _RUN)}")
    contacts = argument(f"{place}(initial_peers=...)", PeerAddresses, initial_peers)
    return RunChoice(new_run=run, initial_peers=contacts) if isinstance(run, NewRun) else RunChoice(run, contacts)


def creation_of(
    new_run: NewRun, own: ModelView, inner: Optimizer | None = None, view_of: Callable[[Named], FlatView] = FlatView
) -> RunCreation:
    """A run to create around a model of the user's own, which starts as it is now. Raises: UsageError.

    `inner`: the optimizer that makes the local steps, where it is known. Of one that does not normalize its steps, the mean of
    the pushes has the right length as it is (docs/records/learning.md). `view_of`: how its parameters are read.
    """
    of_builtin = ("preset", "architecture", "model", "start_from", *(() if new_run.sharding == "full" else ("inner",)))
    for field in of_builtin:
        if getattr(new_run, field) != getattr(NewRun(new_run.name), field):
            raise UsageError(f"NewRun({field}=...) is of the built-in model; here the model and its optimizer are your own")
    is_sharded = new_run.sharding == "full"
    rounds = sharded_rounds(new_run.rounds) if is_sharded else chosen_rounds(new_run.rounds, new_run.links)
    if inner is not None and new_run.rounds.restore_length is None and is_proportional(inner):
        rounds = msgspec.structs.replace(rounds, restore_length=0.0)
    view = view_of(own.in_run(rounds.untrained))
    fixed = () if rounds.untrained == "own" else own.fixed()
    spec = specified(new_run, param_specs(view), rounds, sharded_inner(new_run.inner) if is_sharded else InnerSpec())
    spec = msgspec.structs.replace(spec, fixed=fixed)
    return RunCreation(spec, view.snapshot())
