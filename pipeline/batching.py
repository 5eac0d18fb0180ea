"""Many structures as one flat batch, with neighbour rows.

Shapes: B structures, A atoms of all structures together, M neighbours of the atom that has most. Units: Å.

Neighbours are kept as dense rows (A, M) rather than a list of pairs: sums over neighbours become batched matrix products,
which is what makes a step fast. Rows shorter than M are padded; a padded neighbour is the atom itself, moved out of every
cutoff by ``offsets``, so that no mask is needed downstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import vesin
from torch import Tensor

from pipeline.frames import BoolArray, FloatArray, Frame, IntArray

FAR_A = 1.0e3
"""Distance of a padded neighbour, Å: beyond every cutoff."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Structures side by side.

    Attributes:
        numbers: (A,) int64 atomic numbers.
        positions: (A, 3) float64, Å.
        cells: (B, 3, 3) float64, rows are lattice vectors, Å.
        pbc: (B, 3) bool.
        system: (A,) int64, which structure an atom belongs to.
        n_atoms: (B,) int64.
        neighbors: (A, M) int64 indices into the flat batch.
        offsets: (A, M, 3) float64, lattice translation of each neighbour, Å.
    """

    numbers: Tensor
    positions: Tensor
    cells: Tensor
    pbc: Tensor
    system: Tensor
    n_atoms: Tensor
    neighbors: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def volumes(self) -> Tensor:
        """(B,) float64 cell volumes, Å³; zero where a structure is not fully periodic."""
        volumes: Tensor = torch.linalg.det(self.cells).abs() * self.pbc.all(dim=1)
        return volumes

    def with_positions(self, positions: Tensor) -> "Batch":
        """The same batch with other positions: neighbour rows must still hold."""
        return replace(self, positions=positions)

    def edges(self, strain: Tensor | None = None) -> Tensor:
        """(A, M, 3) vectors from each atom to its neighbours, Å.

        Args:
            strain: (B, 3, 3) strain ε applied to positions and cell; its symmetric part is used.
        """
        a, m = self.neighbors.shape
        edges = self.positions.index_select(0, self.neighbors.reshape(-1)).view(a, m, 3)
        edges = edges - self.positions.unsqueeze(1) + self.offsets
        if strain is not None:
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            edges = edges + torch.bmm(edges, symmetric.index_select(0, self.system))
        return edges

    def sum_atoms(self, values: Tensor) -> Tensor:
        """Sum over the atoms of each structure: (A, …) to (B, …), in float64."""
        total = torch.zeros((len(self), *values.shape[1:]), dtype=torch.float64, device=values.device)
        return total.index_add(0, self.system, values.to(torch.float64))

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class NeighborRows:
    """Neighbours of one structure: (N, m) int64 indices within it, (N, m, 3) lattice offsets in Å; padded as in Batch."""

    neighbors: IntArray
    offsets: FloatArray


def neighbor_rows(positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff_A: float) -> NeighborRows:
    """All neighbours within ``cutoff_A`` (periodic images included) as padded rows, sorted by index and image.

    The order does not depend on the positions beyond who is a neighbour, so sums keep their rounding from one rebuild to
    the next.
    """
    n = len(positions)
    periodic = np.asarray(pbc, dtype=bool)
    finder = vesin.NeighborList(cutoff=cutoff_A, full_list=True)
    i, j, shifts = finder.compute(points=positions, box=cell, periodic=periodic, quantities="ijS")
    i, j = i.astype(np.int64), j.astype(np.int64)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    i, j, shifts = i[order], j[order], shifts[order]
    counts = np.bincount(i, minlength=n)
    width = max(1, int(counts.max(initial=0)))
    column = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors = np.repeat(np.arange(n, dtype=np.int64)[:, None], width, axis=1)
    offsets = np.zeros((n, width, 3))
    offsets[..., 0] = FAR_A
    neighbors[i, column] = j
    offsets[i, column] = shifts @ cell
    return NeighborRows(neighbors, offsets)


def _join(rows: Sequence[NeighborRows], sizes: IntArray) -> tuple[Tensor, Tensor]:
    """Rows of many structures as one (A, M) table with flat indices."""
    width = max(row.neighbors.shape[1] for row in rows)
    total = int(sizes.sum())
    neighbors = np.repeat(np.arange(total, dtype=np.int64)[:, None], width, axis=1)
    offsets = np.zeros((total, width, 3))
    offsets[..., 0] = FAR_A
    first = 0
    for row, size in zip(rows, sizes, strict=True):
        m = row.neighbors.shape[1]
        neighbors[first : first + size, :m] = row.neighbors + first
        offsets[first : first + size, :m] = row.offsets
        first += int(size)
    return torch.from_numpy(neighbors), torch.from_numpy(offsets)


def batch_from_rows(frames: Sequence[Frame], rows: Sequence[NeighborRows]) -> Batch:
    """A batch from structures whose neighbour rows are known."""
    sizes = np.array([len(frame) for frame in frames], dtype=np.int64)
    system = np.repeat(np.arange(len(frames)), sizes)
    neighbors, offsets = _join(rows, sizes)
    return Batch(
        numbers=torch.from_numpy(np.concatenate([frame.numbers for frame in frames])),
        positions=torch.from_numpy(np.concatenate([frame.positions for frame in frames])),
        cells=torch.from_numpy(np.stack([frame.cell for frame in frames])),
        pbc=torch.from_numpy(np.stack([frame.pbc for frame in frames])),
        system=torch.from_numpy(system),
        n_atoms=torch.from_numpy(sizes),
        neighbors=neighbors,
        offsets=offsets,
    )


def make_batch(frames: Sequence[Frame], cutoff_A: float) -> Batch:
    """A batch of structures with neighbours within ``cutoff_A`` Å."""
    return batch_from_rows(frames, [neighbor_rows(f.positions, f.cell, f.pbc, cutoff_A) for f in frames])


class MovingBatch:
    """A batch of moving structures: neighbour rows with a skin, rebuilt only for a structure one of whose atoms moved too far.

    A structure's rows stay valid while no atom has moved more than half the skin since they were built.

    Args:
        frames: the structures.
        cutoff_A: radial cutoff, Å.
        skin_A: extra radius of the rows, Å.

    Attributes:
        batch: the structures where they are now.
        anchors: (A, 3) positions at which each structure's rows were built, Å.
        rebuilds: how many times a structure's rows were built anew.
    """

    def __init__(self, frames: Sequence[Frame], *, cutoff_A: float, skin_A: float = 1.0) -> None:
        self._reach = cutoff_A + skin_A
        self._half_skin_squared = (0.5 * skin_A) ** 2
        self._frames = list(frames)
        self._rows = [neighbor_rows(f.positions, f.cell, f.pbc, self._reach) for f in frames]
        self.batch = batch_from_rows(self._frames, self._rows)
        self.anchors = self.batch.positions.clone()
        self.rebuilds = 0

    def move(self, positions: Tensor) -> Batch:
        """The batch at new positions (A, 3); rebuilds the rows of structures that left their skin."""
        moved = (positions - self.anchors).square().sum(dim=1)
        if float(moved.max()) <= self._half_skin_squared:
            self.batch = self.batch.with_positions(positions)
            return self.batch
        return self._rebuild(positions, moved)

    def _rebuild(self, positions: Tensor, moved: Tensor) -> Batch:
        array = positions.detach().cpu().numpy()
        stale = np.unique(self.batch.system.numpy()[(moved > self._half_skin_squared).cpu().numpy()])
        ends = np.cumsum(self.batch.n_atoms.numpy())
        for k in stale:
            frame = self._frames[k]
            span = slice(int(ends[k]) - len(frame), int(ends[k]))
            self._frames[k] = Frame(
                numbers=frame.numbers, positions=array[span].copy(), cell=frame.cell, pbc=frame.pbc, system=frame.system
            )
            self._rows[k] = neighbor_rows(array[span], frame.cell, frame.pbc, self._reach)
            self.anchors[span] = positions[span]
        sizes = self.batch.n_atoms.numpy()
        neighbors, offsets = _join(self._rows, sizes)
        self.batch = replace(self.batch, positions=positions, neighbors=neighbors, offsets=offsets)
        self.rebuilds += len(stale)
        return self.batch
