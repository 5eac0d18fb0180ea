"""Batch selection by the posterior kernel K = X Xᵀ: every method costs O(n p) per pick.

Shapes: n candidates, m training structures, p features. Rows are posterior-transformed features: |x|² is the squared
uncertainty. Ties go to the lower index.

Several ranks share the candidates: each keeps its rows, and all learn of every pick. The picks are those of a single process
but for candidates that differ by rounding alone: products of matrices of other shapes may round differently.

After Holzmüller et al., J. Mach. Learn. Res. 24 (2023) 1; Zaverkin et al. 2024.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.frames import FloatArray, IntArray
from pipeline.ranks import Ranks
from pipeline.selection.spread import Best, Spread

RANK_TOLERANCE = 1e-10
"""A remaining variance below this share of the largest is rounding: nothing new is left to pick."""


def maxdiag(features: FloatArray, count: int, spread: Spread | None = None) -> list[int]:
    """The most uncertain candidates, whatever they have in common.

    Args:
        features: (n, p).
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
    """
    spread = spread or Spread.alone(len(features))
    squares = _squares(features)
    most = np.argsort(-squares, kind="stable")[:count]
    parts = spread.ranks.gather((squares[most], spread.items[most]))
    values, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    return [int(k) for k in items[np.lexsort((items, -values))][:count]]


def maxdet(features: FloatArray, count: int, spread: Spread | None = None) -> list[int]:
    """Greedy maximisation of det K over the picks, by pivoted Cholesky.

    Every pick is the candidate of largest variance given those before. When the picks span all features, the rest are the
    most uncertain of the remaining ones.

    Args:
        features: (n, p).
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
    """
    spread = spread or Spread.alone(len(features))
    variance = _squares(features)
    most = min(count, spread.count)
    threshold = RANK_TOLERANCE * spread.best(variance).value if most else 0.0
    columns = np.zeros((most, len(features)))
    picks: list[int] = []
    for k in range(most):
        best = spread.best(variance)
        if best.value <= threshold:
            break
        row, before = spread.told(best, features, columns[:k].T)
        column = features @ row
        column -= before @ columns[:k]
        column /= np.sqrt(best.value)
        columns[k] = column
        variance -= column * column
        picks.append(best.item)
        _set(variance, spread, best.item, -np.inf)
    return _filled(picks, features, count, spread)


def maxdist(features: FloatArray, train: FloatArray, count: int, spread: Spread | None = None) -> list[int]:
    """Every pick is the candidate farthest from the training set and the picks before; without either, the most uncertain.

    Args:
        features: (n, p).
        train: (m, p), may be empty; with several ranks consecutive parts of it.
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
    """
    spread = spread or Spread.alone(len(features))
    norms = _squares(features)
    nearest, _, labelled = _nearest(features, train, spread.ranks)
    picks: list[int] = []
    for _ in range(min(count, spread.count)):
        best = spread.best(nearest if labelled or picks else norms)
        picks.append(best.item)
        np.minimum(nearest, _distances(features, norms, best, spread), out=nearest)
        _set(nearest, spread, best.item, -np.inf)
    return picks


def lcmd(features: FloatArray, train: FloatArray, count: int, spread: Spread | None = None) -> list[int]:
    """Largest cluster, maximum distance.

    Candidates belong to the nearest point of training set and picks. Every pick is the farthest member of the cluster with
    the largest sum of squared distances.

    Args:
        features: (n, p).
        train: (m, p), may be empty; with several ranks consecutive parts of it.
        count: how many to pick.
        spread: which of all candidates the rows of ``features`` are.
    """
    spread = spread or Spread.alone(len(features))
    norms = _squares(features)
    nearest, cluster, labelled = _nearest(features, train, spread.ranks)
    free = np.ones(len(features), dtype=bool)
    picks: list[int] = []
    for _ in range(min(count, spread.count)):
        if labelled == 0 and not picks:
            best = spread.best(norms)
        else:
            weights = np.where(free, nearest, 0.0)
            own: FloatArray = np.bincount(cluster, weights=weights, minlength=labelled + len(picks)).astype(np.float64)
            sizes = spread.ranks.sum(own)
            inside = free & (cluster == int(np.argmax(sizes)))
            best = spread.best(np.where(inside, nearest, -np.inf))
            if best.value == -np.inf:  # nobody is left in it
                best = spread.best(np.where(free, nearest, -np.inf))
        picks.append(best.item)
        _set(free, spread, best.item, False)
        distances = _distances(features, norms, best, spread)
        closer = distances < nearest
        nearest[closer] = distances[closer]
        cluster[closer] = labelled + len(picks) - 1
    return picks


def at_random(n: int, count: int, seed: int) -> list[int]:
    """``count`` of ``n`` candidates without replacement, in random order."""
    return [int(k) for k in np.random.default_rng(seed).permutation(n)[:count]]


def _squares(features: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", features, features)
    return squares


def _set(values: npt.NDArray[Any], spread: Spread, item: int, value: float) -> None:
    """Set the value of an item on the rank that holds it."""
    if (at := spread.place(item)) is not None:
        values[at] = value


def _distances(features: FloatArray, norms: FloatArray, best: Best, spread: Spread) -> FloatArray:
    """(n,) squared distances to a candidate, never negative."""
    row, norm = spread.told(best, features, norms)
    distances: FloatArray = np.maximum(norms + norm - 2.0 * (features @ row), 0.0)
    return distances


def _nearest(features: FloatArray, train: FloatArray, ranks: Ranks) -> tuple[FloatArray, IntArray, int]:
    """(n,) squared distance to, and (n,) index of, the nearest training point ((inf, 0) without any), and how many there are.

    The training points of each rank visit all of them in turn.
    """
    nearest = np.full(len(features), np.inf)
    which = np.zeros(len(features), dtype=np.int64)
    norms, before = _squares(features), 0
    for root in range(ranks.size):
        points = ranks.broadcast(train, root)
        point_norms = _squares(points)
        chunk = max(1, 2**22 // max(len(points), 1))
        for start in range(0, len(features) if len(points) else 0, chunk):
            rows = slice(start, start + chunk)
            squared = norms[rows, None] + point_norms[None, :] - 2.0 * (features[rows] @ points.T)
            found = np.argmin(squared, axis=1)
            least = squared[np.arange(len(squared)), found]
            closer = least < nearest[rows]
            which[rows] = np.where(closer, before + found, which[rows])
            nearest[rows] = np.where(closer, least, nearest[rows])
        before += len(points)
    return np.maximum(nearest, 0.0), which, before


def _filled(picks: list[int], features: FloatArray, count: int, spread: Spread) -> list[int]:
    """The picks, and the most uncertain others up to ``count``."""
    chosen = set(picks)
    if len(picks) == min(count, spread.count):
        return picks
    rest = [k for k in maxdiag(features, count + len(picks), spread) if k not in chosen]
    return picks + rest[: count - len(picks)]
