"""Rules whose result is a weighted mean of the pushes, with weights by which few of them cannot move it far.

Each takes points and how many of them may be hostile, and returns the factor on each push.
"""

# Shape suffixes: P = points, Q = new points.

import hashlib

import numpy as np

from legion_p2p.tensor.robust.geometry import Floats
from legion_p2p.tensor.robust.points import Points, lower_median, shares, total

MAX_WEISZFELD_STEPS = 100  # 10 to 30 are enough where norms are capped
SETTLED = 1e-9  # of a share: a smaller change ends the iteration
NO_DISTANCE = 1e-6  # of the median distance: what is nearer counts as there already
CLIPPING_STEPS = 3  # Karimireddy, He and Jaggi (2012.10333) use one to three
BUCKET = 2  # pushes that are averaged before centered clipping, as in Karimireddy, He and Jaggi (2006.09365)
NEAR_DUPLICATE = 0.05  # of the median squared distance: pushes of two that trained by themselves are never so near


def mean(points: Points, hostile: int) -> Floats:
    """By weight."""
    return points.factors(points.shares())


def geometric_median(points: Points, hostile: int) -> Floats:
    """Where the weighted sum of distances is least, by Weiszfeld's iteration from the mean.

    Less than half of the weight, however far away, moves it no further than a multiple of the others' own distances (Pillutla,
    Kakade and Harchaoui, 1912.13445).
    """
    share_P: list[float] = points.shares().tolist()
    weight_P: list[float] = points.weight_P[:-1].tolist()
    for _ in range(MAX_WEISZFELD_STEPS):
        distance_P = points.distances_of(share_P)[:-1]
        least = NO_DISTANCE * sorted(distance_P)[(points.n - 1) // 2]
        distance_P = [max(distance, least) for distance in distance_P]
        if not all(distance_P):
            break  # more than half are at one point, and this is it
        pull_P = [weight / distance for weight, distance in zip(weight_P, distance_P, strict=True)]
        whole = total(pull_P)
        before_P, share_P = share_P, [*(pull / whole for pull in pull_P), 0.0]
        if max(abs(share - before) for share, before in zip(share_P, before_P, strict=True)) < SETTLED:
            break
    return points.factors(np.array(share_P))


def centered_clip(points: Points, hostile: int) -> Floats:
    """The mean of what each is apart from a center, where none counts further than the median; then again from there.

    The first center is the origin. Pairs are averaged before, in an order that follows from all pushes, so that no member knew it
    when it pushed.
    """
    points = _buckets(points)
    center_P = np.append(np.zeros(points.n), 1.0)
    for _ in range(CLIPPING_STEPS):
        distance_P = points.distances(center_P)
        radius = lower_median(distance_P[:-1])
        clipped_P = np.divide(radius, distance_P, out=np.ones_like(distance_P), where=distance_P > radius)
        step_P = points.shares() * clipped_P
        center_P = center_P * (1.0 - total(step_P.tolist())) + step_P
    return points.factors(center_P)


def nearest_neighbour_median(points: Points, hostile: int) -> Floats:
    """Near-duplicates share one weight, each point becomes the mean of its nearest neighbours, and of these the geometric median.

    Neighbours: Allouah et al. (2302.01772), which suits members whose data differ. Duplicates: members that collude push alike,
    and sparse pushes of two that do not are nearly orthogonal.
    """
    return geometric_median(_mixed_with_neighbours(_without_duplicates(points), hostile), hostile)


def _without_duplicates(points: Points) -> Points:
    apart_PP = points.apart_PP[:-1, :-1]
    n = points.n
    if n < 3:
        return points  # of two nobody knows which one is the copy, and there is no third to compare distances with
    limit = NEAR_DUPLICATE * lower_median(apart_PP[np.triu_indices(n, 1)])
    copies_P = (apart_PP < limit).sum(axis=1)
    weight_P = np.append(points.weight_P[:-1] / np.maximum(copies_P, 1), 0.0)
    return Points(weight_P, points.mix_PN, points.apart_PP)


def _mixed_with_neighbours(points: Points, hostile: int) -> Points:
    if not hostile:
        return points
    n = points.n
    order_PP = np.argsort(points.apart_PP[:-1, :-1], axis=1, kind="stable")[:, : n - hostile]
    share_QP = np.zeros((n + 1, n + 1))
    for q, nearest in enumerate(order_PP):
        chosen_P = np.zeros(n + 1)
        chosen_P[nearest] = points.weight_P[nearest]
        share_QP[q] = shares(chosen_P)
    share_QP[n, n] = 1.0
    return points.mixed(share_QP, points.weight_P)


def _buckets(points: Points) -> Points:
    n = points.n
    if n <= BUCKET:
        return points
    seed = hashlib.sha256(points.apart_PP.astype("<f8").tobytes()).digest()
    order = sorted(range(n), key=lambda i: hashlib.sha256(seed + i.to_bytes(4, "big")).digest())
    starts = range(0, n, BUCKET)
    share_QP = np.zeros((len(starts) + 1, n + 1))
    weight_Q = np.zeros(len(starts) + 1)
    for q, start in enumerate(starts):
        chosen_P = np.zeros(n + 1)
        chosen_P[order[start : start + BUCKET]] = points.weight_P[order[start : start + BUCKET]]
        weight_Q[q], share_QP[q] = total(chosen_P.tolist()), shares(chosen_P)
    share_QP[-1, -1] = 1.0
    return points.mixed(share_QP, weight_Q)
