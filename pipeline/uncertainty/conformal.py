"""Inductive conformal calibration: a factor that turns an uncertainty into an error bound of stated coverage.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods; Vovk et al., Algorithmic Learning in a Random World.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.frames import FloatArray

SMALLEST = 1e-12
"""Uncertainties below this count as this: a residual over exactly zero has no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A conformal factor s: errors exceed s·u with probability at most α.

    Attributes:
        value: s; 1 without calibration points.
        count: points it was fitted on.
        exact: enough points for the quantile; otherwise ``value`` is the largest score and the coverage is only about
            count / (count + 1).
    """

    value: float
    count: int
    exact: bool


def conformal_scores(residuals: FloatArray, uncertainties: FloatArray) -> FloatArray:
    """(n,) scores r/u of absolute errors (n,) and uncertainties (n,)."""
    scores: FloatArray = np.asarray(residuals) / np.maximum(uncertainties, SMALLEST)
    return scores


def conformal_rank(count: int, alpha: float) -> int:
    """⌈(n+1)(1−α)⌉: which of n sorted scores bounds the next one; more than n: they are too few."""
    # 1e-9: (n+1)(1−α) computed in floating point may land a hair above an integer
    return math.ceil((count + 1) * (1.0 - alpha) - 1e-9)


def conformal_factor(scores: FloatArray, alpha: float) -> Factor:
    """The ⌈(n+1)(1−α)⌉-th smallest score r/u.

    On points exchangeable with the next one, P(r <= s·u) >= 1 − α. The points must not have been trained on.

    Args:
        scores: (n,) from :func:`conformal_scores`.
        alpha: miscoverage, 0 < α < 1.
    """
    count = len(scores)
    if count == 0:
        return Factor(value=1.0, count=0, exact=False)
    rank = conformal_rank(count, alpha)
    return Factor(value=float(np.sort(scores)[min(rank, count) - 1]), count=count, exact=rank <= count)
