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


def conformal_factor(residuals: FloatArray, uncertainties: FloatArray, alpha: float) -> Factor:
    """The ⌈(n+1)(1−α)⌉-th smallest score r/u.

    On points exchangeable with the next one, P(r <= s·u) >= 1 − α. The points must not have been trained on.

    Args:
        residuals: (n,) absolute errors >= 0.
        uncertainties: (n,) uncalibrated uncertainties >= 0.
        alpha: miscoverage, 0 < α < 1.
    """
    count = len(residuals)
    if count == 0:
        return Factor(value=1.0, count=0, exact=False)
    scores = np.sort(np.asarray(residuals) / np.maximum(uncertainties, SMALLEST))
    # 1e-9: (n+1)(1−α) computed in floating point may land a hair above an integer
    rank = math.ceil((count + 1) * (1.0 - alpha) - 1e-9)
    return Factor(value=float(scores[min(rank, count) - 1]), count=count, exact=rank <= count)
