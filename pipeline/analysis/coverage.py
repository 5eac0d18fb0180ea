"""How much of a plane (or line) of collective variables was visited.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83): a tree of cells, each level halving every axis; C is the share of visited
cells, averaged over levels h = 1…5. One point gives (1/5) Σ_h 4^(−h) ≈ 0.067 of a plane, everything visited gives 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.analysis.variables import bounds, periodic
from pipeline.frames import BoolArray, FloatArray
from pipeline.settings.variables import Variable

LEVELS = 5


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was visited so far: add points in any order and portions.

    Attributes:
        low, high: (D,) range of each variable.
        wraps: (D,) whether a variable is periodic; values of others outside their range are not counted.
        visited: (2^5,)·D cells of the finest level that hold a point.
    """

    low: FloatArray
    high: FloatArray
    wraps: BoolArray
    visited: BoolArray

    @classmethod
    def of(cls, variables: Sequence[Variable]) -> "Coverage":
        """Nothing visited yet, over the ranges of one to three variables."""
        ranges = np.array([bounds(variable) for variable in variables], dtype=np.float64)
        wraps = np.array([periodic(variable) for variable in variables], dtype=np.bool_)
        return cls(ranges[:, 0], ranges[:, 1], wraps, np.zeros((2**LEVELS,) * len(variables), dtype=np.bool_))

    def with_points(self, values: npt.ArrayLike) -> "Coverage":
        """The coverage after (n, D) more points; those that are not finite or out of range are left out."""
        points = np.asarray(values, dtype=np.float64).reshape(-1, len(self.low))
        unit = (points[np.isfinite(points).all(axis=1)] - self.low) / (self.high - self.low)
        unit = np.where(self.wraps, unit % 1.0, unit)
        inside = unit[((unit >= 0) & (unit <= 1)).all(axis=1)]
        cells = np.minimum((inside * 2**LEVELS).astype(np.int64), 2**LEVELS - 1)
        visited = self.visited.copy()
        visited[tuple(cells.T)] = True
        return replace(self, visited=visited)

    @property
    def shares(self) -> FloatArray:
        """(5,) share of visited cells at level 1 (2^D cells) to 5 (32^D cells)."""
        shares = []
        cells = self.visited
        for _ in range(LEVELS):
            shares.append(float(cells.mean()))
            for axis in range(cells.ndim):
                cells = np.logical_or(*(np.take(cells, range(k, cells.shape[axis], 2), axis=axis) for k in (0, 1)))
        return np.array(shares[::-1])

    @property
    def value(self) -> float:
        """C, the mean of the shares, 0 to 1."""
        return float(self.shares.mean())


def cumulative_coverage(variables: Sequence[Variable], portions: Sequence[FloatArray]) -> list[float]:
    """C after each portion of (n_k, D) points."""
    coverage = Coverage.of(variables)
    values = []
    for portion in portions:
        coverage = coverage.with_points(portion)
        values.append(coverage.value)
    return values
