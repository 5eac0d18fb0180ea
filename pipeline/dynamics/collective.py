"""Collective variables of the walkers of a batch, differentiable by positions and strain.

They are those of ``pipeline.analysis.variables``: of positions that are not wrapped back into the cell, so that a distance or a
dihedral is that of the very atoms named, never of their images.

Shapes: B walkers, A atoms, D variables, k atoms of a variable. Units: Å, Å³, degrees.
"""

import math
from collections.abc import Sequence
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch, cell_volumes
from pipeline.settings.variables import DihedralVariable, DistanceVariable, Variable, VolumeVariable

FULL_TURN = 360.0
EVERYONE = slice(None)


def dihedral(bonds: Tensor) -> Tensor:
    """(B,) dihedral angles in degrees, [−180, 180), IUPAC sign, from (B, 3, 3) vectors a→b, a→c, a→d of four atoms in a row."""
    to_b, to_c, to_d = bonds.unbind(dim=1)
    axis = to_c - to_b
    axis = axis / torch.linalg.vector_norm(axis, dim=1, keepdim=True)
    before, after = -to_b, to_d - to_c
    before = before - (before * axis).sum(dim=1, keepdim=True) * axis
    after = after - (after * axis).sum(dim=1, keepdim=True) * axis
    x = (before * after).sum(dim=1)
    y = (torch.linalg.cross(axis, before) * after).sum(dim=1)
    angle = torch.atan2(y, x) * (180.0 / math.pi)
    return torch.where(angle >= FULL_TURN / 2, angle - FULL_TURN, angle)


def strained(vectors: Tensor, strain: Tensor | None) -> Tensor:
    """(B, k, 3) vectors under the symmetric part of the (B, 3, 3) strain, as :meth:`pipeline.batching.Batch.edges`."""
    if strain is None:
        return vectors
    return vectors + torch.bmm(vectors, 0.5 * (strain + strain.transpose(1, 2)))


class Coordinates:
    """D collective variables of each of B walkers. Systems may differ; a variable is of the same kind in all of them.

    Tensors are replaced and never written to, so ``copy.copy`` keeps what it was.

    Args:
        variables: of each walker, the same names in the same order.
        device: where the walkers are.
    """

    def __init__(self, variables: Sequence[Sequence[Variable]], device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._kinds = [type(variable) for variable in variables[0]]
        assert all([type(v) for v in own] == self._kinds for own in variables), "a variable differs in kind"
        self._atoms = [self._table([own[d] for own in variables]) for d in range(len(self._kinds))]

    @property
    def periods(self) -> tuple[float, ...]:
        """Of each variable: a full turn in degrees, 0 where it is not periodic."""
        return tuple(FULL_TURN if kind is DihedralVariable else 0.0 for kind in self._kinds)

    def exchange(self, rows: Tensor, variables: Sequence[Sequence[Variable]]) -> None:
        """Other walkers took some slots: now the (B,) ``rows`` of [those here; fresh ones with ``variables``] are there."""
        assert all([type(v) for v in own] == self._kinds for own in variables), "a variable differs in kind"
        self._atoms = [
            torch.cat([atoms, self._table([own[d] for own in variables])]).index_select(0, rows)
            for d, atoms in enumerate(self._atoms)
        ]

    def values(self, batch: Batch, strain: Tensor | None = None, walkers: slice = EVERYONE) -> Tensor:
        """(B, D) float64 values: degrees in [−180, 180), Å or Å³. Nothing here waits for the device.

        Args:
            batch: the walkers where they are, unwrapped.
            strain: (B, 3, 3) strain of positions and cell; its symmetric part acts.
            walkers: which of them ``batch`` holds.
        """
        first = (torch.cumsum(batch.n_atoms, dim=0) - batch.n_atoms).unsqueeze(1)
        columns: dict[int, Tensor] = {}
        quadruples: dict[int, Tensor] = {}
        for d, (kind, atoms) in enumerate(zip(self._kinds, self._atoms, strict=True)):
            if kind is VolumeVariable:
                columns[d] = cell_volumes(strained(batch.cells, strain))
                continue
            chosen = atoms[walkers] + first
            # one gather for each variable: no atom twice, so that gradients are summed in one order on every device
            points = batch.positions.index_select(0, chosen.reshape(-1)).view(*chosen.shape, 3)
            bonds = strained(points[:, 1:] - points[:, :1], strain)
            if kind is DihedralVariable:
                quadruples[d] = bonds
            else:
                columns[d] = torch.linalg.vector_norm(bonds[:, 0], dim=1)
        if quadruples:
            angles = dihedral(torch.cat(list(quadruples.values()))).view(len(quadruples), -1)
            columns.update(zip(quadruples, angles.unbind(), strict=True))
        return torch.stack([columns[d] for d in range(len(columns))], dim=1)

    def _table(self, variables: Sequence[Variable]) -> Tensor:
        """(B, k) int64 atoms of one variable, counted within each walker."""
        return torch.from_numpy(np.array([_atoms(v) for v in variables], dtype=np.int64)).to(self._device)


def _atoms(variable: Variable) -> tuple[int, ...]:
    match variable:
        case DihedralVariable() | DistanceVariable():
            return variable.atoms
        case VolumeVariable():
            return ()
        case _:
            assert_never(variable)
