"""The parameters that this process trains in runs: no two optimizers may train one of them."""

import weakref

from legion_p2p.errors import UsageError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.swarm_exchange import SwarmExchange

_live: weakref.WeakSet[SwarmExchange] = weakref.WeakSet()


def claim(exchange: SwarmExchange) -> None:
    """From now on its parameters are trained in a run, until it is closed or dropped."""
    _live.add(exchange)


def give_back(exchange: SwarmExchange) -> None:
    """Its parameters are free again."""
    _live.discard(exchange)


def check_free(view: FlatView) -> None:
    """Raises: UsageError, where a parameter of `view` is trained in a run already."""
    own = {id(p) for p in view.parameters}
    for other in list(_live):
        if other.is_open:
            shared = [name for name, p in zip(other.view.names, other.view.parameters, strict=True) if id(p) in own]
            if shared:
                raise UsageError(
                    f"parameter {shared[0]} is trained in a run already, by another legion_p2p optimizer of this process: "
                    f"close() that one first"
                )
