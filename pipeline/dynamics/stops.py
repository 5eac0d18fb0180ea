"""When a walker has gone far enough, or too far.

Feature uncertainties have a known hole: an atom without neighbours looks nearly known. So NaN, isolated atoms, short
distances, large forces, broken bonds and collapsed cells are checks of their own. All of them are made on the device, for all
walkers at once; what comes back is one number per walker.

Shapes: B walkers, A atoms, M neighbours, K bonds. Units: Å, eV/Å.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from pipeline.batching import Batch
from pipeline.frames import IntArray
from pipeline.records import StopReason
from pipeline.settings.walkers import StopSettings

_RADII = torch.tensor(np.nan_to_num(covalent_radii, nan=1.5), dtype=torch.float64)

PRECEDENCE = (
    StopReason.NOT_FINITE,
    StopReason.CELL,
    StopReason.TOO_CLOSE,
    StopReason.ISOLATED_ATOM,
    StopReason.FORCE,
    StopReason.UNCERTAIN,
    StopReason.BONDS,
    StopReason.COMPLETED,
    StopReason.RUNNING,
)
"""When several checks fire at once the earliest in this order names the stop."""
TRUSTED = frozenset({StopReason.RUNNING, StopReason.COMPLETED, StopReason.UNCERTAIN, StopReason.BONDS})
"""Stops whose last geometry is worth a label; after any other the last one that passed is."""
BOND_BAND = 0.05
"""A pair that starts closer to the threshold of a bond than this fraction of it is not watched."""


def any_atom(batch: Batch, flag: Tensor) -> Tensor:
    """(B,) bool: is the (A,) flag set on any atom of a structure."""
    return batch.max_atoms(flag.to(torch.float32)) > 0.0


def heights(cells: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) volumes, Å³, and (B, 3) heights of the cells over each pair of their vectors, Å."""
    faces = torch.linalg.cross(cells.roll(-1, dims=1), cells.roll(-2, dims=1))
    volumes = (cells[:, 0] * faces[:, 0]).sum(dim=1).abs()
    return volumes, volumes.unsqueeze(1) / torch.linalg.vector_norm(faces, dim=2)


def bonds(batch: Batch, fraction: float, cutoff_A: float) -> list[IntArray]:
    """(K, 2) pairs of atoms i <= j of each structure that are bonded, images included; within the cutoff only.

    A pair is bonded below ``fraction`` of the sum of its covalent radii.
    """
    atoms, columns = _bonded(batch, _sums(batch), fraction, cutoff_A).nonzero(as_tuple=True)
    pairs = torch.stack([atoms, batch.neighbors[atoms, columns]], dim=1)
    pairs = torch.unique(pairs[pairs[:, 0] <= pairs[:, 1]], dim=0)
    ends = torch.cumsum(batch.n_atoms, 0)
    system = batch.system.index_select(0, pairs[:, 0])
    local = (pairs - (ends - batch.n_atoms).index_select(0, system).unsqueeze(1)).cpu().numpy()
    where = np.searchsorted(system.cpu().numpy(), np.arange(1, len(batch)))
    return list(np.split(local, where))


def _sums(batch: Batch) -> Tensor:
    """(A, M) sums of the covalent radii of an atom and each neighbour, Å."""
    radii = _RADII.to(batch.numbers.device).index_select(0, batch.numbers)
    return radii.unsqueeze(1) + radii.index_select(0, batch.neighbors.reshape(-1)).view_as(batch.neighbors)


def _bonded(batch: Batch, sums: Tensor, fraction: float, cutoff_A: float) -> Tensor:
    """(A, M) bool: which neighbours are bonded. A padded one is far away."""
    distance = torch.linalg.vector_norm(batch.edges(), dim=-1)
    near: Tensor = distance < torch.clamp(fraction * sums, max=cutoff_A)
    return near


@dataclass(frozen=True, slots=True)
class Bonds:
    """The bonds one walker started with.

    A pair about as far apart as the threshold is neither a bond that may break nor one that may form: a walker that starts
    from a frame where a bond had just crossed it would stop at its first vibration.

    Attributes:
        near: (K, 2) pairs i <= j that are bonded, or nearly so: they cannot form a new bond.
        firm: (K', 2) those of them that are well below the threshold: they can break.
    """

    near: IntArray
    firm: IntArray


def start_bonds(batch: Batch, fraction: float, cutoff_A: float) -> list[Bonds]:
    """Of structures in whose rows all neighbours within (1 + ``BOND_BAND``) cutoff are."""
    near, firm = (bonds(batch, (1 + side) * fraction, (1 + side) * cutoff_A) for side in (BOND_BAND, -BOND_BAND))
    return [Bonds(loose, tight) for loose, tight in zip(near, firm, strict=True)]


@dataclass(frozen=True, slots=True)
class BondGraph:
    """The bonds that walkers started with.

    Attributes:
        keys: (K,) int64 i·A + j of each near pair i <= j of the flat batch, ascending.
        firm: (K,) float64 1 where the pair is a firm bond, else 0.
        system: (K,) int64 which walker it belongs to.
    """

    keys: Tensor
    firm: Tensor
    system: Tensor

    @classmethod
    def of(cls, starts: Sequence[Bonds], sizes: IntArray, device: torch.device | str = "cpu") -> "BondGraph":
        """From the bonds of each walker and its number of atoms."""
        keys, system = _keys([start.near for start in starts], sizes)
        firm, _ = _keys([start.firm for start in starts], sizes)
        order = np.argsort(keys)
        columns = (keys[order], np.isin(keys[order], firm).astype(np.float64), system[order])
        return cls(*(torch.from_numpy(column).to(device) for column in columns))

    def changed(self, batch: Batch, fraction: float, cutoff_A: float) -> Tensor:
        """(B,) bool: has a bond broken or a new one formed."""
        bonded = _bonded(batch, _sums(batch), fraction, cutoff_A)
        atoms = len(batch.numbers)
        own = torch.arange(atoms, device=batch.neighbors.device).unsqueeze(1)
        keys = torch.minimum(own, batch.neighbors) * atoms + torch.maximum(own, batch.neighbors)
        # one place more than there are bonds: whatever is none of them lands there
        count = len(self.keys)
        ends = torch.cat([self.keys, self.keys.new_full((1,), -1)])
        place = torch.searchsorted(self.keys, keys)
        known = ends.index_select(0, place.view(-1)).view_as(keys) == keys
        place = torch.where(bonded & known, place, count)
        found = torch.zeros(count + 1, dtype=torch.float64, device=keys.device).scatter_reduce(
            0, place.view(-1), torch.ones_like(place, dtype=torch.float64).view(-1), "amax"
        )
        broken = torch.zeros(len(batch), dtype=torch.float64, device=keys.device)
        broken = broken.index_add(0, self.system, self.firm * (1.0 - found[:count]))
        return any_atom(batch, (bonded & ~known).any(dim=1)) | (broken > 0)


def _keys(graphs: Sequence[IntArray], sizes: IntArray) -> tuple[IntArray, IntArray]:
    """(K,) keys i·A + j in the flat batch of the (K, 2) pairs of each walker, and which walker they belong to."""
    system = np.repeat(np.arange(len(graphs)), [len(graph) for graph in graphs])
    pairs = np.concatenate([*graphs, np.zeros((0, 2), dtype=np.int64)])
    pairs = pairs + (np.cumsum(sizes) - sizes)[system][:, None]
    return pairs[:, 0] * int(sizes.sum()) + pairs[:, 1], system


@dataclass(frozen=True, slots=True)
class StartCells:
    """What the cells of walkers are compared with.

    Attributes:
        cells: (B, 3, 3) float64 at the start of each walker, Å.
        volumes: (B, 2) float64 smallest and largest volume that changes are counted from, Å³: those of the campaign's start
            structures, for limits that followed the starts of walkers would move on with every generation of them.
    """

    cells: Tensor
    volumes: Tensor


@dataclass(frozen=True, slots=True)
class StopChecks:
    """The stop checks of a batch of walkers.

    Attributes:
        settings: limits.
        cutoff_A: of the model.
        max_steps: age at which a walker is done.
        cells: what cells are compared with, or None where they stay.
        graph: bonds at the start, or None where they are not watched.
    """

    settings: StopSettings
    cutoff_A: float
    max_steps: int
    cells: StartCells | None
    graph: BondGraph | None

    def codes(self, batch: Batch, *, forces: Tensor, atomic: Tensor, lost: Tensor, ages: Tensor) -> Tensor:
        """(B,) int64: which of :data:`PRECEDENCE` each walker stops for; no transfer to the host.

        Args:
            batch: where the walkers are.
            forces: (A, 3) without impulses, eV/Å.
            atomic: (A,) calibrated atom-based uncertainties, eV/Å.
            lost: (B,) bool, who has left physics since the last check.
            ages: (B,) int64 steps since the start of each walker.
        """
        flags = self._unphysical(batch, forces)
        flags[StopReason.NOT_FINITE] |= lost | any_atom(batch, ~torch.isfinite(atomic))
        flags[StopReason.UNCERTAIN] = any_atom(batch, atomic > self.settings.uncertainty_eV_per_A)
        flags[StopReason.COMPLETED] = ages >= self.max_steps
        if self.graph is not None:
            flags[StopReason.BONDS] = self.graph.changed(batch, self.settings.bond_fraction, self.cutoff_A)
        if self.cells is not None:
            flags[StopReason.CELL] = self._cell_gone(batch.cells, self.cells) & batch.pbc.all(dim=1)
        code = torch.full_like(ages, PRECEDENCE.index(StopReason.RUNNING))
        for reason in reversed(PRECEDENCE):
            if reason in flags:
                code = torch.where(flags[reason], PRECEDENCE.index(reason), code)
        return code

    def _unphysical(self, batch: Batch, forces: Tensor) -> dict[StopReason, Tensor]:
        """(B,) bool: NaN, isolated atoms, atoms too close, forces too large."""
        settings = self.settings
        distance = torch.linalg.vector_norm(batch.edges(), dim=-1)
        finite = torch.isfinite(batch.positions).all(dim=1) & torch.isfinite(forces).all(dim=1)
        many = batch.n_atoms.index_select(0, batch.system) > 1
        flags = {
            StopReason.NOT_FINITE: ~finite,
            StopReason.TOO_CLOSE: (distance < settings.min_distance_fraction * _sums(batch)).any(dim=1),
            StopReason.ISOLATED_ATOM: many & (distance.min(dim=1).values > settings.isolation_A),
            StopReason.FORCE: torch.linalg.vector_norm(forces, dim=1) > settings.max_force_eV_per_A,
        }
        return {reason: any_atom(batch, flag) for reason, flag in flags.items()}

    def _cell_gone(self, cells: Tensor, starts: StartCells) -> Tensor:
        """(B,) bool: has the cell changed its volume too much, become too skewed, or too thin for the cutoff."""
        settings = self.settings
        (volume, height), (_, first_height) = heights(cells), heights(starts.cells)
        smallest, largest = starts.volumes.unbind(dim=1)
        # written so that a number that is none has gone too far
        swollen = ~((volume < settings.volume_change * largest) & (volume > smallest / settings.volume_change))
        unit = cells / torch.linalg.vector_norm(cells, dim=2, keepdim=True)
        cosines = (unit * unit.roll(-1, dims=1)).sum(dim=2).abs()
        skewed = (cosines > math.cos(math.radians(settings.min_angle_deg))).any(dim=1)
        shortest, first_shortest = height.min(dim=1).values, first_height.min(dim=1).values
        thin = (shortest < settings.min_height_fraction * first_shortest) & (shortest < self.cutoff_A)
        gone: Tensor = swollen | skewed | thin
        return gone
