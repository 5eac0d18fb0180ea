"""Who is near whom: neighbour rows by vesin on the CPU, and of many structures at once by torch on any device.

Shapes: B structures, A atoms of all of them, N atoms of one, M neighbours of the atom that has most. Units: Å.

Both builders find the same neighbours in the same order, by index and then by image, so that sums over a row keep their
rounding whoever built it and whatever the positions are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import vesin
from torch import Tensor

from pipeline.frames import BoolArray, FloatArray, IntArray

FAR_A = 1.0e3
"""Distance of a padded neighbour, Å: beyond every cutoff."""
CANDIDATES = 2**22
"""Pairs and images the torch builder looks at in one piece: about 200 MB."""
ROUNDING = 1e-6
"""Added to the number of images, so that no rounding of a fractional coordinate loses one."""


@dataclass(frozen=True, slots=True)
class NeighborRows:
    """Neighbours of one structure; rows shorter than the longest are padded with the atom itself, ``FAR_A`` away.

    Attributes:
        neighbors: (N, M) int64 indices within the structure.
        shifts: (N, M, 3) float64 lattice translations of each neighbour, whole numbers; zero where padded.
        offsets: (N, M, 3) float64 the same in Å, ``FAR_A`` along x where padded.
        padding: (N, M) bool.
    """

    neighbors: IntArray
    shifts: FloatArray
    offsets: FloatArray
    padding: BoolArray


@dataclass(frozen=True, slots=True)
class NeighborTable:
    """Rows of many structures side by side.

    Attributes:
        neighbors: (A, M) int64 indices among all atoms; the atom itself where padded.
        shifts: (A, M, 3) float64 lattice translations, whole numbers; zero where padded.
        padding: (A, M) bool.
        widths: neighbours of the atom that has most, of each structure.
    """

    neighbors: Tensor
    shifts: Tensor
    padding: Tensor
    widths: tuple[int, ...]

    def to(self, device: torch.device | str) -> "NeighborTable":
        """The rows on another device."""
        return NeighborTable(self.neighbors.to(device), self.shifts.to(device), self.padding.to(device), self.widths)

    def widened(self, width: int) -> "NeighborTable":
        """The same rows with ``width`` columns, at least as many as the longest row has neighbours."""
        now = self.neighbors.shape[1]
        if width <= now:
            return NeighborTable(
                self.neighbors[:, :width].contiguous(),
                self.shifts[:, :width].contiguous(),
                self.padding[:, :width].contiguous(),
                self.widths,
            )
        blank = empty_table(len(self.neighbors), width - now, self.neighbors.device)
        return NeighborTable(
            torch.cat([self.neighbors, blank.neighbors], dim=1),
            torch.cat([self.shifts, blank.shifts], dim=1),
            torch.cat([self.padding, blank.padding], dim=1),
            self.widths,
        )


def empty_table(atoms: int, width: int, device: torch.device) -> NeighborTable:
    """Rows of padding only."""
    return NeighborTable(
        torch.arange(atoms, device=device).unsqueeze(1).repeat(1, width),
        torch.zeros((atoms, width, 3), dtype=torch.float64, device=device),
        torch.ones((atoms, width), dtype=torch.bool, device=device),
        (),
    )


def neighbor_rows(positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff_A: float) -> NeighborRows:
    """All neighbours of one structure within ``cutoff_A`` (periodic images included), found by vesin.

    Args:
        positions: (N, 3), not necessarily inside the cell.
        cell: (3, 3), rows are lattice vectors; those of directions that are not periodic are not looked at.
        pbc: (3,) periodic directions.
        cutoff_A: radius.
    """
    n = len(positions)
    finder = vesin.NeighborList(cutoff=cutoff_A, full_list=True)
    i, j, shifts = finder.compute(points=positions, box=cell, periodic=np.asarray(pbc, dtype=bool), quantities="ijS")
    i, j, shifts = i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
    order = _order(i * n + j, shifts)
    i, j, shifts = i[order], j[order], shifts[order]
    counts = np.bincount(i, minlength=n)
    width = max(1, int(counts.max(initial=0)))
    column = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors = np.repeat(np.arange(n, dtype=np.int64)[:, None], width, axis=1)
    wide = np.zeros((n, width, 3))
    offsets = np.zeros((n, width, 3))
    padding = np.ones((n, width), dtype=np.bool_)
    neighbors[i, column] = j
    wide[i, column] = shifts
    offsets[..., 0] = FAR_A
    offsets[i, column] = shifts @ cell
    padding[i, column] = False
    return NeighborRows(neighbors, wide, offsets, padding)


def _order(pairs: IntArray, shifts: IntArray) -> IntArray:
    """What sorts by pair, then by the three components of the shift: one sort of one number is faster than four."""
    key = pairs
    for axis in range(3):
        component = shifts[:, axis]
        low, high = int(component.min(initial=0)), int(component.max(initial=0))
        key = key * (high - low + 1) + (component - low)
    return np.argsort(key)


def joined(rows: Sequence[NeighborRows], sizes: Sequence[int]) -> NeighborTable:
    """Rows of structures of ``sizes`` atoms as one table on the CPU, as wide as the longest row."""
    width = max(row.neighbors.shape[1] for row in rows)
    total = sum(sizes)
    neighbors = np.repeat(np.arange(total, dtype=np.int64)[:, None], width, axis=1)
    shifts = np.zeros((total, width, 3))
    padding = np.ones((total, width), dtype=np.bool_)
    first = 0
    for row, size in zip(rows, sizes, strict=True):
        m = row.neighbors.shape[1]
        neighbors[first : first + size, :m] = row.neighbors + first
        shifts[first : first + size, :m] = row.shifts
        padding[first : first + size, :m] = row.padding
        first += size
    widths = tuple(row.neighbors.shape[1] for row in rows)
    return NeighborTable(torch.from_numpy(neighbors), torch.from_numpy(shifts), torch.from_numpy(padding), widths)


def inverse_3x3(matrices: Tensor) -> Tensor:
    """(B, 3, 3) inverses by cofactors: unlike the library's they never wait for the device to report a singular one."""
    a, b, c = matrices.unbind(dim=1)
    cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
    determinants = (a * cofactors[:, :, 0]).sum(dim=1)
    return cofactors / determinants.view(-1, 1, 1)


def lattice_inverse(cells: Tensor, pbc: Tensor) -> Tensor:
    """(B, 3, 3) matrices D with fractional coordinates r D along the periodic directions, zero along the others.

    The pseudo-inverse of the periodic lattice vectors C_p: C_pᵀ (C_p C_pᵀ + 1 where not periodic)⁻¹, so that what the cell
    says along directions that are not periodic does not matter. The norm of a column is one over the cell's height there.
    """
    periodic = pbc.to(cells.dtype)
    vectors = cells * periodic.unsqueeze(2)
    gram = torch.bmm(vectors, vectors.transpose(1, 2)) + torch.diag_embed(1.0 - periodic)
    return torch.bmm(vectors.transpose(1, 2), inverse_3x3(gram))


def neighbor_table(
    positions: Tensor,
    cells: Tensor,
    pbc: Tensor,
    sizes: Sequence[int],
    cutoff_A: float,
    by_torch: bool | None = None,
) -> NeighborTable:
    """All neighbours of many structures, where ``positions`` are.

    Args:
        positions: (A, 3) float64; structures one after the other.
        cells: (B, 3, 3) float64.
        pbc: (B, 3) bool.
        sizes: atoms of each structure.
        cutoff_A: radius.
        by_torch: whether torch finds them, or vesin on the CPU; by default torch where the positions are not on the CPU.
    """
    if positions.device.type != "cpu" if by_torch is None else by_torch:
        return device_table(positions.detach(), cells.detach(), pbc, sizes, cutoff_A)
    points, boxes, periodic = (values.detach().cpu().numpy() for values in (positions, cells, pbc))
    spans = np.split(points, np.cumsum(sizes)[:-1])
    rows = [neighbor_rows(*one, cutoff_A) for one in zip(spans, boxes, periodic, strict=True)]
    return joined(rows, sizes).to(positions.device)


def device_table(positions: Tensor, cells: Tensor, pbc: Tensor, sizes: Sequence[int], cutoff_A: float) -> NeighborTable:
    """All neighbours of many structures, found on the device of ``positions`` by looking at all pairs and images.

    The work grows with the square of the atoms of a structure: meant for structures of up to some thousand atoms.

    Args:
        positions: (A, 3) float64; structures one after the other.
        cells: (B, 3, 3) float64.
        pbc: (B, 3) bool.
        sizes: atoms of each structure.
        cutoff_A: radius.
    """
    device, total = positions.device, len(positions)
    pieces = list(_found(positions, cells, pbc, sizes, cutoff_A))
    i, column, j, shifts = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    counts = torch.bincount(i, minlength=total)
    system = torch.repeat_interleave(
        torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device), output_size=total
    )
    longest = torch.ones(len(sizes), dtype=torch.int64, device=device).scatter_reduce(0, system, counts, "amax")
    widths = tuple(longest.tolist())
    table = empty_table(total, max(widths), device)
    table.neighbors[i, column] = j
    table.shifts[i, column] = shifts
    table.padding[i, column] = False
    return NeighborTable(table.neighbors, table.shifts, table.padding, widths)


Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some pairs: centre, place in its row, neighbour, and shift."""


def _found(positions: Tensor, cells: Tensor, pbc: Tensor, sizes: Sequence[int], cutoff_A: float) -> Iterator[Found]:
    """The pairs of structures of equal size and equally many images together, in pieces that fit into memory."""
    device = positions.device
    inverse = lattice_inverse(cells, pbc)
    # a pair at its nearest image is at most half a lattice vector apart along each height
    reach = torch.floor(cutoff_A * torch.linalg.vector_norm(inverse, dim=1) + 0.5 + ROUNDING).to(torch.int64)
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, (size, images) in enumerate(zip(sizes, reach.tolist(), strict=True)):
        alike.setdefault((size, *images), []).append(k)
    starts = torch.tensor(np.cumsum([0, *sizes[:-1]]), device=device)
    for (size, *images), members in alike.items():
        chosen = torch.tensor(members, device=device)
        shifts = _images(images).to(device)
        own = starts[chosen].unsqueeze(1) + torch.arange(size, device=device)
        search = _Search(positions[own], cells[chosen], inverse[chosen], starts[chosen], shifts, cutoff_A)
        step = max(1, CANDIDATES // (size * len(shifts)))
        for first in range(0, size * len(members), step):
            yield search.near(torch.arange(first, min(first + step, size * len(members)), device=device))


def _images(reach: Iterable[int]) -> Tensor:
    """(K, 3) float64 lattice translations up to ``reach`` along each direction, in ascending order."""
    return torch.cartesian_prod(*(torch.arange(-n, n + 1, dtype=torch.float64) for n in reach))


@dataclass(frozen=True, slots=True)
class _Search:
    """Structures of equal size: positions (b, n, 3), cells and inverses (b, 3, 3), first atoms (b,), images (K, 3)."""

    positions: Tensor
    cells: Tensor
    inverse: Tensor
    starts: Tensor
    images: Tensor
    cutoff_A: float

    def near(self, centres: Tensor) -> Found:
        """Neighbours of some of the (b·n) atoms, sorted by centre, neighbour and image."""
        n, k = self.positions.shape[1], len(self.images)
        structure, atom = centres // n, centres % n
        others, cells = self.positions[structure], self.cells[structure]
        own = others.gather(1, atom.view(-1, 1, 1).expand(-1, 1, 3))
        edges = others - own
        nearest = -torch.round(torch.bmm(edges, self.inverse[structure]))
        edges = edges + torch.bmm(nearest, cells)
        images = torch.matmul(self.images, cells)
        # |e + t|² = |e|² + |t|² + 2 e·t
        squares = edges.square().sum(dim=2).unsqueeze(2) + images.square().sum(dim=2).unsqueeze(1)
        squares = torch.baddbmm(squares, edges, images.transpose(1, 2), alpha=2.0)
        inside = squares < self.cutoff_A**2
        inside[torch.arange(len(centres), device=centres.device), atom, k // 2] = False  # the atom itself
        row, j, image = inside.nonzero(as_tuple=True)
        counts = inside.flatten(1).sum(dim=1)
        column = torch.arange(len(row), device=row.device) - (torch.cumsum(counts, 0) - counts)[row]
        first = self.starts[structure]
        shifts = nearest[row, j] + self.images[image]
        return (first + atom)[row], column, first[row] + j, shifts
