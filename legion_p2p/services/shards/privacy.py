"""Differential privacy of pushes: each change is shortened and gets noise before it is compressed. See core/privacy.py."""

from collections.abc import Callable

from torch import Tensor

from legion_p2p.core.privacy import Privacy, PrivacyBooks
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.observe.status import PrivacyStatus
from legion_p2p.services.context import PeerContext
from legion_p2p.tensor.privacy import released, secret_generator

ORDERS = [1 + 0.02 * 1.1**i for i in range(130)]  # 1.02 to 4400: the best one for any noise from 0.01 to 1000 is among them

Epsilon = Callable[[float, float], float]
"""Of a release with that noise, at that delta."""


def accountant() -> Epsilon:
    """By Rényi divergence, from Opacus: up to a tenth more than the exact figure. Raises: UsageError, if it is not installed."""
    try:
        from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
    except ImportError:
        raise UsageError(
            'differential privacy counts what is spent with Opacus, which is not installed: pip install "legion_p2p[privacy]"'
        ) from None

    def epsilon(noise: float, delta: float) -> float:
        divergences = compute_rdp(q=1.0, noise_multiplier=noise, steps=1, orders=ORDERS)
        return float(get_privacy_spent(orders=ORDERS, rdp=divergences, delta=delta)[0])

    return epsilon


class NoisyRelease:
    """What is done to one change, on whatever thread computes with it."""

    def __init__(self, privacy: Privacy, longest: float) -> None:
        self._privacy = privacy
        self._longest = longest
        self.clipped = False

    def __call__(self, change: Tensor) -> Tensor:
        made = released(change, self._longest, self._privacy.deviation, secret_generator())
        self.clipped = made.clipped
        return made.value


class PrivateReleases:
    """Keeps the books of one run: nothing is released before it is charged."""

    def __init__(self, ctx: PeerContext, privacy: Privacy) -> None:
        self._ctx = ctx
        self._privacy = privacy
        self._n_parameters = ctx.plan.numel
        self._books: PrivacyBooks | None = None
        self._epsilon: Epsilon | None = None
        self._shown = (0.0, 0.0)
        """A total, and the epsilon that it comes to."""

    async def charge(self, numel: int) -> NoisyRelease:
        """The right to release this many parameters once."""
        if self._books is None:
            await self._open()
        assert self._books is not None
        share = numel / self._n_parameters
        to_write = self._books.charge(self._privacy.cost(numel, self._n_parameters), share)
        if to_write is not None:
            try:
                await self._ctx.disk(self._ctx.spent.save, self._ctx.run, to_write)
            except StoreError as bad:
                self._ctx.events.error("privacy.not_written", f"{bad}; after a restart, what was spent since is not counted")
        return NoisyRelease(self._privacy, self._privacy.longest(numel, self._n_parameters))

    def note(self, release: NoisyRelease) -> None:
        """It was used."""
        assert self._books is not None
        self._books.released(release.clipped)

    async def _open(self) -> None:
        """Raises: UsageError."""
        self._epsilon = await self._ctx.disk(accountant)
        try:
            written = await self._ctx.disk(self._ctx.spent.load, self._ctx.run)
        except StoreError as bad:
            self._ctx.events.error("privacy.not_read", f"{bad}; what was spent before is not counted")
            self._books = PrivacyBooks()
        else:
            self._books = PrivacyBooks(written)

    def status(self) -> PrivacyStatus:
        """What was spent so far."""
        if self._books is None or self._epsilon is None:
            return PrivacyStatus(None, self._privacy.delta, 0.0, 0.0)
        spent = self._books.spent
        if spent.total != self._shown[0]:
            self._shown = (spent.total, self._epsilon(spent.noise, self._privacy.delta))
        return PrivacyStatus(self._shown[1], self._privacy.delta, spent.rounds, self._books.clipped_share)
