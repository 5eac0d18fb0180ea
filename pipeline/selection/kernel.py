"""Batch selection by the posterior kernel K = X Xᵀ: every method costs O(n p) per pick.

Shapes: n candidates, m training structures, p features. Rows are posterior-transformed features: |x|² is the squared
uncertainty. Ties go to the lower index. After Holzmüller et al., J. Mach. Learn. Res. 24 (2023) 1; Zaverkin et al. 2024.
"""

import numpy as np

from pipeline.frames import FloatArray, IntArray

RANK_TOLERANCE = 1e-10
"""A remaining variance below this share of the largest is rounding: nothing new is left to pick."""


def maxdiag(features: FloatArray, count: int) -> list[int]:
    """The most uncertain candidates, whatever they have in common.

    Args:
        features: (n, p).
        count: how many to pick.
    """
    return [int(k) for k in np.argsort(-_squares(features), kind="stable")[:count]]


def maxdet(features: FloatArray, count: int) -> list[int]:
    """Greedy maximisation of det K over the picks, by pivoted Cholesky.

    Every pick is the candidate of largest variance given those before. When the picks span all features, the rest are the
    most uncertain of the remaining ones.

    Args:
        features: (n, p).
        count: how many to pick.
    """
    variance = _squares(features)
    threshold = RANK_TOLERANCE * float(variance.max(initial=0.0))
    columns = np.zeros((min(count, len(features)), len(features)))
    picks: list[int] = []
    for k in range(min(count, len(features))):
        pick = int(np.argmax(variance))
        if variance[pick] <= threshold:
            break
        column = features @ features[pick]
        column -= columns[:k, pick] @ columns[:k]
        column /= np.sqrt(variance[pick])
        columns[k] = column
        variance -= column * column
        variance[pick] = -np.inf
        picks.append(pick)
    return _filled(picks, features, count)


def maxdist(features: FloatArray, train: FloatArray, count: int) -> list[int]:
    """Every pick is the candidate farthest from the training set and the picks before; without either, the most uncertain.

    Args:
        features: (n, p).
        train: (m, p), may be empty.
        count: how many to pick.
    """
    norms = _squares(features)
    nearest, _ = _nearest(features, train)
    picks: list[int] = []
    for _ in range(min(count, len(features))):
        pick = int(np.argmax(nearest if len(train) or picks else norms))
        picks.append(pick)
        np.minimum(nearest, _distances(features, norms, pick), out=nearest)
        nearest[picks] = -np.inf
    return picks


def lcmd(features: FloatArray, train: FloatArray, count: int) -> list[int]:
    """Largest cluster, maximum distance.

    Candidates belong to the nearest point of training set and picks. Every pick is the farthest member of the cluster with
    the largest sum of squared distances.

    Args:
        features: (n, p).
        train: (m, p), may be empty.
        count: how many to pick.
    """
    norms = _squares(features)
    nearest, cluster = _nearest(features, train)
    free = np.ones(len(features), dtype=bool)
    picks: list[int] = []
    for _ in range(min(count, len(features))):
        if len(train) == 0 and not picks:
            pick = int(np.argmax(norms))
        else:
            sizes = np.bincount(cluster, weights=np.where(free, nearest, 0.0))
            inside = free & (cluster == int(np.argmax(sizes)))
            pick = int(np.argmax(np.where(inside if inside.any() else free, nearest, -np.inf)))
        picks.append(pick)
        free[pick] = False
        distances = _distances(features, norms, pick)
        closer = distances < nearest
        nearest[closer] = distances[closer]
        cluster[closer] = len(train) + len(picks) - 1
    return picks


def at_random(n: int, count: int, seed: int) -> list[int]:
    """``count`` of ``n`` candidates without replacement, in random order."""
    return [int(k) for k in np.random.default_rng(seed).permutation(n)[:count]]


def _squares(features: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", features, features)
    return squares


def _distances(features: FloatArray, norms: FloatArray, pick: int) -> FloatArray:
    """(n,) squared distances to candidate ``pick``, never negative."""
    distances: FloatArray = np.maximum(norms + norms[pick] - 2.0 * (features @ features[pick]), 0.0)
    return distances


def _nearest(features: FloatArray, train: FloatArray) -> tuple[FloatArray, IntArray]:
    """(n,) squared distance to, and (n,) index of, the nearest training point; (inf, 0) without any."""
    nearest = np.full(len(features), np.inf)
    which = np.zeros(len(features), dtype=np.int64)
    norms, train_norms = _squares(features), _squares(train)
    chunk = max(1, 2**22 // max(len(train), 1))
    for start in range(0, len(features) if len(train) else 0, chunk):
        rows = slice(start, start + chunk)
        squared = norms[rows, None] + train_norms[None, :] - 2.0 * (features[rows] @ train.T)
        which[rows] = np.argmin(squared, axis=1)
        nearest[rows] = np.maximum(squared[np.arange(len(squared)), which[rows]], 0.0)
    return nearest, which


def _filled(picks: list[int], features: FloatArray, count: int) -> list[int]:
    """The picks, and the most uncertain others up to ``count``."""
    chosen = set(picks)
    rest = (k for k in maxdiag(features, len(features)) if k not in chosen)
    return picks + [k for k, _ in zip(rest, range(count - len(picks)), strict=False)]
