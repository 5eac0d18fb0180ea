"""How much of a plane (or line) of collective variables was visited.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83): a tree of cells, each level halving every axis; C is the share of visited
cells, averaged over levels h = 1…5. One point gives (1/5) Σ_h 4^(−h) ≈ 0.067 of a plane, everything visited gives 1.

Visited cells of the finest level say all of it. They come as a grid (:class:`Coverage`), as flat indices, the last variable
running fastest, or as a mask: an integer whose bit k is set where cell k was visited, so that | joins two of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.analysis.variables import bounds, periodic
from pipeline.frames import BoolArray, FloatArray, IntArray
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
        return self._with(np.ravel_multi_index(tuple(cells.T), self.visited.shape))

    def with_cells(self, cells: Iterable[int]) -> "Coverage":
        """The coverage after more cells of the finest level, by flat index."""
        return self._with(np.array(tuple(cells), dtype=np.int64))

    def _with(self, cells: IntArray) -> "Coverage":
        visited = self.visited.copy()
        visited.reshape(-1)[cells] = True
        return replace(self, visited=visited)

    @property
    def cells(self) -> tuple[int, ...]:
        """Flat indices of the visited cells of the finest level, rising."""
        return tuple(np.flatnonzero(self.visited).tolist())

    @property
    def shares(self) -> FloatArray:
        """(5,) share of visited cells at level 1 (2^D cells) to 5 (32^D cells)."""
        return _shares(self.visited)

    @property
    def value(self) -> float:
        """C, the mean of the shares, 0 to 1."""
        return float(self.shares.mean())


def _shares(cells: BoolArray) -> FloatArray:
    shares = []
    for _ in range(LEVELS):
        shares.append(float(cells.mean()))
        for axis in range(cells.ndim):
            cells = np.logical_or(*(np.take(cells, range(k, cells.shape[axis], 2), axis=axis) for k in (0, 1)))
    return np.array(shares[::-1])


def cells_of(variables: Sequence[Variable], values: npt.ArrayLike) -> tuple[int, ...]:
    """Cells of the finest level that hold one of (n, D) points: flat indices, rising."""
    return Coverage.of(variables).with_points(values).cells


def mask_of(cells: Iterable[int]) -> int:
    """The mask of cells given by flat index."""
    mask = 0
    for cell in cells:
        mask |= 1 << cell
    return mask


def value_of_mask(mask: int, dimensions: int) -> float:
    """C of the cells of a mask over a grid of one to three dimensions.

    Raises:
        OverflowError: the mask has cells that the grid has not.
    """
    count = 2 ** (LEVELS * dimensions)
    octets = np.frombuffer(mask.to_bytes(count // 8, "little"), dtype=np.uint8)
    visited = np.unpackbits(octets, bitorder="little").astype(np.bool_)
    return float(_shares(visited.reshape((2**LEVELS,) * dimensions)).mean())


def cumulative_coverage(variables: Sequence[Variable], portions: Sequence[FloatArray]) -> list[float]:
    """C after each portion of (n_k, D) points."""
    coverage = Coverage.of(variables)
    values = []
    for portion in portions:
        coverage = coverage.with_points(portion)
        values.append(coverage.value)
    return values
