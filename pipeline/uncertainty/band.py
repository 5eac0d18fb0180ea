"""Which share of bounds may hold by chance, where the bounds are right.

Given the calibration scores, the chance p that a bound holds for the next exchangeable point is itself random: with the k-th
smallest of m scores as factor, p ~ Beta(k, m + 1 − k) (Vovk 2012, Conditional validity of inductive conformal predictors). Of n
points the number held is beta-binomial. Atoms of one structure are not independent; their band is that of a beta-binomial over
the same n with the variance that fewer, independent ones have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import betabinom, rankdata
from scipy.stats import f as f_ratio

from pipeline.frames import FloatArray, IntArray
from pipeline.uncertainty.conformal import conformal_rank

TAIL = 0.005
"""On each side: a campaign looks at several groups after every model, and a false alarm costs a person's time."""
CONFIDENCE = 0.9
"""That the correlation within structures is no larger than taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a factor was fitted on, as far as the share of bounds that hold depends on it.

    Attributes:
        level: expected share; points: independent points, m.
    """

    level: float
    points: float

    @classmethod
    def of(cls, count: int, points: float, alpha: float) -> "Evidence | None":
        """Of a quantile of ``count`` scores that are worth ``points`` independent ones; None of none."""
        if count == 0:
            return None
        level = min(conformal_rank(count, alpha), count) / (count + 1)
        # a high quantile of few independent points is their largest
        return cls(level=min(level, points / (points + 1.0)), points=points)

    @property
    def variance(self) -> float:
        """Of the chance that a bound holds."""
        return self.level * (1.0 - self.level) / (self.points + 2.0)


def mixed(parts: Sequence[tuple[float, Evidence | None]]) -> Evidence | None:
    """Evidence of bounds whose factors differ, by their shares (> 0, of sum 1); None where a part has none.

    Their errors are taken as fully correlated: atoms of all elements are from the same structures.
    """
    level = deviation = 0.0
    for share, part in parts:
        if part is None:
            return None
        level += share * part.level
        deviation += share * part.variance**0.5
    return Evidence(level=level, points=max(0.0, level * (1.0 - level) / deviation**2 - 2.0))


@lru_cache(maxsize=256)
def band(count: int, effective: float, evidence: Evidence) -> tuple[float, float]:
    """(low, high) share of ``count`` bounds that holds by chance with probability 1 − 2 TAIL.

    Args:
        count: bounds looked at, n.
        effective: independent ones they are worth, 1 to n; n for structures.
        evidence: of their factor.
    """
    # relative to p (1 − p): 1 for points that all hold or all fail together
    variance = 1.0 / effective + (1.0 - 1.0 / effective) / (evidence.points + 2.0)
    if count == 1 or variance >= 1.0 - 1e-9:
        return 0.0, 1.0
    # the a + b at which a beta-binomial of n has this variance; m + 1 for independent points
    total = (count - 1.0) / (count * variance - 1.0) - 1.0
    level = evidence.level
    held = np.cumsum(betabinom.pmf(np.arange(count + 1), count, level * total, (1.0 - level) * total))
    low, high = np.searchsorted(held, [TAIL, 1.0 - TAIL])
    return float(low) / count, min(1.0, float(high) / count)


def correlation_within(values: FloatArray, structures: IntArray) -> float:
    """Correlation ρ of values within structures: an upper limit from one-way analysis of variance, 0 to 1.

    Of ranks, which heavy tails do not disturb, by the F distribution; and, where it is larger, that of being in the upper
    tenth, for structures may be alike in the middle and differ in how many of their atoms are far off.

    Args:
        values: (n,) scores.
        structures: (n,) which structure they are of.
    """
    ranks = rankdata(values)
    tail = (ranks > 0.9 * len(ranks)).astype(np.float64)
    return max(_correlation(ranks, structures, CONFIDENCE), _correlation(tail, structures, None))


def cluster_size(structures: IntArray) -> float:
    """Σ n_i² / Σ n_i of structures with n_i points: the size that the variance of a mean over points knows."""
    sizes = np.unique(structures, return_counts=True)[1]
    return float(np.sum(sizes**2) / np.sum(sizes))


def effective_count(count: int, size: float, correlation: float) -> float:
    """Independent points that ``count`` points in clusters of ``size`` are worth (Kish): n / (1 + (size − 1) ρ)."""
    return count / (1.0 + (size - 1.0) * correlation)


def _correlation(values: FloatArray, structures: IntArray, confidence: float | None) -> float:
    """Intraclass correlation: its estimate, or the upper limit of one-sided ``confidence``."""
    _, place, sizes = np.unique(structures, return_inverse=True, return_counts=True)
    count, clusters = len(values), len(sizes)
    if (
        clusters == 1 or count == clusters
    ):  # nothing to compare with: the careful answer, which is exact for single points
        return 1.0
    means = np.bincount(place, weights=values) / sizes
    between = float(np.sum(sizes * (means - values.mean()) ** 2)) / (clusters - 1)
    within = float(np.sum((values - means[place]) ** 2)) / (count - clusters)
    if within == 0.0:
        return 1.0 if between > 0.0 else 0.0
    ratio = between / within
    if confidence is not None:
        ratio /= float(f_ratio.ppf(1.0 - confidence, clusters - 1, count - clusters))
    size = (count - float(np.sum(sizes**2)) / count) / (clusters - 1)
    return float(np.clip((ratio - 1.0) / (ratio + size - 1.0), 0.0, 1.0))
