"""Potentials with known answers behind the contract, and many replicas of a crystal moved at constant pressure.

Shapes: R replicas of N atoms. Units: Å, eV, fs, K, MPa.
"""

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from pipeline.batching import cell_volumes, make_batch
from pipeline.dynamics.barostat import Barostat
from pipeline.dynamics.langevin import Langevin
from pipeline.frames import Frame
from pipeline.potentials.base import Potential, Prediction, differentiate
from pipeline.settings.walkers import BarostatSettings
from pipeline.units import BOLTZMANN_EV_PER_K, FEMTOSECOND, PICOSECOND

EPSILON_EV, SIGMA_A, MASS = 0.0104, 3.40, 39.948
"""Argon."""
ONSET_A, CUTOFF_A = 4.2, 5.0
REACH_A = 6.0
"""Neighbour rows of a crystal: the second shell lies at 5.3 Å, the third at 6.5 Å."""


class IdealGas(Potential):
    """Atoms that do not see each other, in a cell whose shape costs energy, whatever its volume.

    Without E = κ (|h|² / (3 V^(2/3)) − 1) nothing would keep a flexible cell from becoming a needle.
    """

    elements, cutoff_A, feature_dimension = (18,), 0.1, 0
    stiffness_eV = 0.2

    def forward(self, batch, *, strain=None, features=False):
        nothing = 0.0 * batch.positions.sum(dim=1)
        cells = batch.cells if strain is None else batch.cells + 0.5 * batch.cells @ (strain + strain.transpose(1, 2))
        shape = cells.square().sum(dim=(1, 2)) / (3.0 * cell_volumes(cells) ** (2 / 3)) - 1.0
        energies = batch.sum_atoms(nothing.unsqueeze(1)).squeeze(1) + self.stiffness_eV * shape
        return Prediction(energies, nothing, None)


class LennardJones(Potential):
    """ASE's ``LennardJones(sigma, epsilon, rc, ro, smooth=True)``: 4ε((σ/r)¹² − (σ/r)⁶) times a switch from ro to rc."""

    elements, cutoff_A, feature_dimension = (18,), CUTOFF_A, 0

    def forward(self, batch, *, strain=None, features=False):
        square = batch.edges(strain).square().sum(dim=2)
        atomic = 0.5 * pair_energy(square).sum(dim=1)
        return Prediction(batch.sum_atoms(atomic.unsqueeze(1)).squeeze(1), atomic, None)


def pair_energy(square):
    """Energy of pairs from their squared distances, eV."""
    end, begin = CUTOFF_A**2, ONSET_A**2
    square = square.clamp(max=end)
    sixth = (SIGMA_A**2 / square) ** 3
    switch = (end - square) ** 2 * (end + 2.0 * square - 3.0 * begin) / (end - begin) ** 3
    return 4.0 * EPSILON_EV * (sixth * sixth - sixth) * torch.where(square < begin, 1.0, switch)


def argon(repeat=2, lattice_A=5.3) -> Atoms:
    """A face-centred cubic crystal of 4 repeat³ atoms."""
    return bulk("Ar", "fcc", a=lattice_A, cubic=True) * (repeat, repeat, repeat)


@dataclass
class Ensemble:
    """What replicas did: every array has the samples first, the replicas second.

    Attributes:
        volumes: (S, R).
        pressures: (S, R, 3, 3) inner pressure (kinetic and virial), eV/Å³.
        cells: (S, R, 3, 3).
        kinetic: (S, R) kinetic energy of the atoms, eV.
        cell_kinetic: (S, R) that of the cell, eV.
        energies: (S, R) E + K + P V + K_cell, eV.
    """

    volumes: np.ndarray
    pressures: np.ndarray
    cells: np.ndarray
    kinetic: np.ndarray
    cell_kinetic: np.ndarray
    energies: np.ndarray


class Replicas:
    """Copies of one structure under a barostat, each with its pressure."""

    def __init__(
        self,
        potential,
        atoms,
        *,
        pressures_MPa,
        temperature_K,
        kind="isotropic",
        timestep_fs=10.0,
        time_fs=300.0,
        friction_per_ps=4.0,
        cell_friction_per_ps=4.0,
        seed=0,
    ):
        frame, count = Frame.from_atoms(atoms, system="argon"), len(pressures_MPa)
        self.potential, self.count, self.atoms = potential, count, len(frame)
        self.batch = make_batch([frame] * count, REACH_A if potential.cutoff_A == CUTOFF_A else potential.cutoff_A)
        total, timestep = len(self.batch.numbers), timestep_fs * FEMTOSECOND
        self.langevin = Langevin.make(
            timestep=timestep,
            friction=friction_per_ps / PICOSECOND,
            masses=torch.full((total,), MASS, dtype=torch.float64),
            temperatures_K=torch.full((total,), temperature_K, dtype=torch.float64),
        )
        self.barostat = Barostat.make(
            BarostatSettings(kind=kind, time_fs=time_fs, friction_per_ps=cell_friction_per_ps),
            timestep=timestep,
            temperatures_K=torch.full((count,), temperature_K, dtype=torch.float64),
            pressures_MPa=torch.as_tensor(pressures_MPa, dtype=torch.float64),
            n_atoms=self.batch.n_atoms,
            langevin=self.langevin,
            system=self.batch.system,
        )
        self.random = torch.Generator().manual_seed(seed)
        self.positions, self.cells = self.batch.positions, self.batch.cells
        self.velocities = np.sqrt(BOLTZMANN_EV_PER_K * temperature_K / MASS) * self.normal(total, 3)
        self.rate = torch.zeros_like(self.cells)
        self._evaluate()

    def normal(self, *shape):
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def run(self, steps, every):
        """Samples every so many steps."""
        taken = []
        for step in range(1, steps + 1):
            self.positions, self.velocities, self.cells, self.rate = self.barostat.first_half(
                self.positions,
                self.velocities,
                self.cells,
                self.rate,
                self.forces,
                self.virials,
                self.normal(*self.positions.shape),
                self.normal(*self.cells.shape),
            )
            self._evaluate()
            self.velocities, self.rate = self.barostat.second_half(
                self.velocities, self.cells, self.rate, self.forces, self.virials
            )
            if step % every == 0:
                taken.append(self._sample())
        return Ensemble(*(np.stack(column) for column in zip(*taken, strict=True)))

    def missed(self):
        """(R,) change of energy by fresh neighbour rows, eV: not zero where the rows missed a neighbour."""
        places = self.positions.view(self.count, self.atoms, 3).numpy()
        numbers, pbc = self.batch.numbers[: self.atoms].numpy(), np.ones(3, dtype=bool)
        frames = [
            Frame(numbers=numbers, positions=places[k], cell=self.cells[k].numpy(), pbc=pbc, system="argon")
            for k in range(self.count)
        ]
        return (self.potential(make_batch(frames, CUTOFF_A)).energies - self.energies).numpy()

    def _evaluate(self):
        batch = self.batch.with_geometry(self.positions, self.cells)
        found = differentiate(self.potential, batch, virial=True)
        self.energies, self.forces, self.virials = found.energies.detach(), found.forces, found.virials

    def _sample(self):
        moving = self.velocities.view(self.count, self.atoms, 3)
        tensor = MASS * torch.einsum("rai,raj->rij", moving, moving)
        volume = cell_volumes(self.cells)
        kinetic = 0.5 * tensor.diagonal(dim1=1, dim2=2).sum(dim=1)
        cell_kinetic = 0.5 * self.rate.square().sum(dim=(1, 2)) / self.barostat.inverse_mass.view(-1)
        total = self.energies + kinetic + self.barostat.pressures * volume + cell_kinetic
        pressure = (tensor + self.virials) / volume.view(-1, 1, 1)
        return tuple(x.numpy() for x in (volume, pressure, self.cells, kinetic, cell_kinetic, total))


def mean_and_error(samples):
    """Mean over samples and replicas (S, R, …), and its standard error: replicas are independent, samples of one are not."""
    each = samples.mean(axis=0)
    return each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each))


def deviation_and_error(samples):
    """Standard deviation of all samples (S, R), and its error by leaving one replica out at a time."""
    total, count = samples.sum(axis=0), samples.shape[0] * (samples.shape[1] - 1)
    squares = np.square(samples - samples.mean()).sum(axis=0)
    shift = total - samples.shape[0] * samples.mean()
    without = np.sqrt((squares.sum() - squares) / count - ((shift.sum() - shift) / count) ** 2)
    replicas = samples.shape[1]
    return samples.std(), np.sqrt((replicas - 1) * np.var(without))
