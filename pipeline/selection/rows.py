"""Rows of features that may be more than a device holds: blocks of them, some of them, and how those that matter are found.

Shapes: n rows, p features, m picks. Squares and distances are added up in double precision whatever the rows are kept in.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.frames import FloatArray

Features = FloatArray | npt.NDArray[np.float32]
Lower = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""New values (k,) of rows (k, p), given their squares (k,), values so far (k,), and picks (m, p) they have not seen."""

BLOCK_BYTES = 2**22
"""Of rows that are worked on together by a processor: about its cache."""
SHARE_OF_MEMORY = 0.4
"""Of what is free on a GPU: rows that take more stay with the processor and visit block by block."""
BLOCKS_OF_MEMORY = 32
"""Blocks that would fill what is free on a GPU."""
FEWEST_ACTIVE = 512
ACTIVE_SHARE = 16
"""One row in so many is kept up to date."""


class Rows:
    """Rows of features, seen from a device.

    Args:
        features: (n, p) float64, or float32 where there are many.
        device: what computes.
    """

    def __init__(self, features: Features, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._rows = torch.from_numpy(features)
        self.dtype, self.count = self._rows.dtype, len(self._rows)
        block = BLOCK_BYTES
        if self.device.type == "cuda":
            free = int(torch.cuda.mem_get_info(self.device)[0])
            block = free // BLOCKS_OF_MEMORY
            if features.nbytes <= SHARE_OF_MEMORY * free:
                self._rows = self._rows.to(self.device)
        self._block = max(1, block // max(1, features.shape[1] * features.itemsize))

    def blocks(self, width: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """All rows, block by block, on the device.

        Args:
            width: numbers that are wanted of each row; with more of them than features blocks are smaller.
        """
        step = max(1, self._block // max(1, width // max(1, self._rows.shape[1])))
        for start in range(0, self.count, step):
            part = slice(start, min(start + step, self.count))
            yield part, self._rows[part].to(self.device)

    def take(self, places: Tensor) -> Tensor:
        """(k, p) some rows, on the device."""
        return self._rows.index_select(0, places.to(self._rows.device)).to(self.device)

    def row(self, place: int) -> FloatArray:
        """(p,) one row, float64."""
        row: FloatArray = self._rows[place].to(torch.float64).cpu().numpy()
        return row

    def along(self, vector: Tensor) -> Tensor:
        """(n,) float64 products with a vector (p,)."""
        vector = vector.to(self.dtype)
        if self._rows.device == self.device:  # nothing but the result takes memory
            return (self._rows @ vector).to(torch.float64)
        products = torch.empty(self.count, dtype=torch.float64, device=self.device)
        for part, rows in self.blocks():
            products[part] = rows @ vector
        return products

    def squares(self) -> Tensor:
        """(n,) float64 squared norms."""
        squares = torch.empty(self.count, dtype=torch.float64, device=self.device)
        for part, rows in self.blocks():
            squares[part] = squared_norms(rows)
        return squares


def squared_norms(rows: Tensor) -> Tensor:
    """(k,) float64 squared norms of rows (k, p)."""
    return rows.square().sum(dim=1, dtype=torch.float64)


class Frontier:
    """Values of rows that only ever fall as picks are made, exact wherever it matters who is largest.

    Some rows, those of largest value, are kept up to date. The others keep the value they had, which is an upper bound. As long
    as it is below the largest value of the active rows, no other row can be the largest, and none needs to be looked at. When
    it no longer is, all rows catch up with the picks since, in one product of matrices, and the active ones are chosen anew.

    Args:
        rows: the features.
        squares: (n,) their squared norms.
        values: (n,) float64 at the beginning.
        lower: how picks lower values.
    """

    def __init__(self, rows: Rows, squares: Tensor, values: Tensor, lower: Lower) -> None:
        self._rows, self._squares, self._bounds, self._lower = rows, squares, values.clone(), lower
        self._pending: list[Tensor] = []
        self._values = values
        self._activate()

    def largest(self) -> tuple[float, int]:
        """The largest value and the first row that has it; (−inf, 0) without rows."""
        if self._rows.count == 0:
            return -np.inf, 0
        value, at = self._active_largest()
        if value > self._outside:
            return value, int(self._active[at])
        self._catch_up()
        value, at = self._active_largest()
        if value > self._outside:
            return value, int(self._active[at])
        first = int(torch.argmax(self._bounds))  # equal values beyond the active rows: all are exact now
        return float(self._bounds[first]), first

    def see(self, pick: Tensor) -> None:
        """Lower the values for a pick (p,)."""
        pick = pick.to(self._rows.dtype)
        self._pending.append(pick)
        if self._rows.count:
            self._values = self._lower(self._active_rows, self._active_squares, self._values, pick.unsqueeze(0))

    def remove(self, place: int) -> None:
        """A row that is no longer to be picked."""
        self._bounds[place] = -torch.inf
        self._values = torch.where(self._active == place, -torch.inf, self._values)

    def _active_largest(self) -> tuple[float, int]:
        value, at = torch.max(self._values, dim=0)
        return float(value), int(at)

    def _catch_up(self) -> None:
        if self._pending:
            picks = torch.stack(self._pending)
            self._pending = []
            for part, rows in self._rows.blocks(len(picks)):
                self._bounds[part] = self._lower(rows, self._squares[part], self._bounds[part], picks)
        self._activate()

    def _activate(self) -> None:
        """Choose the active rows, in ascending order so that the first of equal ones is found first."""
        n = self._rows.count
        wanted = min(n, max(FEWEST_ACTIVE, n // ACTIVE_SHARE))
        most = torch.topk(self._bounds, min(n, wanted + 1))
        self._outside = float(most.values[wanted]) if wanted < n else -np.inf
        self._active = torch.sort(most.indices[:wanted]).values
        self._active_rows = self._rows.take(self._active)
        self._active_squares = self._squares.index_select(0, self._active)
        self._values = self._bounds.index_select(0, self._active)
