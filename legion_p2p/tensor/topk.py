"""The largest few of each chunk, at a few bits each, with entropy-coded indices (as SparseLoCo, 2508.15706, section 3).

The flat tensor is cut into chunks of 4096. Of each, the k largest magnitudes are sent (of a shorter last one k / 4096 of its
length, rounded up), each as a sign and one of L = 2**(bits-1) levels of its chunk; everything else is left to error feedback.

    body = k (uint16), bits (uint8), Rice parameter (uint8), then, for C = ceil(N / 4096) chunks and n values in all,
           C highest levels (bf16), C drops (uint8, unless bits is 1), n codes of `bits`, n gaps between indices (see `packing`)

    lowest level = highest * about 2**(-drop / 32), and 0 for drop 255;    value = +-(lowest + level * (highest - lowest) / (L-1))

A code has its sign in its highest bit. A gap is how many elements of the same chunk lie between one index and the next.

- 1 bit: the only level is the mean magnitude, which has the least squared error.
- 2 bits: the two levels are the exact optimum of Lloyd and Max for the values of the chunk.
- 4, 8, 16 bits: even steps that reach from the smallest to the largest value sent, so that no error exceeds half a step.

Two levels per chunk withstand an outlier: whatever its size, it becomes the highest level, and the others keep the lowest, or
zero if they are 256 times as small. With one scale they would be sent as large as the scale.

Measured by `benchmarks/codecs.py`, where a squared error of 1 is that of sending nothing:

                     bits per     times less   squared error:   of a normal
                     element      than fp32    normal values    value cubed
    topk16-2bit      0.0505       634          0.960            0.704
    topk32-2bit      0.0877       365          0.931            0.593
    topk64-2bit      0.154        207          0.881            0.467
    topk64-4bit      0.186        172          0.881            0.447
    topk128-2bit     0.271        118          0.801            0.340
    topk128-4bit     0.334        95.8         0.800            0.305
    topk256-4bit     0.598        53.5         0.676            0.180
"""

# Shape suffixes: N = elements, C = chunks (a shorter last one is apart), B = elements of a chunk, K = sent ones of it,
# W = candidates to be sent, G = groups.

import re
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.errors import CodecError, UsageError
from legion_p2p.tensor import body, packing

VERSION = 1
CHUNK = 4096
MAX_K = CHUNK // 2
"""More than half of all values are cheaper sent dense."""
VALUE_BITS = (1, 2, 4, 8, 16)

LOWEST_HIGH = 0x0D80
"""bf16 bits of 2**-100. Chunks below are written as zero: so a step, 2**22 times as small at least, is never subnormal, where
what it is worth would depend on the flush-to-zero mode of the machine."""
HIGHEST_HIGH = 0x7F7F
"""bf16 bits of its largest finite number."""
ZERO_DROP = 255

_NAME: Final = re.compile(r"topk([1-9][0-9]{0,3})-(1|2|4|8|16)bit")
_PARAMETERS: Final = struct.Struct("<HBB")
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_STRIP = 64  # chunks that are selected from at once: 1 MiB of magnitudes stays in the cache


@dataclass(frozen=True)
class TopK:
    """Top-k of each chunk of 4096, with values of `bits`.

    Selection, levels, and packing run where the tensor lives; only compressed bytes cross to the host.
    """

    k: int
    bits: int

    codec_id = 5

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K or self.bits not in VALUE_BITS:
            raise UsageError(f"top-{self.k} with {self.bits} bits, must be top-1 to top-{MAX_K} with {VALUE_BITS} bits")

    @property
    def name(self) -> str:
        return f"topk{self.k}-{self.bits}bit"

    @property
    def bits_per_element(self) -> float:
        """For indices at random places; others take fewer."""
        rate: float = self.k / CHUNK
        # a gap is geometric; so is its quotient by 2**b, whose mean is r / (1 - r) with r = (1 - rate)**(2**b)
        fails = [float((1 - rate) ** (2**b)) for b in range(packing.PLAIN)]
        per_index = min(packing.PLAIN, *(b + 1 + r / (1 - r) for b, r in enumerate(fails)))
        return rate * (self.bits + per_index) + (16 if self.bits == 1 else 24) / CHUNK

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32."""
        x_N = body.encodable(x)
        body.require_finite(x_N)
        highs, drops, codes, gaps = [], [], [], []
        for x_CB in _chunks(x_N):
            index_CK = _largest(x_CB, self._sent_of(x_CB.shape[1]))
            high_C, drop_C, code_CK = _quantize(x_CB.gather(1, index_CK), self.bits)
            highs.append(high_C.to(torch.int16))
            drops.append(drop_C.to(torch.uint8))
            codes.append(code_CK.flatten())
            gaps.append((index_CK.diff(dim=1, prepend=index_CK.new_full((len(index_CK), 1), -1)) - 1).flatten().to(torch.int16))
        empty = x_N.new_empty(0, dtype=torch.int16)
        b, remainders, quotients = packing.rice(torch.cat([empty, *gaps]))
        levels = [torch.cat([empty, *highs])] if self.bits == 1 else [torch.cat([empty, *highs]), *drops]
        parameters = torch.frombuffer(bytearray(_PARAMETERS.pack(self.k, self.bits, b)), dtype=torch.uint8)
        code_N = packing.pack(torch.cat([empty.int(), *codes]), self.bits)
        return body.pack(self.codec_id, VERSION, x_N.numel(), parameters, *levels, code_N, remainders, quotients)

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        return self.filled(self.parse(data, numel), 0, numel)

    def parse(self, data: bytes | memoryview, numel: int) -> "Sparse":
        """What a body says. Raises: CodecError."""
        n_chunks = -(-numel // CHUNK)
        n_sent = numel // CHUNK * self.k + self._sent_of(numel % CHUNK)
        n_drops = 0 if self.bits == 1 else n_chunks
        at_codes = _PARAMETERS.size + 2 * n_chunks + n_drops
        at_gaps = at_codes + packing.packed_bytes(n_sent, self.bits)
        most = max(packing.most_rice_bytes(n_sent, b, numel) for b in range(packing.PLAIN + 1))
        raw = body.unpack(data, self.codec_id, VERSION, numel, at_gaps, at_gaps + most)
        k, bits, b = _PARAMETERS.unpack_from(raw)
        if (k, bits) != (self.k, self.bits) or b > packing.PLAIN:
            raise CodecError(f"top-{k} of {bits} bits with Rice parameter {b}, expected {self.name} with 0 to {packing.PLAIN}")
        if len(raw) - at_gaps > packing.most_rice_bytes(n_sent, b, numel):
            raise CodecError(f"{len(raw) - at_gaps} bytes for {n_sent} indices with Rice parameter {b} are too many")

        high_C = body.read(raw, "int16", n_chunks, _PARAMETERS.size).int()
        if not bool(((high_C == 0) | ((high_C >= LOWEST_HIGH) & (high_C <= HIGHEST_HIGH))).all()):
            raise CodecError(f"{self.name} body has a level that is neither 0 nor in 2**-100 to 3.39e38")
        drop_C = body.read(raw, "uint8", n_drops, _PARAMETERS.size + 2 * n_chunks).int() if n_drops else torch.zeros_like(high_C)
        code_N = packing.unpack(body.read(raw, "uint8", at_gaps - at_codes, at_codes), self.bits, n_sent)
        return Sparse(high_C, drop_C, code_N, packing.read_rice(raw[at_gaps:], b, n_sent).to(torch.int16))

    def filled(self, sparse: "Sparse", first: int, last: int) -> Tensor:
        """Elements `first` to `last`: multiples of CHUNK, or the end. Raises: CodecError."""
        x_N = torch.zeros(last - first, dtype=torch.float32, device="cpu")
        chunk, sent = first // CHUNK, first // CHUNK * self.k
        for x_CB in _chunks(x_N):
            c, k = len(x_CB), self._sent_of(x_CB.shape[1])
            index_CK = (sparse.gap_N[sent : sent + c * k].view(c, k) + 1).cumsum(1) - 1
            if bool((index_CK[:, -1] >= x_CB.shape[1]).any()):
                raise CodecError(f"{self.name} body has an index beyond its chunk")
            high_C1, drop_C1 = sparse.high_C[chunk : chunk + c, None], sparse.drop_C[chunk : chunk + c, None]
            low_C1, step_C1 = _levels(high_C1, drop_C1, self.bits)
            x_CB.scatter_(1, index_CK, _values(sparse.code_N[sent : sent + c * k].view(c, k), low_C1, step_C1, self.bits))
            chunk, sent = chunk + c, sent + c * k
        return x_N

    def _sent_of(self, length: int) -> int:
        """How many of a chunk of `length` elements are sent."""
        return -(-self.k * length // CHUNK)


class Sparse(NamedTuple):
    """What a body says: of each chunk its levels, of each value sent its code and how many elements lie before it."""

    high_C: Tensor
    drop_C: Tensor
    code_N: Tensor
    gap_N: Tensor


def parse(name: str) -> TopK | None:
    """The codec that `name` describes, as in "topk64-2bit"; None if it does not, or asks for more than MAX_K."""
    found = _NAME.fullmatch(name)
    return TopK(int(found[1]), int(found[2])) if found and int(found[1]) <= MAX_K else None


def _chunks(x_N: Tensor) -> list[Tensor]:
    """Views of `x_N` that cover it: the whole chunks (C, B), and what is left (1, N mod B). Either is missing if empty."""
    n_whole = x_N.numel() - x_N.numel() % CHUNK
    views = [x_N[:n_whole].view(-1, CHUNK), x_N[n_whole:].view(1, -1)]
    return [view for view in views if view.numel()]


def _largest(x_CB: Tensor, k: int) -> Tensor:
    """Where the `k` largest magnitudes of each row are, ascending (C, K) int64. Of equal ones on the CPU, the first."""
    if x_CB.device.type != "cpu":
        return x_CB.abs().topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    strips = []
    for strip_CB in torch.split(x_CB, _STRIP):
        magnitude_CW, index_CW = _candidates(strip_CB.abs().numpy(), k)
        # numpy's partition is vectorized: 1.5 times as fast as topk, and twice as fast as argpartition
        threshold_C1 = np.partition(magnitude_CW, -k, axis=1)[:, -k, None]
        chosen_CW = magnitude_CW >= threshold_C1
        (tied,) = np.nonzero(np.count_nonzero(chosen_CW, axis=1) > k)
        if len(tied):
            above = magnitude_CW[tied] > threshold_C1[tied]
            equal = magnitude_CW[tied] == threshold_C1[tied]
            room = k - np.count_nonzero(above, axis=1)
            chosen_CW[tied] = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None]))
        strips.append(torch.from_numpy(index_CW[chosen_CW].reshape(-1, k)))
    return torch.cat(strips)


def _candidates(magnitude_CB: Floats, k: int) -> tuple[Floats, Integers]:
    """Among which the `k` largest of each row are, in order, and where: (C, W), with -1 where a row has fewer than others.

    Of groups of elements, the k-th largest of their maxima is a lower bound, since k elements reach it; with 4 k groups, hardly
    more do: 1.14 k of random ones. So the partition that follows has little left to do: three times as fast.
    """
    c, length = magnitude_CB.shape
    n_groups = max(64, 1 << (4 * k - 1).bit_length())
    if length % n_groups or n_groups > length // 4:
        return magnitude_CB, np.broadcast_to(np.arange(length), (c, length))
    group_CG = magnitude_CB.reshape(c, -1, n_groups).max(axis=1)
    bound_C1 = np.partition(group_CG, -k, axis=1)[:, -k, None]
    mask_CB = magnitude_CB >= bound_C1
    flat = np.flatnonzero(mask_CB)
    counts = np.count_nonzero(mask_CB, axis=1)
    filled_CW = np.arange(counts.max()) < counts[:, None]
    found_CW, index_CW = np.full(filled_CW.shape, -1, np.float32), np.zeros(filled_CW.shape, np.int64)
    found_CW[filled_CW] = magnitude_CB.ravel()[flat]
    index_CW[filled_CW] = flat % length
    return found_CW, index_CW


def _quantize(value_CK: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of the highest level (C), drop (C), code of each value (C, K)."""
    magnitude_CK = value_CK.abs()
    largest_C1 = magnitude_CK.amax(dim=1, keepdim=True)
    if bits == 1:
        # relative to the largest, lest the sum of huge values be infinite
        relative_CK = (magnitude_CK / largest_C1).where(largest_C1 > 0, 0.0)
        high_C1 = _nearest(relative_CK.mean(dim=1, keepdim=True) * largest_C1)
        drop_C1 = torch.zeros_like(high_C1)
    elif bits == 2:
        low_C1, high_C1 = _two_means(magnitude_CK, largest_C1)
        high_C1 = _nearest(high_C1)
        drop_C1 = _drop(high_C1, low_C1, round_up=False)
    else:
        high_C1 = ((largest_C1.view(torch.int32) + 0xFFFF) >> 16).clamp_max(HIGHEST_HIGH)
        drop_C1 = _drop(high_C1, magnitude_CK.amin(dim=1, keepdim=True), round_up=True)
    high_C1 = high_C1.where(high_C1 >= LOWEST_HIGH, 0)
    drop_C1 = drop_C1.where(high_C1 > 0, 0)
    low_C1, step_C1 = _levels(high_C1, drop_C1, bits)
    per_step_C1 = step_C1.reciprocal().where(step_C1 > 0, 0.0)
    level_CK = ((magnitude_CK - low_C1) * per_step_C1).round_().clamp_(0, 2 ** (bits - 1) - 1).to(torch.int32)
    code_CK = level_CK | (value_CK < 0).to(torch.int32) << (bits - 1)
    return high_C1.flatten(), drop_C1.flatten(), code_CK


def _two_means(magnitude_CK: Tensor, largest_C1: Tensor) -> tuple[Tensor, Tensor]:
    """The two levels (C, 1) with the least squared error: of all places to cut the sorted values, the best."""
    k = magnitude_CK.shape[1]
    if k == 1:
        return magnitude_CK, magnitude_CK
    relative_CK = (magnitude_CK / largest_C1).where(largest_C1 > 0, 0.0)
    sum_CK = relative_CK.sort(dim=1).values.cumsum(1)
    below = torch.arange(1, k, dtype=torch.float32, device=magnitude_CK.device)
    low_CK = sum_CK[:, :-1] / below
    high_CK = (sum_CK[:, -1:] - sum_CK[:, :-1]) / (k - below)
    # the variance that a cut explains
    explained_CK = below * (k - below) * (high_CK - low_CK).square()
    cut_C1 = explained_CK.argmax(dim=1, keepdim=True)
    return low_CK.gather(1, cut_C1) * largest_C1, high_CK.gather(1, cut_C1) * largest_C1


def _nearest(x: Tensor) -> Tensor:
    """Bits of the nearest finite bf16 of non-negative numbers, as int32."""
    return x.to(torch.bfloat16).view(torch.int16).to(torch.int32).clamp_max(HIGHEST_HIGH)


def _drop(high_C1: Tensor, low_C1: Tensor, round_up: bool) -> Tensor:
    """How far below the highest level `low_C1` is, in 1/32 of a factor of two, by the bits of the numbers."""
    difference_C1 = (high_C1 << 16) - low_C1.view(torch.int32)
    steps_C1 = (difference_C1.clamp_min(0) + (2**18 - 1 if round_up else 2**17)) >> 18
    return steps_C1.clamp_max(ZERO_DROP)


def _levels(high_C1: Tensor, drop_C1: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The lowest level and the step from each to the next, as fp32. Each operation is rounded by itself: same bits everywhere."""
    low_bits_C1 = (high_C1 - 4 * drop_C1).where(drop_C1 != ZERO_DROP, 0).clamp_min(0)
    low_C1, top_C1 = (low_bits_C1 << 16).view(torch.float32), (high_C1 << 16).view(torch.float32)
    # by a tensor: a GPU divides by a number as it multiplies by its inverse, which gives other bits
    return low_C1, (top_C1 - low_C1) / top_C1.new_full((), max(1, 2 ** (bits - 1) - 1))


def _values(code_CK: Tensor, low_C1: Tensor, step_C1: Tensor, bits: int) -> Tensor:
    """What the codes stand for, as fp32."""
    sign_bit = 1 << (bits - 1)
    magnitude_CK = (code_CK & (sign_bit - 1)).to(torch.float32).mul_(step_C1).add_(low_C1)
    return magnitude_CK.where(code_CK & sign_bit == 0, -magnitude_CK)


READY_MADE: Final = tuple(TopK(k, bits) for k, bits in ((16, 2), (32, 2), (64, 2), (64, 4), (128, 2), (128, 4), (256, 4)))
