"""Batch selection by the posterior kernel K = X Xᵀ.

Shapes: n candidates, m training structures, p features. Rows are posterior-transformed features: |x|² is the squared
uncertainty. Ties go to the lower index.

A pick costs O(n p) where all candidates must be looked at. For MaxDet and MaxDist values only fall: there candidates that
cannot be the next are left alone (:class:`pipeline.selection.rows.Frontier`), and the picks are the same.

Several ranks share the candidates: each keeps its rows, and all learn of every pick. The picks are those of a single process
but for candidates that differ by rounding alone: products of matrices of other shapes may round differently.

Distances are |x|² + |y|² − 2 x·y. In single precision that takes rows without a large part in common: MaxDist and LCMD do not
care from which point they are measured, so long as it is the same for candidates and training set.

After Holzmüller et al., J. Mach. Learn. Res. 24 (2023) 1; Zaverkin et al. 2024.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.frames import FloatArray
from pipeline.ranks import Ranks
from pipeline.selection.rows import Features, Frontier, Rows, squared_norms
from pipeline.selection.spread import Best, Spread

RANK_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""A remaining variance below this share of the largest is rounding: nothing new is left to pick."""
DISTANCES = 2**22
"""Distances from training structures that are computed together."""


def maxdiag(features: Features, count: int, spread: Spread | None = None, device: str = "cpu") -> list[int]:
    """The most uncertain candidates, whatever they have in common.

    Args:
        features: (n, p).
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
        device: what computes.
    """
    return _largest(Rows(features, device).squares(), count, spread or Spread.alone(len(features)))


def maxdet(features: Features, count: int, spread: Spread | None = None, device: str = "cpu") -> list[int]:
    """Greedy maximisation of det K over the picks.

    Every pick is the candidate of largest variance given those before: of largest distance from the space they span. When the
    picks span all features, the rest are the most uncertain of the remaining ones.

    Args:
        features: (n, p).
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
        device: what computes.
    """
    spread, rows = spread or Spread.alone(len(features)), Rows(features, device)
    squares = rows.squares()
    frontier = Frontier(rows, squares, squares, _less_along)
    most = min(count, spread.count)
    spanned = torch.zeros((most, features.shape[1]), dtype=torch.float64, device=rows.device)
    picks: list[int] = []
    threshold = 0.0
    for k in range(most):
        best = spread.best_of(*frontier.largest())
        threshold = threshold if picks else RANK_TOLERANCE[rows.dtype] * best.value
        if best.value <= threshold:
            break
        direction = _told(spread, rows, best)
        for _ in range(2):  # once leaves rounding of the size of what was taken away
            direction = direction - (spanned[:k] @ direction) @ spanned[:k]
        spanned[k] = direction / torch.linalg.vector_norm(direction)
        _remove(frontier, spread, best.item)
        frontier.see(spanned[k])
        picks.append(best.item)
    return _filled(picks, squares, count, spread)


def maxdist(
    features: Features, train: Features, count: int, spread: Spread | None = None, device: str = "cpu"
) -> list[int]:
    """Every pick is the candidate farthest from the training set and the picks before; without either, the most uncertain.

    Args:
        features: (n, p).
        train: (m, p), may be empty; with several ranks consecutive parts of it.
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
        device: what computes.
    """
    spread, rows = spread or Spread.alone(len(features)), Rows(features, device)
    squares = rows.squares()
    nearest, _, labelled = _nearest(rows, squares, train, spread.ranks)
    most = min(count, spread.count)
    picks: list[int] = []
    if most and not labelled:
        picks = _largest(squares, 1, spread)
        best = Best(picks[0], 0.0, spread.owner(picks[0]))
        nearest = _distances(rows, squares, _told(spread, rows, best))
    frontier = Frontier(rows, squares, nearest, _less_far)
    for item in picks:
        _remove(frontier, spread, item)
    while len(picks) < most:
        best = spread.best_of(*frontier.largest())
        _remove(frontier, spread, best.item)
        frontier.see(_told(spread, rows, best))
        picks.append(best.item)
    return picks


def lcmd(
    features: Features, train: Features, count: int, spread: Spread | None = None, device: str = "cpu"
) -> list[int]:
    """Largest cluster, maximum distance.

    Candidates belong to the nearest point of training set and picks. Every pick is the farthest member of the cluster with
    the largest sum of squared distances.

    Args:
        features: (n, p).
        train: (m, p), may be empty; with several ranks consecutive parts of it.
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
        device: what computes.
    """
    spread, rows = spread or Spread.alone(len(features)), Rows(features, device)
    squares = rows.squares()
    nearest, cluster, labelled = _nearest(rows, squares, train, spread.ranks)
    free = torch.ones(rows.count, dtype=torch.bool, device=rows.device)
    picks: list[int] = []
    for _ in range(min(count, spread.count)):
        if labelled == 0 and not picks:
            best = spread.best(squares)
        else:
            # a GPU adds in whatever order its threads come: a sum could differ from one run to the next
            sums = torch.bincount(cluster.cpu(), nearest.cpu(), minlength=labelled + len(picks))
            largest = int(np.argmax(spread.ranks.sum(sums.numpy())))
            best = _farthest(spread, nearest, free & (cluster == largest))
            if best.value == -np.inf:  # nobody is left in it
                best = _farthest(spread, nearest, free)
        distances = _distances(rows, squares, _told(spread, rows, best))
        closer = torch.nonzero(distances < nearest).squeeze(1)
        nearest[closer] = distances[closer]
        cluster[closer] = labelled + len(picks)
        if (at := spread.place(best.item)) is not None:
            free[at], nearest[at] = False, 0.0
        picks.append(best.item)
    return picks


def at_random(n: int, count: int, seed: int) -> list[int]:
    """``count`` of ``n`` candidates without replacement, in random order."""
    return [int(k) for k in np.random.default_rng(seed).permutation(n)[:count]]


def _less_along(rows: Tensor, _: Tensor, variances: Tensor, directions: Tensor) -> Tensor:
    """Variances (k,) of rows (k, p) without what lies along orthonormal directions (m, p)."""
    return variances - squared_norms(rows @ directions.t())


def _less_far(rows: Tensor, squares: Tensor, distances: Tensor, picks: Tensor) -> Tensor:
    """Squared distances (k,) of rows (k, p) from the nearest of what was there and picks (m, p)."""
    return torch.minimum(distances, _squared_distances(rows, squares, picks).amin(dim=1))


def _squared_distances(rows: Tensor, squares: Tensor, points: Tensor) -> Tensor:
    """(k, m) float64, never negative."""
    products = (rows @ points.t()).to(torch.float64)
    return (squares.unsqueeze(1) + squared_norms(points) - 2.0 * products).clamp_(min=0.0)


def _farthest(spread: Spread, nearest: Tensor, among: Tensor) -> Best:
    """The item of largest value among some (n,) of each rank; −inf where no rank has any."""
    places = torch.nonzero(among).squeeze(1)
    if len(places) == 0:
        return spread.best_of(-np.inf, 0)
    value, at = torch.max(nearest[places], dim=0)
    return spread.best_of(float(value), int(places[at]))


def _distances(rows: Rows, squares: Tensor, point: Tensor) -> Tensor:
    """(n,) squared distances of all rows from a point (p,), never negative."""
    return rows.along(point).mul_(-2.0).add_(squares).add_(point.square().sum()).clamp_(min=0.0)


def _told(spread: Spread, rows: Rows, best: Best) -> Tensor:
    """(p,) the features of a candidate, float64 and on the device of every rank."""
    at = spread.place(best.item)
    row = spread.ranks.broadcast(np.zeros(0) if at is None else rows.row(at), best.owner)
    return torch.from_numpy(row).to(rows.device)


def _remove(frontier: Frontier, spread: Spread, item: int) -> None:
    """Nobody picks an item twice."""
    if (at := spread.place(item)) is not None:
        frontier.remove(at)


def _largest(squares: Tensor, count: int, spread: Spread) -> list[int]:
    """The items of largest value on all ranks."""
    values: FloatArray = squares.cpu().numpy()
    most = np.argsort(-values, kind="stable")[:count]
    parts = spread.ranks.gather((values[most], spread.items[most]))
    values, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    return [int(k) for k in items[np.lexsort((items, -values))][:count]]


def _nearest(rows: Rows, squares: Tensor, train: Features, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """(n,) squared distance to, and (n,) index of, the nearest training point ((inf, 0) without any), and how many there are.

    The training points of each rank visit all of them in turn.
    """
    nearest = torch.full_like(squares, torch.inf)
    which = torch.zeros(rows.count, dtype=torch.int64, device=rows.device)
    before = 0
    for root in range(ranks.size):
        points = torch.from_numpy(ranks.broadcast(train, root)).to(rows.device, rows.dtype)
        for part, block in rows.blocks() if len(points) else ():
            step = max(1, DISTANCES // len(points))
            for start in range(0, len(block), step):
                here = slice(part.start + start, part.start + min(start + step, len(block)))
                squared = _squared_distances(block[start : start + step], squares[here], points)
                least, found = squared.min(dim=1)
                which[here] = torch.where(least < nearest[here], before + found, which[here])
                nearest[here] = torch.minimum(nearest[here], least)
        before += len(points)
    return nearest, which, before


def _filled(picks: list[int], squares: Tensor, count: int, spread: Spread) -> list[int]:
    """The picks, and the most uncertain others up to ``count``."""
    chosen = set(picks)
    if len(picks) == min(count, spread.count):
        return picks
    rest = [k for k in _largest(squares, count + len(picks), spread) if k not in chosen]
    return picks + rest[: count - len(picks)]
