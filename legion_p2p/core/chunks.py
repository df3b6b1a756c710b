"""Which peer reads which chunk of the text in an epoch, so that no two read the same.

A chunk is assigned to the peer with the highest rendezvous score for (epoch, chunk, peer); each peer works through its own in the
order of its scores. What it has taken it announces as a bitmap, and takes nothing that another peer has announced.

    FREE -> TAKEN (by `claim`) -> READ (by `finished`)
    TAKEN -> FREE, when a peer of higher score for that chunk announces it, too (the two took it before they heard each other)

A peer that has used up its own share helps: it takes free chunks of others, those first for which it is next in line, from the
far end of their owner's order, so that owner and helper meet in the middle. So the epoch ends for all at about the same time,
however unequal they are. It is over (`claim` returns None) when nothing is free, or when more than half of the members are in a
later one; the text of a peer that died counts as read.

What a liar can do: announce everything as taken. Then each peer still takes one chunk of its own per epoch, and as the
assignment changes with the epoch, all go on with samples of the text that overlap by chance: as good as no ledger, no worse.
A READ chunk is never given up, and of the chunks assigned to a peer none is given up to another member.
"""

# Shape suffixes: P = peers, C = chunks.

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, UsageError

MAX_CHUNKS = 8192  # its bitmap is 1 KiB, which fits into an announcement
MAX_EPOCH = 2**32 - 1
MAX_HEARD_PEERS = 4096  # 4 MiB of bitmaps at MAX_CHUNKS

_U64 = npt.NDArray[np.uint64]


def chunk_ids(n_chunks: int, text_digest: bytes) -> list[bytes]:
    """The names of the chunks of a text: its digest and the index."""
    return [text_digest + i.to_bytes(4, "big") for i in range(n_chunks)]


def assigned_to(ids: Sequence[bytes], members: Iterable[PeerId], epoch: int) -> dict[bytes, PeerId]:
    """For each chunk the member that is to read it. One that joins or leaves moves 1/n of them.

    Raises: UsageError, if there is no member.
    """
    peers = sorted(set(members))
    if not peers:
        raise UsageError("no members to assign chunks to")
    owner_C = scores_of(ids, peers, epoch).argmax(axis=0)
    return {chunk: peers[owner] for chunk, owner in zip(ids, owner_C.tolist(), strict=True)}


class LedgerState(msgspec.Struct, frozen=True):
    """What a ledger needs to go on after a restart. Bitmaps as in announcements."""

    epoch: int
    taken: bytes
    read: bytes
    others: bytes = b""
    """What others had taken in that epoch; empty: nothing."""

    def left_to_others(self) -> "LedgerState":
        """For a peer that goes on beside the one that this was of: all that was taken is read by others."""
        taken = bytes(a | b for a, b in zip(self.taken, self.others or self.taken, strict=True))
        none = bytes(len(taken))
        return LedgerState(self.epoch, none, none, taken)


class ChunkLedger:
    """What this peer has taken and read in its epoch, and what the others say that they have taken. Not thread-safe."""

    def __init__(self, n_chunks: int, me: PeerId, text_digest: bytes = b"") -> None:
        if not 1 <= n_chunks <= MAX_CHUNKS:
            raise UsageError(f"{n_chunks} chunks, must be 1 to {MAX_CHUNKS}")
        self.n_chunks = n_chunks
        self.me = me
        self.epoch = 0
        self._ids = chunk_ids(n_chunks, text_digest)
        # bit i of these integers is chunk i
        self._taken = 0
        self._read = 0
        self._gone = 0  # taken in this epoch by peers that are no longer in `_heard`
        self._taken_by: dict[PeerId, int] = {}  # in this epoch
        self._heard: dict[PeerId, tuple[int, int]] = {}  # (epoch, bitmap) as last announced; the longest silent first
        self._peers: list[PeerId] = [me]
        self._scores_PC = scores_of(self._ids, self._peers, 0)

    def claim(self, members: Iterable[PeerId]) -> int | None:
        """Take the next chunk. `members` are those alive now, with or without this peer.

        None, if the epoch is over: then call `next_epoch`, after which a claim succeeds.
        """
        self._update_peers(members)
        if self._epoch_of_most() > self.epoch:
            return None
        scores_PC = self._scores_PC
        mine_C = scores_PC[self._peers.index(self.me)]
        rank_C = (scores_PC > mine_C).sum(axis=0)  # how many are before me; 0: assigned to me
        free_C = ~self._flags(self._taken | self._taken_by_others())
        candidates = np.flatnonzero(free_C)
        if not len(candidates):
            if self._taken:
                return None
            # all is taken although this peer had nothing yet: it came late, or a peer lies. It reads something all the same
            candidates = np.flatnonzero(rank_C == rank_C.min())
        own = candidates[rank_C[candidates] == 0]
        if len(own):
            chosen = int(own[mine_C[own].argmax()])
        else:
            far_end_C = scores_PC.max(axis=0)
            chosen = int(candidates[np.lexsort((far_end_C[candidates], rank_C[candidates]))[0]])
        self._taken |= 1 << chosen
        return chosen

    def finished(self, chunk: int) -> None:
        """All of `chunk`, which this peer had taken, is read."""
        if not self.holds(chunk):
            raise UsageError(f"chunk {chunk} was not taken in epoch {self.epoch}")
        self._read |= 1 << chunk

    def holds(self, chunk: int) -> bool:
        """Whether `chunk` was taken in this epoch, and not given up."""
        return bool(self._taken >> chunk & 1)

    def is_read(self, chunk: int) -> bool:
        """Whether this peer read all of `chunk` in this epoch."""
        return bool(self._read >> chunk & 1)

    def heard(self, peer: PeerId, epoch: int, bitmap: bytes) -> tuple[int, ...]:
        """Another peer's announcement. The chunks that this one gives up to it: stop reading them.

        Raises: DecodeError, if the announcement is not possible for this text.
        """
        taken = _to_bits(bitmap, self.n_chunks)
        if not 0 <= epoch <= MAX_EPOCH:
            raise DecodeError(f"epoch {epoch}, must be 0 to {MAX_EPOCH}")
        if peer == self.me:
            return ()
        self._heard.pop(peer, None)
        self._heard[peer] = (epoch, taken)
        if len(self._heard) > MAX_HEARD_PEERS:
            oldest = next(iter(self._heard))
            del self._heard[oldest]
            self._gone |= self._taken_by.pop(oldest, 0)
        if epoch != self.epoch:
            return ()  # of an earlier one nothing follows; of a later one: what it took in this epoch stays taken
        self._taken_by[peer] = taken
        contested = _indices(taken & self._taken & ~self._read, self.n_chunks)
        lost = tuple(c for c in contested if self._outranks(peer, c))
        for chunk in lost:
            self._taken &= ~(1 << chunk)
        return lost

    def bitmap(self) -> bytes:
        """What this peer has taken in `epoch`, to be announced: bit i % 8 of byte i // 8 is chunk i."""
        return _to_bytes(self._taken, self.n_chunks)

    def next_epoch(self) -> None:
        """Begin the next epoch, or the one in which most members are if that is later."""
        # a liar may have called a newcomer to the last epoch that can be announced: there it stays, and reads
        self.epoch = min(max(self.epoch + 1, self._epoch_of_most()), MAX_EPOCH)
        self._taken = self._read = self._gone = 0
        self._taken_by = {peer: taken for peer, (epoch, taken) in self._heard.items() if epoch == self.epoch}
        self._scores_PC = scores_of(self._ids, self._peers, self.epoch)

    def state(self) -> LedgerState:
        """For `restore`."""
        others = _to_bytes(self._taken_by_others(), self.n_chunks)
        return LedgerState(self.epoch, self.bitmap(), _to_bytes(self._read, self.n_chunks), others)

    def restore(self, state: LedgerState) -> None:
        """Go on as the peer that `state` was of.

        Raises: DecodeError, if it was of another text.
        """
        taken, read = _to_bits(state.taken, self.n_chunks), _to_bits(state.read, self.n_chunks)
        gone = _to_bits(state.others, self.n_chunks) if state.others else 0
        if read & ~taken or not 0 <= state.epoch <= MAX_EPOCH:
            raise DecodeError(f"state of epoch {state.epoch} in which chunks were read that were not taken")
        self.epoch, self._taken, self._read, self._gone = state.epoch, taken, read, gone
        self._taken_by = {peer: bits for peer, (epoch, bits) in self._heard.items() if epoch == self.epoch}
        self._scores_PC = scores_of(self._ids, self._peers, self.epoch)

    def _update_peers(self, members: Iterable[PeerId]) -> None:
        # scoring 8192 chunks for 100 peers takes some milliseconds, which is too long for every claim
        peers = sorted({*members, self.me})
        if peers != self._peers:
            self._peers = peers
            self._scores_PC = scores_of(self._ids, peers, self.epoch)

    def _taken_by_others(self) -> int:
        taken = self._gone
        for bits in self._taken_by.values():
            taken |= bits
        return taken

    def _epoch_of_most(self) -> int:
        """The last epoch that more than half of the members have reached. Those never heard do not vote.

        This peer votes once it has taken something. Before, it has nothing to lose by following even a single other one.
        """
        epochs = sorted(self._heard[peer][0] for peer in self._peers if peer in self._heard)
        if self._taken or not epochs:
            epochs = sorted([*epochs, self.epoch])
        return epochs[(len(epochs) - 1) // 2]

    def _outranks(self, peer: PeerId, chunk: int) -> bool:
        score_P1 = scores_of([self._ids[chunk]], [peer, self.me], self.epoch)
        return bool(score_P1[0, 0] > score_P1[1, 0])

    def _flags(self, bits: int) -> npt.NDArray[np.bool_]:
        packed = np.frombuffer(_to_bytes(bits, self.n_chunks), np.uint8)
        return np.unpackbits(packed, count=self.n_chunks, bitorder="little").astype(bool)


def scores_of(ids: Sequence[bytes], peers: Sequence[PeerId], epoch: int) -> _U64:
    """Rendezvous scores (P, C).

    Not one SHA-256 for each pair (0.8 s for 8192 chunks and 100 peers): one for each chunk and each peer, and a mixer of 64 bits
    for the pair, which numpy does for all of them at once.
    """
    prefix = epoch.to_bytes(8, "big")
    of_chunk_C = _hashes(prefix + chunk for chunk in ids)
    of_peer_P = _hashes(peer.encode() for peer in peers)
    return _mix(of_peer_P[:, None] ^ of_chunk_C[None, :])


def _hashes(items: Iterable[bytes]) -> _U64:
    return np.array([int.from_bytes(hashlib.sha256(item).digest()[:8], "big") for item in items], dtype=np.uint64)


def _mix(z: _U64) -> _U64:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014; Stafford's variant 13): every bit of `z` moves every bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _to_bytes(bits: int, n_chunks: int) -> bytes:
    return bits.to_bytes(-(-n_chunks // 8), "little")


def _to_bits(bitmap: bytes, n_chunks: int) -> int:
    if len(bitmap) != -(-n_chunks // 8):
        raise DecodeError(f"bitmap of {len(bitmap)} bytes, must be {-(-n_chunks // 8)} for {n_chunks} chunks")
    bits = int.from_bytes(bitmap, "little")
    if bits >> n_chunks:
        raise DecodeError(f"bitmap names chunk {bits.bit_length() - 1} of {n_chunks}")
    return bits


def _indices(bits: int, n_chunks: int) -> list[int]:
    return [i for i in range(n_chunks) if bits >> i & 1] if bits else []
