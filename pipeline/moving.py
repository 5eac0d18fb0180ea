"""Moving structures whose neighbour rows are reused for as long as no neighbour can be missing.

Shapes: B structures, A atoms, M neighbours. Units: Å.

Rows are built with a radius larger than the cutoff by a skin, at an *anchor* geometry. How much of the skin is used up
since then is the *wear* of a structure. All of this is functional: tensors that were handed out never change.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch, bare_batch, builder_device
from pipeline.frames import Frame, IntArray
from pipeline.neighbors import NeighborTable, lattice_inverse, neighbor_table

WIDTH_STEP = 8
"""Where torch builds them, and away from the CPU, rows are as wide as a multiple of this: shapes change rarely."""


class MovingBatch:
    """A batch of moving structures: neighbour rows with a skin.

    The width of the rows follows from the rows alone, never from what was there before: a batch taken up at its anchors sums
    in the same order as one that went on, to the last bit.

    Args:
        frames: the structures where they are now.
        cutoff_A: radial cutoff, Å.
        skin_A: extra radius of the rows, Å.
        device: where the tensors live.
        anchors: the structures where their rows were built; by default where they are now.
        by_torch: whether torch builds the rows, or vesin on the CPU; by default torch on a device other than the CPU.

    Attributes:
        batch: the structures where they are now.
        anchors: (A, 3) positions at which each structure's rows were built, Å.
        anchor_cells: (B, 3, 3) cells at which they were built, Å.
        rebuilds: how many times a structure's rows were built anew.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        cutoff_A: float,
        skin_A: float = 1.0,
        device: torch.device | str = "cpu",
        anchors: Sequence[Frame] | None = None,
        by_torch: bool | None = None,
    ) -> None:
        on_cpu = torch.device(device).type == "cpu"
        self._cutoff, self._skin, self._by_torch = cutoff_A, skin_A, by_torch
        self._reach = cutoff_A + skin_A
        self._width_step = WIDTH_STEP if by_torch or not on_cpu else 1
        anchors = frames if anchors is None else anchors
        anchored = bare_batch(anchors, builder_device(device))
        table = self._found(anchored)
        self._sizes: IntArray = np.array([len(frame) for frame in frames], dtype=np.int64)
        self._starts = _starts(self._sizes)
        self._widths = _longest(table, self._sizes)
        self._rigid = True
        self.batch = bare_batch(frames, device).with_rows(table.widened(self._width).to(device))
        if not _same_cells(frames, anchors):
            self._strained()
        self.anchors, self.anchor_cells = anchored.positions.to(device), anchored.cells.to(device)
        self.rebuilds = 0

    def move(self, positions: Tensor, cells: Tensor | None = None) -> Batch:
        """The same rows with atoms at ``positions`` (A, 3) and in ``cells`` (B, 3, 3), by default those of the last move.

        Never builds rows and never waits for the device; :meth:`wear` tells whether the rows still hold. The tensors are kept:
        whoever hands them in must not write into them afterwards.
        """
        if cells is not None and cells is not self.batch.cells:
            self.batch = self.batch.with_geometry(positions, cells)
            self._rigid = False
        elif positions is not self.batch.positions:
            self.batch = self.batch.with_positions(positions)
        return self.batch

    def wear(self) -> Tensor:
        """(B,) how much of its skin each structure has used up; from 1 on a neighbour may be missing.

        With A = C⁻¹ C₀ an edge e was e A − (d_j − d_i) at the anchor, d the displacements there: a pair within the cutoff r
        was within r ‖A‖ + 2 max|d|, so the wear is (r (‖A‖ − 1)₊ + 2 max|d|) / skin. ‖A‖² is bounded by the mean of the
        eigenvalues of AᵀA plus √(2/3) times the norm of its deviator (Wolkowicz and Styan 1980, Linear Algebra Appl. 29, 471):
        exact for a change of volume alone. Never waits for the device.
        """
        batch = self.batch
        here, stretch = batch.positions.detach(), None
        if not self._rigid:
            back, stretch = self._back()
            here = torch.bmm(here.unsqueeze(1), back.index_select(0, batch.system)).squeeze(1)
        farthest = batch.max_atoms((here - self.anchors).square().sum(dim=1)).sqrt()
        used = 2.0 * farthest
        return (used if stretch is None else used + self._cutoff * stretch) / self._skin

    def _back(self) -> tuple[Tensor, Tensor]:
        """(B, 3, 3) the maps A to the anchor geometry, and (B,) bounds of (‖A‖ − 1)₊."""
        batch = self.batch
        cells = batch.cells.detach()
        change = (self.anchor_cells - cells) * batch.pbc.unsqueeze(2)
        small = torch.bmm(lattice_inverse(cells, batch.pbc), change)  # A − 1
        unit = torch.eye(3, dtype=cells.dtype, device=cells.device)
        metric = small + small.transpose(1, 2) + torch.bmm(small.transpose(1, 2), small)  # AᵀA − 1
        mean = metric.diagonal(dim1=1, dim2=2).mean(dim=1)
        deviator = metric - mean.view(-1, 1, 1) * unit
        largest = mean + math.sqrt(2.0 / 3.0) * torch.linalg.vector_norm(deviator, dim=(1, 2))
        return unit + small, torch.sqrt(1.0 + largest.clamp(min=0.0)) - 1.0

    def follow(self, positions: Tensor, cells: Tensor | None = None) -> Batch:
        """:meth:`move`, and rows built anew wherever the skin is used up; waits for the device."""
        self.move(positions, cells)
        worn = torch.nonzero(self.wear() >= 1.0).squeeze(1).tolist()
        if worn:
            self.rebuild(worn)
        return self.batch

    def rebuild(self, which: Sequence[int]) -> None:
        """Build the rows of these structures anew where they are now; those of the others stay as they are."""
        batch, chosen = self.batch, np.unique(np.asarray(which, dtype=np.int64))
        if len(chosen) == 0:
            return
        atoms, structures = self._tensor(self._atoms(chosen)), self._tensor(chosen)
        positions = batch.positions.detach().index_select(0, atoms)
        cells = batch.cells.detach().index_select(0, structures)
        periodic, sizes = batch.pbc.index_select(0, structures), self._sizes[chosen]
        found = neighbor_table(positions, cells, periodic, sizes.tolist(), self._reach, self._by_torch)
        self._widths[chosen] = _longest(found, sizes)
        table, found = batch.rows.widened(self._width), found.widened(self._width)
        further = self._tensor(np.repeat(self._starts[chosen] - _starts(sizes), sizes)).unsqueeze(1)
        self.batch = batch.with_rows(
            NeighborTable(
                neighbors=table.neighbors.index_copy(0, atoms, found.neighbors + further),
                shifts=table.shifts.index_copy(0, atoms, found.shifts),
                offsets=table.offsets.index_copy(0, atoms, found.offsets),
                padding=table.padding.index_copy(0, atoms, found.padding),
            )
        )
        self.anchors = self.anchors.index_copy(0, atoms, positions)
        self.anchor_cells = self.anchor_cells.index_copy(0, structures, cells)
        self.rebuilds += len(chosen)

    def replace(self, changes: Mapping[int, tuple[Frame, Frame]]) -> None:
        """Put other structures into slots: each where it is now, and where its rows are to be built; sizes may differ."""
        batch, chosen = self.batch, np.array(sorted(changes), dtype=np.int64)
        if len(chosen) == 0:
            return
        frames, anchors = zip(*(changes[k] for k in chosen.tolist()), strict=True)
        fresh, anchored = bare_batch(frames, batch.device), bare_batch(anchors, builder_device(batch.device))
        found = self._found(anchored)
        sizes, first = self._sizes.copy(), self._starts.copy()
        sizes[chosen] = [len(frame) for frame in frames]
        first[chosen] = _starts(sizes[chosen])
        self._widths[chosen] = _longest(found, sizes[chosen])
        table, found = batch.rows.widened(self._width), found.widened(self._width).to(batch.device)
        # each new row is a row of the old batch followed by the fresh one, its neighbours counted from another first atom
        behind = np.zeros_like(first)
        behind[chosen] = len(batch.numbers)
        place = np.repeat(first + behind - _starts(sizes), sizes) + np.arange(sizes.sum())
        atoms, further = self._tensor(place), self._tensor(np.repeat(_starts(sizes) - first, sizes)).unsqueeze(1)
        slots = np.arange(len(sizes))
        slots[chosen] = len(sizes) + np.arange(len(chosen))
        structures = self._tensor(slots)

        def chain(old: Tensor, new: Tensor, rows: Tensor) -> Tensor:
            return torch.cat([old, new]).index_select(0, rows)

        self.batch = Batch(
            numbers=chain(batch.numbers, fresh.numbers, atoms),
            positions=chain(batch.positions.detach(), fresh.positions, atoms),
            cells=chain(batch.cells.detach(), fresh.cells, structures),
            pbc=chain(batch.pbc, fresh.pbc, structures),
            system=self._tensor(np.repeat(np.arange(len(sizes)), sizes)),
            n_atoms=self._tensor(sizes),
            neighbors=chain(table.neighbors, found.neighbors, atoms) + further,
            offsets=chain(table.offsets, found.offsets, atoms),
            shifts=chain(table.shifts, found.shifts, atoms),
            padding=chain(table.padding, found.padding, atoms),
            largest=int(sizes.max()),
        )
        if not _same_cells(frames, anchors):
            self._strained()
        self.anchors = chain(self.anchors, anchored.positions.to(batch.device), atoms)
        self.anchor_cells = chain(self.anchor_cells, anchored.cells.to(batch.device), structures)
        self._sizes, self._starts = sizes, _starts(sizes)

    def _strained(self) -> None:
        """Offsets were those at the anchors, and the cells are others."""
        self.batch = self.batch.with_geometry(self.batch.positions, self.batch.cells)
        self._rigid = False

    @property
    def _width(self) -> int:
        """Columns of the rows of all structures together."""
        return -(-int(self._widths.max()) // self._width_step) * self._width_step

    def _found(self, anchored: Batch) -> NeighborTable:
        sizes = anchored.n_atoms.tolist()
        return neighbor_table(anchored.positions, anchored.cells, anchored.pbc, sizes, self._reach, self._by_torch)

    def _atoms(self, structures: IntArray) -> IntArray:
        """Rows of the atoms of some structures."""
        sizes = self._sizes[structures]
        rows: IntArray = np.repeat(self._starts[structures] - _starts(sizes), sizes) + np.arange(sizes.sum())
        return rows

    def _tensor(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(self.batch.device)


def _starts(sizes: IntArray) -> IntArray:
    """First atom of each structure."""
    starts: IntArray = np.cumsum(sizes) - sizes
    return starts


def _longest(table: NeighborTable, sizes: IntArray) -> IntArray:
    """Neighbours of the atom that has most, of each structure; one where there is none."""
    counts = (~table.padding).sum(dim=1).cpu().numpy()
    longest: IntArray = np.maximum(np.maximum.reduceat(counts, _starts(sizes)), 1)
    return longest


def _same_cells(frames: Sequence[Frame], anchors: Sequence[Frame]) -> bool:
    return all(np.array_equal(frame.cell, anchor.cell) for frame, anchor in zip(frames, anchors, strict=True))
