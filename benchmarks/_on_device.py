"""What members and owners of a run compute in a round, on the device where the tensors are, without packing bytes.

The codecs choose and round there already; what is added here is to take what a receiver would decode without packing it, and the
mean of the pushes. `benchmarks/device_checks.py` compares both with the functions that peers run.
"""

# Shape suffixes: N = elements, B = blocks, E = elements of a block, P = pushes.

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from legion_p2p.tensor import mean_length, topk
from legion_p2p.tensor.blockwise import Blockwise, strips
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.mixed import Mixed
from legion_p2p.tensor.robust.centers import nearest_neighbour_median
from legion_p2p.tensor.robust.points import Points

TINY = mean_length.TINY


def sent(codec: Codec, x_N: Tensor) -> Tensor:
    """What `codec.decode(codec.encode(x_N), len(x_N))` is, where `x_N` is."""
    if isinstance(codec, Mixed):
        out_N = torch.empty_like(x_N)
        for part, ranges in ((codec._main, codec._rest), (codec._dense, codec.ranges)):
            if not ranges:
                continue
            made, at = sent(part, torch.cat([x_N[a:b] for a, b in ranges])), 0
            for a, b in ranges:
                out_N[a:b] = made[at : at + b - a]
                at += b - a
        return out_N
    if isinstance(codec, topk.TopK):
        out_N = torch.zeros_like(x_N)
        for x_CB, out_CB in zip(topk._chunks(x_N), topk._chunks(out_N), strict=True):
            index_CK = topk._largest(x_CB, codec._sent_of(x_CB.shape[1]))
            high_C, drop_C, code_CK = topk._quantize(x_CB.gather(1, index_CK), codec.bits)
            low_C1, step_C1 = topk._levels(high_C[:, None], drop_C[:, None], codec.bits)
            out_CB.scatter_(1, index_CK, topk._values(code_CK, low_C1, step_C1, codec.bits))
        return out_N
    if isinstance(codec, Blockwise):
        q_N = torch.empty(len(x_N), dtype=torch.int8, device=x_N.device)
        out_N = torch.empty_like(x_N)
        rows = zip(strips(x_N, 256), strips(q_N, 256), strips(out_N, 256), strict=True)
        for x_KB, q_KB, out_KB in rows:
            scale_K = codec._quantize(x_KB, q_KB, None)
            torch.mul(q_KB.to(torch.float32), scale_K[:, None], out=out_KB)
        return out_N
    if codec.name == "fp32":
        return x_N.clone()
    raise ValueError(f"{codec.name} has no form on a device here")


def aggregate(values: Sequence[Tensor], restore: float) -> tuple[Tensor, float | None]:
    """The mean of pushes of equal weight and steps by the rule "nearest-neighbours", norms capped at the median, and the part
    `restore` of its length given back; and their agreement.
    """
    x_PN = torch.stack(list(values)).double()
    norm_P = x_PN.norm(dim=1)
    cap_P = (norm_P.sort().values[(len(norm_P) - 1) // 2] / norm_P).clamp(max=1.0)
    x_PN *= cap_P[:, None]
    n = len(values)
    gram_PP = (x_PN @ x_PN.T).cpu().numpy()
    own_P = gram_PP.diagonal()
    apart_PP = np.zeros((n + 1, n + 1))
    apart_PP[:-1, :-1] = np.maximum(own_P[:, None] + own_P[None, :] - 2 * gram_PP, 0)
    np.fill_diagonal(apart_PP, 0)
    apart_PP[:-1, -1] = apart_PP[-1, :-1] = own_P
    points = Points(np.append(np.ones(n), 0.0), np.eye(n + 1, n), apart_PP)
    share_P = torch.from_numpy(np.asarray(nearest_neighbour_median(points, 0))[:n]).to(x_PN.device)
    mean_N = (x_PN * share_P[:, None]).sum(0).float()
    if restore <= 0:
        return mean_N, None
    mean_N = mean_N.double()
    share_P = share_P / share_P.sum()
    padded = torch.nn.functional.pad(x_PN, (0, -x_PN.shape[1] % mean_length.BLOCK))
    square_PB = padded.view(n, -1, mean_length.BLOCK).square_().sum(2)
    all_B = (square_PB * share_P[:, None]).sum(0)
    own_B = (square_PB * share_P[:, None].square()).sum(0)
    square_B = torch.nn.functional.pad(mean_N, (0, -len(mean_N) % mean_length.BLOCK)).view(-1, mean_length.BLOCK).square().sum(1)
    lost_B = (all_B / torch.maximum(square_B, own_B).clamp_min(TINY)).clamp_min(1.0).sqrt()
    longer_B = 1.0 + restore * (lost_B - 1.0)
    out_N = (longer_B.repeat_interleave(mean_length.BLOCK)[: len(mean_N)] * mean_N).float()
    squares, owns, everything = float(square_B.sum()), float(own_B.sum()), float(all_B.sum())
    return out_N, min(1.0, max(0.0, (squares - owns) / (everything - owns))) if everything > owns else None
