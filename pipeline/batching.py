"""Many structures as one flat batch, with neighbour rows.

Shapes: B structures, A atoms of all structures together, M neighbours of the atom that has most. Units: Å.

Neighbours are kept as dense rows (A, M) rather than a list of pairs: sums over neighbours become batched matrix products,
which is what makes a step fast. Rows shorter than M are padded; a padded neighbour is the atom itself, moved out of every
cutoff by ``offsets``, so that no mask is needed downstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.frames import Frame
from pipeline.neighbors import (
    NeighborRows,
    NeighborTable,
    blank_table,
    joined,
    neighbor_table,
    translations,
)


def cell_volumes(cells: Tensor) -> Tensor:
    """(B,) volumes |a · (b × c)| of (B, 3, 3) cells, Å³; a determinant by factorization would wait for the device."""
    a, b, c = cells.unbind(dim=1)
    volumes: Tensor = (a * torch.linalg.cross(b, c)).sum(dim=1).abs()
    return volumes


@dataclass(frozen=True, slots=True)
class Batch:
    """Structures side by side, all tensors on one device.

    Attributes:
        numbers: (A,) int64 atomic numbers.
        positions: (A, 3) float64, Å.
        cells: (B, 3, 3) float64, rows are lattice vectors, Å.
        pbc: (B, 3) bool.
        system: (A,) int64, which structure an atom belongs to; ascending.
        n_atoms: (B,) int64.
        neighbors: (A, M) int64 indices into the flat batch.
        offsets: (A, M, 3) float64, lattice translation of each neighbour, Å.
        shifts: (A, M, 3) float64, the same in lattice vectors: whole numbers, zero where padded.
        padding: (A, M) bool, which neighbours are none.
        largest: no structure has more atoms.
    """

    numbers: Tensor
    positions: Tensor
    cells: Tensor
    pbc: Tensor
    system: Tensor
    n_atoms: Tensor
    neighbors: Tensor
    offsets: Tensor
    shifts: Tensor
    padding: Tensor
    largest: int

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.positions.device

    @property
    def volumes(self) -> Tensor:
        """(B,) float64 cell volumes, Å³; zero where a structure is not fully periodic."""
        return cell_volumes(self.cells) * self.pbc.all(dim=1)

    def with_positions(self, positions: Tensor) -> "Batch":
        """The same batch with other positions (A, 3): neighbour rows must still hold."""
        return replace(self, positions=positions)

    def with_geometry(self, positions: Tensor, cells: Tensor) -> "Batch":
        """The same batch with other positions (A, 3) and cells (B, 3, 3): neighbour rows must still hold."""
        offsets = translations(self.shifts, self.padding, cells.index_select(0, self.system))
        return replace(self, positions=positions, cells=cells, offsets=offsets)

    def with_rows(self, table: NeighborTable) -> "Batch":
        """The same structures with other neighbour rows."""
        return replace(
            self, neighbors=table.neighbors, shifts=table.shifts, offsets=table.offsets, padding=table.padding
        )

    @property
    def rows(self) -> NeighborTable:
        """Its neighbour rows."""
        return NeighborTable(self.neighbors, self.shifts, self.offsets, self.padding)

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
        """Sum over the atoms of each structure: (A, …) to (B, …), in float64, and in the same order every time."""
        if self._uniform:
            shape = (len(self), self.largest, *values.shape[1:])
            return values.reshape(shape).sum(dim=1, dtype=torch.float64)
        if values.device.type == "cpu":
            total = torch.zeros((len(self), *values.shape[1:]), dtype=torch.float64)
            return total.index_add(0, self.system, values.to(torch.float64))
        return sum_in_order(values, self.system, self.n_atoms, self.largest)

    def max_atoms(self, values: Tensor) -> Tensor:
        """Largest of the atoms of each structure: (A,) to (B,)."""
        if self._uniform:
            return values.reshape(len(self), self.largest).amax(dim=1)
        lowest = torch.full((len(self),), -torch.inf, dtype=values.dtype, device=values.device)
        return lowest.scatter_reduce(0, self.system, values, "amax")

    @property
    def _uniform(self) -> bool:
        """Whether all structures have as many atoms: they are then the rows of a matrix."""
        return self.largest * len(self) == len(self.numbers)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def sum_in_order(values: Tensor, system: Tensor, n_atoms: Tensor, largest: int) -> Tensor:
    """Sum over structures of unequal size, (A, …) to (B, …) in float64, in the same order every time on every device.

    On a GPU ``index_add`` adds in the order in which its threads come by.

    Args:
        values: (A, …).
        system: (A,) structure of each, ascending.
        n_atoms: (B,).
        largest: no structure has more atoms.
    """
    first = torch.cumsum(n_atoms, 0) - n_atoms
    free = torch.arange(len(n_atoms), device=values.device) * largest - first
    places = torch.arange(len(values), device=values.device) + free.index_select(0, system)
    padded = values.new_zeros((len(n_atoms) * largest, *values.shape[1:])).index_copy(0, places, values)
    return padded.view(len(n_atoms), largest, *values.shape[1:]).sum(dim=1, dtype=torch.float64)


def bare_batch(frames: Sequence[Frame], device: torch.device | str = "cpu") -> Batch:
    """Structures without any neighbour."""
    sizes = np.array([len(frame) for frame in frames], dtype=np.int64)
    blank = blank_table(int(sizes.sum()), 1, torch.device("cpu"))
    return Batch(
        numbers=torch.from_numpy(np.concatenate([frame.numbers for frame in frames])),
        positions=torch.from_numpy(np.concatenate([frame.positions for frame in frames])),
        cells=torch.from_numpy(np.stack([frame.cell for frame in frames])),
        pbc=torch.from_numpy(np.stack([frame.pbc for frame in frames])),
        system=torch.from_numpy(np.repeat(np.arange(len(frames)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        neighbors=blank.neighbors,
        offsets=blank.offsets,
        shifts=blank.shifts,
        padding=blank.padding,
        largest=int(sizes.max()),
    ).to(device)


def batch_from_rows(frames: Sequence[Frame], rows: Sequence[NeighborRows]) -> Batch:
    """A batch on the CPU from structures whose neighbour rows are known."""
    return bare_batch(frames).with_rows(joined(rows))


def make_batch(frames: Sequence[Frame], cutoff_A: float, device: torch.device | str = "cpu") -> Batch:
    """A batch of structures with neighbours within ``cutoff_A`` Å, on ``device``."""
    bare = bare_batch(frames, builder_device(device))
    rows = neighbor_table(bare.positions, bare.cells, bare.pbc, [len(frame) for frame in frames], cutoff_A)
    return bare.with_rows(rows).to(device)


def builder_device(device: torch.device | str) -> torch.device:
    """Where rows for ``device`` are built: there, or on the CPU for the device of shapes without numbers."""
    wanted = torch.device(device)
    return torch.device("cpu") if wanted.type == "meta" else wanted
