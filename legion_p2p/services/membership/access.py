"""Who may take part in the run: core/admission.py with the clock of this machine and its table of members."""

from collections.abc import Callable, Collection, Sequence

from legion_p2p.core.admission import Admission
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.membership import Membership
from legion_p2p.core.observers import Observers
from legion_p2p.errors import NotAdmittedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.own import OwnAnnouncement
from legion_p2p.services.membership.signed import SignedAnnouncements

MAX_SHOWN = 256  # tokens of peers that are no members of this peer's region, of up to MAX_TOKEN_BYTES each


class AccessControl:
    """Refuses those that may not take part, and forgets them where they were members."""

    def __init__(self, ctx: PeerContext, table: Membership, own: OwnAnnouncement, signed: SignedAnnouncements) -> None:
        spec = ctx.spec
        self.admission = Admission(ctx.run, spec.admission, spec.creator, spec.admins, spec.admitted)
        self.excluded: Observers[None] = Observers()
        """Told when members may have been forgotten."""
        self._table = table
        self._own = own
        self._signed = signed
        self._wall_time: Callable[[], float] = ctx.wall_time
        self._shown: BoundedMap[PeerId, bytes] = BoundedMap(MAX_SHOWN)

    def refusal(self, peer: PeerId, token: bytes) -> str:
        """Why a peer that shows `token` may not take part; empty where it may."""
        return self.admission.refusal(peer, token, self._wall_time())

    def shown(self, peer: PeerId, token: bytes) -> None:
        """`peer` is admitted by this token. It is remembered of those that are not in the table, as most of other regions."""
        if token:
            self._shown[peer] = token
            self._shown.touch(peer)

    def must_be_admitted(self, peer: PeerId) -> None:
        """Raises: NotAdmittedError, if the run asks for more to take part than `peer` has shown, or the user has banned it."""
        refusal = self._refusal_of_member(peer)
        if refusal:
            raise NotAdmittedError(peer, refusal)

    def revocations(self) -> tuple[bytes, ...]:
        """Those that this peer announces next."""
        return self.admission.revocations(self._wall_time(), self._own.seq)

    def revoke(self, revocations: Sequence[bytes]) -> bool:
        """Take revocations, all of them; whether any is news. Raises: DecodeError."""
        now_s = self._wall_time()
        is_news = sum([self.admission.revoke(revocation, now_s) for revocation in revocations]) > 0  # all, not up to the first
        if is_news:
            self.exclude_refused()
        return is_news

    def ban(self, peers: Collection[PeerId]) -> None:
        """From now on these have no part in the run, as far as this peer is concerned, and no others are banned."""
        self.admission.banned = frozenset(peers)
        self.exclude_refused()

    def exclude_refused(self) -> None:
        """Forget those that may not take part any more: a token expired or was revoked, or a user banned one."""
        for member in self._table.members():
            if self._refusal_of_member(member.peer_id):
                self._table.excluded(member.peer_id)
                self._signed.forget(member.peer_id)
        self.excluded.tell(None)

    def _refusal_of_member(self, peer: PeerId) -> str:
        member = self._table.get(peer)
        return self.refusal(peer, self._shown.get(peer, b"") if member is None else member.announcement.token)
