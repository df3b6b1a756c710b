"""When a member of a sharded run pulls a block's weights, and when it frees them.

    before a block runs            it is pulled, unless it is here; and the one that ran after it the last time is pulled ahead
    after it ran                   it is freed; not the last one, which the backward pass needs first, and not where `keep`
    before its backward pass       as before it runs; pulled ahead is the one that ran before it
    after its backward pass        it is freed, unless `keep`: the next micro-batch needs it
    after a step                   everything is freed: the weights are old

Never happens: a block runs without its weights; more than three blocks are here, unless `keep`; old weights are used in the next
step.
"""


class BlockSchedule:
    """Blocks are numbers from 0; the order in which they run is learnt."""

    def __init__(self, n_blocks: int, *, keep: bool = False) -> None:
        """`keep`: weights stay from the forward to the backward pass, and for the next micro-batch."""
        self.keep = keep
        self.is_backward = False
        self.is_whole = False
        self.here: set[int] = set()
        """Blocks whose weights are here, or on their way."""
        self._order = list(range(n_blocks))
        self._ran: list[int] = []

    def before_forward(self, block: int) -> tuple[int, ...]:
        """The blocks to begin to pull now: first the one that is needed."""
        if self.is_backward:  # a block that is computed again, by activation checkpointing
            return self._take(block)
        if block in self._ran:  # another forward pass has begun
            self._order, self._ran = _merged(self._ran, self._order), []
        self._ran.append(block)
        return self._take(block, self._neighbour(block, 1))

    def after_forward(self, block: int, *, has_backward: bool) -> bool:
        """Whether to free it now."""
        if self.is_backward or self.keep or self.is_whole or (has_backward and block == self._order[-1]):
            return False
        self.here.discard(block)
        return True

    def before_backward(self, block: int) -> tuple[int, ...]:
        """As `before_forward`."""
        if not self.is_backward:
            self.is_backward = True
            self._order, self._ran = _merged(self._ran, self._order), []
        return self._take(block, self._neighbour(block, -1))

    def after_backward(self, block: int) -> bool:
        """Whether to free it now."""
        if self.keep or self.is_whole:
            return False
        self.here.discard(block)
        return True

    def gathered(self) -> None:
        """All weights are here, and stay until the next step."""
        self.here.update(self._order)
        self.is_whole = True

    def after_micro_batch(self) -> None:
        """The backward pass is over: a forward pass may follow."""
        self.is_backward = False
        self._ran = []

    def after_step(self) -> tuple[int, ...]:
        """The blocks to free."""
        self.after_micro_batch()
        freed = tuple(sorted(self.here))
        self.here.clear()
        self.is_whole = False
        return freed

    def _neighbour(self, block: int, distance: int) -> int | None:
        at = self._order.index(block) + distance
        return self._order[at] if 0 <= at < len(self._order) else None

    def _take(self, *blocks: int | None) -> tuple[int, ...]:
        taken = tuple(block for block in blocks if block is not None and block not in self.here)
        self.here.update(taken)
        return taken


def _merged(ran: list[int], order: list[int]) -> list[int]:
    """The order in which blocks ran, and those that did not, as before."""
    return ran + [block for block in order if block not in ran]
