"""The tensors of a batch of walkers: where they are, what acts on them, and where they last were well.

Shapes: B walkers (slots), A atoms. Units: Å, eV/Å, eV; velocities in Å per internal time unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline.frames import BoolArray, FloatArray, IntArray
from pipeline.records import Checked, WalkerState


@dataclass(frozen=True, slots=True)
class Exchange:
    """Which rows of [those that are there; those of new walkers] make the batch once some slots have changed hands.

    Attributes:
        atoms: (A',) int64 for tensors of atoms.
        walkers: (B,) int64 for tensors of walkers; rows: the same on the host.
    """

    atoms: Tensor
    walkers: Tensor
    rows: IntArray

    @classmethod
    def of(cls, sizes: IntArray, slots: Sequence[int], fresh: Sequence[int], device: torch.device) -> "Exchange":
        """For slots of ``sizes`` atoms, some of which get walkers of ``fresh`` atoms."""
        chosen, new = np.asarray(slots, dtype=np.int64), np.asarray(fresh, dtype=np.int64)
        walkers, after = np.arange(len(sizes)), sizes.copy()
        source = np.cumsum(sizes) - sizes
        walkers[chosen], after[chosen] = len(sizes) + np.arange(len(chosen)), new
        source[chosen] = sizes.sum() + np.cumsum(new) - new
        first = np.cumsum(after) - after
        atoms = np.arange(after.sum()) + np.repeat(source - first, after)
        return cls(torch.from_numpy(atoms).to(device), torch.from_numpy(walkers).to(device), walkers)


def _joined(values: Sequence[FloatArray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(values)).to(device)


def _stacked(values: Sequence[FloatArray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(values)).to(device)


_OF_ATOMS = frozenset({"positions", "velocities", "forces"})


@dataclass(frozen=True, slots=True)
class Phase:
    """Everything about the walkers that a step changes. Tensors are replaced and never written to.

    Attributes:
        positions, velocities, forces: (A, 3) float64.
        cells, strain_rates, virials: (B, 3, 3) float64.
        tau: (B,) float64.
        ages: (B,) int64 steps since the start of each walker.
        lost: (B,) bool, who has left physics since the last check: it stands still where it was.
    """

    positions: Tensor
    velocities: Tensor
    forces: Tensor
    cells: Tensor
    strain_rates: Tensor
    virials: Tensor
    tau: Tensor
    ages: Tensor
    lost: Tensor

    @classmethod
    def of(cls, states: Sequence[WalkerState], device: torch.device) -> "Phase":
        """From walkers as they were kept; velocities that are no numbers are those of a lost one."""
        lost = [not np.isfinite(state.velocities).all() for state in states]
        velocities = [
            np.zeros_like(state.velocities) if gone else state.velocities
            for state, gone in zip(states, lost, strict=True)
        ]
        return cls(
            positions=_joined([state.frame.positions for state in states], device),
            velocities=_joined(velocities, device),
            forces=_joined([state.forces for state in states], device),
            cells=_stacked([state.frame.cell for state in states], device),
            strain_rates=_stacked([state.strain_rate for state in states], device),
            virials=_stacked([state.virial for state in states], device),
            tau=torch.tensor([state.tau for state in states], dtype=torch.float64, device=device),
            ages=torch.tensor([state.age for state in states], dtype=torch.int64, device=device),
            lost=torch.tensor(lost, device=device),
        )

    def exchanged(self, fresh: "Phase", exchange: Exchange) -> "Phase":
        """With other walkers in some slots."""

        def one(name: str) -> Tensor:
            index = exchange.atoms if name in _OF_ATOMS else exchange.walkers
            return torch.cat([getattr(self, name), getattr(fresh, name)]).index_select(0, index)

        return Phase(**{field.name: one(field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Visited:
    """Geometries of all walkers at one time, and what the model did not know of them.

    Attributes:
        positions: (A, 3) float64; cells: (B, 3, 3) float64; atomic: (A,) float64 atom-based uncertainties, eV/Å.
        totals: (B,) total uncertainties, eV/atom; ages: (B,) int64. On the host.
        there: (B,) bool, whose geometry is there at all. On the host.
    """

    positions: Tensor
    cells: Tensor
    atomic: Tensor
    totals: FloatArray
    ages: IntArray
    there: BoolArray

    @classmethod
    def of(cls, states: Sequence[WalkerState], device: torch.device) -> "Visited":
        """Where walkers passed their last check."""
        nowhere = [Checked(s.frame.positions, s.frame.cell, -1, np.nan, np.zeros(len(s.frame))) for s in states]
        kept = [state.good or none for state, none in zip(states, nowhere, strict=True)]
        return cls(
            positions=_joined([one.positions for one in kept], device),
            cells=_stacked([one.cell for one in kept], device),
            atomic=_joined([one.atomic for one in kept], device),
            totals=np.array([one.total for one in kept]),
            ages=np.array([one.age for one in kept], dtype=np.int64),
            there=np.array([state.good is not None for state in states]),
        )

    def exchanged(self, fresh: "Visited", exchange: Exchange) -> "Visited":
        """With other walkers in some slots."""
        rows = exchange.rows
        return Visited(
            torch.cat([self.positions, fresh.positions]).index_select(0, exchange.atoms),
            torch.cat([self.cells, fresh.cells]).index_select(0, exchange.walkers),
            torch.cat([self.atomic, fresh.atomic]).index_select(0, exchange.atoms),
            np.concatenate([self.totals, fresh.totals])[rows],
            np.concatenate([self.ages, fresh.ages])[rows],
            np.concatenate([self.there, fresh.there])[rows],
        )

    def rows(self, chosen: IntArray, sizes: IntArray) -> list[Checked]:
        """Those of some walkers, in one transfer."""
        if len(chosen) == 0:
            return []
        own, first = sizes[chosen], (np.cumsum(sizes) - sizes)[chosen]
        starts = np.cumsum(own) - own
        atoms = np.arange(own.sum()) + np.repeat(first - starts, own)
        where, who = (torch.from_numpy(index).to(self.positions.device) for index in (atoms, chosen))
        parts = (
            self.positions.index_select(0, where),
            self.atomic.index_select(0, where),
            self.cells.index_select(0, who),
        )
        packed = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
        total = len(atoms)
        positions, atomic = packed[: 3 * total].reshape(-1, 3), packed[3 * total : 4 * total]
        cells = packed[4 * total :].reshape(-1, 3, 3)
        found = []
        for row, (k, start, size) in enumerate(zip(chosen.tolist(), starts.tolist(), own.tolist(), strict=True)):
            span = slice(start, start + size)
            found.append(
                Checked(
                    positions[span].copy(),
                    cells[row].copy(),
                    int(self.ages[k]),
                    float(self.totals[k]),
                    atomic[span].copy(),
                )
            )
        return found
