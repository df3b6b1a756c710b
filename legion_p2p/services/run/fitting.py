"""What has to be right and ready at a peer before it takes part in a run that it joins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.run import RunSpec

ParamsOf = Callable[[RunSpec], Sequence[ParamSpec]]


@dataclass(frozen=True)
class Fitting:
    """A model that is made of a run's specification, and what takes longer to make ready. Both are called in threads."""

    params: ParamsOf
    """The parameters of that model; or an error, where this peer cannot take part. Called before the peer enters the run."""
    make_ready: Callable[[RunSpec], object]
    """Reads the text, for example. Called while the run's model is fetched; the peer takes part once it has returned."""


Params = Sequence[ParamSpec] | ParamsOf | Fitting | None
"""Parameters of the model that shall train: given, or made once the run's specification is known, or not checked."""


def check_model(params: Params, spec: RunSpec) -> None:
    """Raises: IncompatibleModelError, if the run is of another model; whatever the one that makes it raises."""
    if isinstance(params, Fitting):
        params = params.params
    if params is not None:
        check_fit(params(spec) if callable(params) else params, spec.params)


def make_ready(params: Params, spec: RunSpec) -> None:
    """Raises: whatever that raises."""
    if isinstance(params, Fitting):
        params.make_ready(spec)
