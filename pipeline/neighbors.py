"""Who is near whom: neighbour rows by vesin on the CPU, and of many structures at once by torch on any device.

Shapes: B structures, A atoms of all of them, N atoms of one, M neighbours of the atom that has most. Units: Å.

Both builders find the same neighbours in the same order, by index and then by image, so that sums over a row keep their
rounding whoever built it and whatever the positions are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TaskError
from pipeline.frames import BoolArray, FloatArray, IntArray

FAR_A = 1.0e3
"""Distance of a padded neighbour, Å: beyond every cutoff."""
CANDIDATES = 2**22
"""Pairs and images the torch builder looks at in one piece, about 200 MB; more around one atom and the cell has collapsed."""
MOST_IMAGES = 32
"""More than these along one direction and the cell has collapsed."""
ROUNDING = 1e-6
"""Added to the number of images, so that no rounding of a fractional coordinate loses one."""


COLLAPSED = "Stop walkers earlier (walkers.stop), or mend the structure."


Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some pairs: centre, place in its row, neighbour (int64 each), and shift (float64)."""


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
        offsets: (A, M, 3) float64 the same in Å, ``FAR_A`` along x where padded.
        padding: (A, M) bool.
    """

    neighbors: Tensor
    shifts: Tensor
    offsets: Tensor
    padding: Tensor

    @property
    def width(self) -> int:
        """M."""
        return self.neighbors.shape[1]

    def to(self, device: torch.device | str) -> "NeighborTable":
        """The rows on another device."""
        return self.each(lambda values: values.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> "NeighborTable":
        """What becomes of the rows when each of the tensors changes in the same way."""
        return NeighborTable(change(self.neighbors), change(self.shifts), change(self.offsets), change(self.padding))

    def widened(self, width: int) -> "NeighborTable":
        """The same rows with ``width`` columns, at least as many as the longest row has neighbours."""
        if width <= self.width:
            return self.each(lambda values: values[:, :width].contiguous())
        return beside(self, blank_table(len(self.neighbors), width - self.width, self.neighbors.device))


def beside(left: NeighborTable, right: NeighborTable) -> NeighborTable:
    """Rows of the same atoms, the neighbours of ``right`` after those of ``left``."""
    return NeighborTable(
        torch.cat([left.neighbors, right.neighbors], dim=1),
        torch.cat([left.shifts, right.shifts], dim=1),
        torch.cat([left.offsets, right.offsets], dim=1),
        torch.cat([left.padding, right.padding], dim=1),
    )


def blank_table(atoms: int, width: int, device: torch.device) -> NeighborTable:
    """Rows of padding only."""
    offsets = torch.zeros((atoms, width, 3), dtype=torch.float64, device=device)
    offsets[..., 0] = FAR_A
    return NeighborTable(
        torch.arange(atoms, device=device).unsqueeze(1).repeat(1, width),
        torch.zeros_like(offsets),
        offsets,
        torch.ones((atoms, width), dtype=torch.bool, device=device),
    )


def translations(shifts: Tensor, padding: Tensor, cells: Tensor) -> Tensor:
    """(A, M, 3) offsets in Å of neighbours by (A, M, 3) lattice translations of (A, 3, 3) cells; padded ones far away."""
    offsets = torch.bmm(shifts, cells)
    offsets[..., 0] += padding * FAR_A
    return offsets


def neighbor_rows(positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff_A: float) -> NeighborRows:
    """All neighbours of one structure within ``cutoff_A`` (periodic images included), found by vesin.

    Args:
        positions: (N, 3), not necessarily inside the cell.
        cell: (3, 3), rows are lattice vectors; those of directions that are not periodic are not looked at.
        pbc: (3,) periodic directions.
        cutoff_A: radius.

    Raises:
        TaskError: a number is not finite, or the cell has no volume.
    """
    # copies: an array from a file may be read-only, which torch warns of
    points, box, periodic = torch.tensor(positions), torch.tensor(cell)[None], torch.tensor(pbc)[None]
    table = neighbor_table(points, box, periodic, [len(positions)], cutoff_A, by_torch=False)
    return NeighborRows(table.neighbors.numpy(), table.shifts.numpy(), table.offsets.numpy(), table.padding.numpy())


def joined(rows: Sequence[NeighborRows]) -> NeighborTable:
    """Rows of structures as one table on the CPU, as wide as the longest row."""
    width = max(row.neighbors.shape[1] for row in rows)
    total = sum(len(row.neighbors) for row in rows)
    table = blank_table(total, width, torch.device("cpu"))
    neighbors, shifts, offsets, padding = (
        values.numpy() for values in (table.neighbors, table.shifts, table.offsets, table.padding)
    )
    first = 0
    for row in rows:
        n, m = row.neighbors.shape
        neighbors[first : first + n, :m] = row.neighbors + first
        shifts[first : first + n, :m] = row.shifts
        offsets[first : first + n, :m] = row.offsets
        padding[first : first + n, :m] = row.padding
        first += n
    return table


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


def image_counts(inverse: Tensor, cutoff_A: float) -> list[list[int]]:
    """How many lattice translations to look at along each direction of B cells, from :func:`lattice_inverse`.

    A pair at its nearest image is at most half a lattice vector apart along each height.

    Raises:
        TaskError: so many that the cell is no cell.
    """
    reach: list[list[float]] = (cutoff_A * torch.linalg.vector_norm(inverse, dim=1) + 0.5 + ROUNDING).tolist()
    for row in reach:
        if not all(images < MOST_IMAGES + 1 for images in row):
            raise TaskError(f"A cell has collapsed: {max(row):.3g} of its images lie within {cutoff_A:g} Å.", COLLAPSED)
    return [[int(images) for images in row] for row in reach]


def neighbor_table(
    positions: Tensor,
    cells: Tensor,
    pbc: Tensor,
    sizes: Sequence[int],
    cutoff_A: float,
    by_torch: bool | None = None,
) -> NeighborTable:
    """All neighbours of many structures, where ``positions`` are; as wide as the longest row.

    Torch looks at all pairs and images: its work grows with the square of the atoms of a structure, and is meant for up to
    some thousand of them.

    Args:
        positions: (A, 3) float64; structures one after the other.
        cells: (B, 3, 3) float64.
        pbc: (B, 3) bool.
        sizes: atoms of each structure.
        cutoff_A: radius.
        by_torch: whether torch finds them, or vesin on the CPU; by default torch where the positions are not on the CPU.

    Raises:
        TaskError: a number is not finite, a cell has no volume, or too little of it.
    """
    if not bool(torch.isfinite(positions).all()):
        raise TaskError("An atom is nowhere: its coordinates are not finite.", COLLAPSED)
    device, total = positions.device, len(positions)
    inverse = lattice_inverse(cells, pbc)
    counts = image_counts(inverse, cutoff_A)
    if device.type != "cpu" if by_torch is None else by_torch:
        pieces = list(_by_torch(positions, cells, inverse, counts, sizes, cutoff_A))
    else:
        pieces = list(_by_vesin(positions, cells, pbc, sizes, cutoff_A))
    i, column, j, shifts = (torch.cat(parts).to(device) for parts in zip(*pieces, strict=True))
    width = max(1, int(column.max()) + 1) if len(column) else 1
    table, places = blank_table(total, width, device), i * width + column
    table.neighbors.view(-1).index_copy_(0, places, j)
    table.shifts.view(-1, 3).index_copy_(0, places, shifts)
    table.padding.view(-1).index_fill_(0, places, False)
    system = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
    offsets = translations(table.shifts, table.padding, cells.index_select(0, system))
    return replace(table, offsets=offsets)


def _by_vesin(positions: Tensor, cells: Tensor, pbc: Tensor, sizes: Sequence[int], cutoff_A: float) -> Iterator[Found]:
    """The pairs of one structure after the other."""
    finder = vesin.NeighborList(cutoff=cutoff_A, full_list=True)
    points, boxes, periodic = (values.cpu().numpy() for values in (positions, cells, pbc))
    first = 0
    for size, box, directions in zip(sizes, boxes, periodic, strict=True):
        here = points[first : first + size]
        i, j, shifts = finder.compute(points=here, box=box, periodic=directions, quantities="ijS")
        i, j = i.astype(np.int64), j.astype(np.int64)
        order = _order(i * size + j, shifts)
        i, j, shifts = i[order], j[order], shifts[order].astype(np.float64)
        counts = np.bincount(i, minlength=size)
        column = np.arange(len(i)) - (np.cumsum(counts) - counts)[i]
        centres, others = torch.from_numpy(i + first), torch.from_numpy(j + first)
        yield centres, torch.from_numpy(column), others, torch.from_numpy(shifts)
        first += size


def _order(pairs: IntArray, shifts: NDArray[np.int32]) -> IntArray:
    """What sorts by pair, then by the three components of the shift: one sort of one number is faster than four."""
    key = pairs
    for axis in range(3):
        component = shifts[:, axis].astype(np.int64)
        low, high = int(component.min(initial=0)), int(component.max(initial=0))
        key = key * (high - low + 1) + (component - low)
    return np.argsort(key, kind="stable")


def _by_torch(
    positions: Tensor,
    cells: Tensor,
    inverse: Tensor,
    counts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    cutoff_A: float,
) -> Iterator[Found]:
    """The pairs of structures of equal size and equally many images together, in pieces that fit into memory."""
    device = positions.device
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, (size, images) in enumerate(zip(sizes, counts, strict=True)):
        alike.setdefault((size, *images), []).append(k)
    starts = torch.tensor(np.cumsum([0, *sizes[:-1]]), device=device)
    for (size, *images), members in alike.items():
        around = size * math.prod(2 * count + 1 for count in images)
        if around > CANDIDATES:
            raise TaskError(
                f"A cell has collapsed: {around / size:g} of its images, of {size} atoms, lie around {cutoff_A:g} Å.",
                COLLAPSED,
            )
        chosen = torch.tensor(members, device=device)
        shifts = _images(images).to(device)
        own = starts[chosen].unsqueeze(1) + torch.arange(size, device=device)
        search = _Search(positions[own], cells[chosen], inverse[chosen], starts[chosen], shifts, cutoff_A)
        step = CANDIDATES // around
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
