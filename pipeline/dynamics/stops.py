"""When a walker has gone far enough, or too far.

Feature uncertainties have a known hole: an atom without neighbours looks nearly known. So NaN, isolated atoms, short
distances, large forces and broken bonds are checks of their own.

Shapes: B walkers, A atoms, M neighbours. Units: Å, eV/Å.
"""

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from pipeline.batching import Batch, neighbor_rows
from pipeline.frames import BoolArray, FloatArray, IntArray
from pipeline.records import StopReason
from pipeline.settings.walkers import StopSettings

_RADII = torch.tensor(np.nan_to_num(covalent_radii, nan=1.5), dtype=torch.float64)

PRECEDENCE = (
    StopReason.NOT_FINITE,
    StopReason.TOO_CLOSE,
    StopReason.ISOLATED_ATOM,
    StopReason.FORCE,
    StopReason.UNCERTAIN,
    StopReason.BONDS,
)
"""When several checks fire at once the earliest in this order names the stop."""


def unphysical(batch: Batch, forces: Tensor, settings: StopSettings) -> dict[StopReason, Tensor]:
    """(B,) bool per physical check: NaN, isolated atoms, atoms too close, forces too large."""
    with torch.no_grad():
        distance = torch.linalg.vector_norm(batch.edges(), dim=-1)
        radii = _RADII.index_select(0, batch.numbers)
        bonded = radii.unsqueeze(1) + radii.index_select(0, batch.neighbors.reshape(-1)).view_as(batch.neighbors)
        finite = torch.isfinite(batch.positions).all(dim=1) & torch.isfinite(forces).all(dim=1)
        many = batch.n_atoms.index_select(0, batch.system) > 1
        flags = {
            StopReason.NOT_FINITE: ~finite,
            StopReason.TOO_CLOSE: (distance < settings.min_distance_fraction * bonded).any(dim=1),
            StopReason.ISOLATED_ATOM: many & (distance.min(dim=1).values > settings.isolation_A),
            StopReason.FORCE: torch.linalg.vector_norm(forces, dim=1) > settings.max_force_eV_per_A,
        }
        return {reason: any_atom(batch, flag) for reason, flag in flags.items()}


def any_atom(batch: Batch, flag: Tensor) -> Tensor:
    """(B,) bool: is the (A,) flag set on any atom of a structure."""
    return batch.sum_atoms(flag.unsqueeze(1)).squeeze(1) > 0


def bonds(
    numbers: IntArray, positions: FloatArray, cell: FloatArray, pbc: BoolArray, fraction: float
) -> frozenset[tuple[int, int]]:
    """Pairs of atoms nearer than ``fraction`` of the sum of their covalent radii (images included)."""
    radii = _RADII.numpy()[numbers]
    rows = neighbor_rows(positions, cell, pbc, float(2 * radii.max() * fraction))
    vectors = positions[rows.neighbors] - positions[:, None, :] + rows.offsets
    near = np.linalg.norm(vectors, axis=-1) < fraction * (radii[:, None] + radii[rows.neighbors])
    pairs = ((int(i), int(rows.neighbors[i, m])) for i, m in zip(*np.nonzero(near), strict=True))
    return frozenset((i, j) for i, j in pairs if i <= j)
