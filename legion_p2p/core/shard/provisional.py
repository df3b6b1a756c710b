"""The newest versions of a shard, which only their owner has computed yet, in a run with `verify = "late"`.

    PROVISIONAL  members hold the version, and its owner has not shown them a co-signature on it
    FINAL        it stays

    PROVISIONAL -> FINAL       a later update of its owner shows the signature of a member that may give one, and all versions
                               before it are final
                -> FINAL       nobody may sign, or another peer has made a version on top of it
                -> taken back  it is proven to be wrong, or comes after one that is
                -> taken back  the next owner goes on from a version before it

An owner makes no version while WINDOW of its versions are provisional, and nobody follows it if it does. So an owner that gets no
co-signatures makes nothing, and loses the shard as one (core/shard/stall.py). The next owner then goes on from the last final
version. Members follow: what is taken back is the work of one owner that nobody else has checked, and of WINDOW rounds at most.

An owner that dies or leaves with fewer provisional versions is gone on from: most of them are honest, and the last updates of one
that is dead have nobody left to ask for their inputs.

Never happens: more than WINDOW versions are provisional; a final version is taken back; a version of an owner is replaced by
another one of the same owner; a version that is proven to be wrong is applied again.
"""

from collections.abc import Iterable

from legion_p2p.core.announcement import Mark, mark_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.chain import Chain, Step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import SignedHeader, UpdateHeader

WINDOW = (
    4  # a co-signer that dies is replaced within two short rounds; more: more rounds for a liar to spoil, and copies in memory
)
MAX_REFUSED = 64  # versions of one shard: an owner that is proven wrong makes no more, so these are of some sixteen owners


class Provisional:
    """What one peer knows of the versions of one shard that may be taken back."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._maker: PeerId | None = None
        """Of all versions after that."""
        self._signed: set[bytes] = set()
        """Digests of versions after which some are not signed."""
        self._refused: BoundedMap[bytes, tuple[int, bool]] = BoundedMap(MAX_REFUSED)
        """Digest of what was taken back -> its version, and whether it is proven to be wrong, or follows one that is."""

    @property
    def final(self) -> int:
        """The newest version that stays."""
        return self._chain.final

    @property
    def n(self) -> int:
        """How many versions are provisional."""
        return self._chain.version - self.final

    @property
    def maker(self) -> PeerId | None:
        """The owner that made them; None: there are none."""
        return self._maker if self.n else None

    def judge(self, header: UpdateHeader, *, is_owners: bool) -> Step:
        """What to do with an update. `is_owners`: its maker owns the shard, or most members follow it."""
        if header.digest in self._refused:
            return Step.REFUSED
        step = self._chain.judge(header)
        base = header.version - 1
        if step is Step.FORKED and is_owners and header.owner != self.maker and self.can_return_to(base):
            return Step.REPLACES if self._chain.passed(base, header.base_digest) else step
        return step

    def lacks(self, owner: PeerId, signed: Iterable[int] = ()) -> int | None:
        """The version that has to be co-signed before `owner` may make the next one; None: it may. `signed`: with these."""
        if owner != self.maker or self._final_with(signed) > self._chain.version - WINDOW:
            return None
        return self.final + 1

    def sign(self, version: int) -> None:
        """The owner has shown a co-signature on this version."""
        digest = self._chain.digest_of(version)
        if digest is not None and self.final < version:
            self._signed.add(digest)
            self._chain.settle(self._final_with(()))
            self._forget_signed()

    def applied(self, header: UpdateHeader) -> None:
        """The chain has this update now."""
        if header.owner != self._maker:
            self._chain.settle(header.version - 1)
            self._maker = PeerId(header.owner)
        self._chain.settle(header.version - WINDOW)  # most others hold what follows, or its source is trusted
        self._forget_signed()

    def can_return_to(self, version: int) -> bool:
        """Whether all versions after this one are provisional, and there are some."""
        return self.final <= version < self._chain.version

    def headers_after(self, version: int) -> list[SignedHeader]:
        """Those of the provisional versions after this one."""
        shown = (self._chain.provisional_header(v) for v in range(version + 1, self._chain.version + 1))
        return [one for one in shown if one is not None]

    def take_back(self, version: int) -> None:
        """Return to this version."""
        self._chain.take_back(version)
        self._forget_signed()

    def refuse(self, version: int, digest: bytes, *, proven: bool) -> None:
        """This update is not applied from now on. `proven`: it is wrong, or follows one that is; else until `allow`."""
        self._refused[digest] = version, proven

    def refuses(self, digest: bytes) -> bool:
        """Whether a state with this digest was taken back."""
        return digest in self._refused

    def refuses_mark(self, mark: Mark) -> bool:
        """Whether that is what a member announces."""
        return any(mark_of(version, digest) == mark for digest, (version, _) in self._refused.items())

    def allow(self) -> None:
        """This peer does not own the shard any more. If nobody has followed it, what it took back may be applied again."""
        for digest in [digest for digest, (_, proven) in self._refused.items() if not proven]:
            del self._refused[digest]

    def successor_returns(self, former: PeerId, *, was_held_up: bool) -> bool:
        """Whether the next owner goes on from the last final version. `was_held_up`: `former` lost the shard because it made
        nothing, or did not show what its versions were made of."""
        return was_held_up and self.maker == former and self.n >= WINDOW

    def _final_with(self, signed: Iterable[int]) -> int:
        final, also = self.final, set(signed)
        while final < self._chain.version and (final + 1 in also or self._chain.digest_of(final + 1) in self._signed):
            final += 1
        return final

    def _forget_signed(self) -> None:
        """Of versions that are final, or gone."""
        held = range(self.final + 1, self._chain.version + 1)
        self._signed.intersection_update([d for v in held if (d := self._chain.digest_of(v)) is not None])
