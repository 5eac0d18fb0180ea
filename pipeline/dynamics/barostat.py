"""Langevin dynamics of atoms and their cell at constant pressure, by a splitting with BAOAB inside.

The equations are those of Martyna, Tobias and Klein (1994, J. Chem. Phys. 101, 4177) with stochastic thermostats on atoms and
cell instead of chains (Quigley and Probert 2004, J. Chem. Phys. 120, 11432; isotropic: Bussi, Zykova-Timan and Parrinello 2009,
J. Chem. Phys. 130, 074101). With strain rate ν, cell h (rows are lattice vectors), pressure P and N_f = 3N degrees of freedom

    ṙ = v + r ν,  ḣ = h ν,  v̇ = F/m − v (ν + tr ν / N_f) − γ v + noise,
    W_g ν̇ = Σ m v⊗v − ∂E/∂ε − P V + Σ m v² / N_f − γ_c W_g ν + noise.

ν is kept symmetric: the cell does not turn. Without thermostats K + E + P V + W_g tr(ν²)/2 is conserved. One step is
B_g B A O A B B_g: B_g kicks ν, B kicks the velocities, A moves atoms and cell, each solved exactly for a constant ν and force,
O thermostats both; one evaluation of forces and virials per step. The error is of second order in Δt.

What is sampled: exp(−(E + P V)/k_B T) in the volume (isotropic), in the three lengths (anisotropic), in all cells (flexible).

Shapes: B walkers, A atoms. Units: Å, eV, amu; time Å·√(amu/eV).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.batching import cell_volumes
from pipeline.dynamics.langevin import Langevin
from pipeline.settings.walkers import BarostatSettings
from pipeline.units import BOLTZMANN_EV_PER_K, FEMTOSECOND, GIGAPASCAL, PICOSECOND

SERIES_ORDER = 7
"""Terms of the Taylor series of (eˣ − 1)/x: at a strain of 0.05 in half a step, far beyond physics, it is right to 1e-14."""


@dataclass(frozen=True, slots=True)
class Barostat:
    """Coefficients of one time step at constant pressure.

    The mass of the volume is W = (3N + 3) k_B T τ_b² (Martyna et al.), that of an element of the strain rate W_g = W / 3: the
    volume answers with the same relaxation time τ_b whatever the kind. τ_b is that of a gas: the volume of a solid of bulk
    modulus B oscillates faster, with a period of 2π τ_b √((N + 1) k_B T / (3 B V)), which a time step must resolve.

    Attributes:
        kind: isotropic: ν is a multiple of 1. anisotropic: ν is diagonal; a cell whose vectors lie along x, y and z keeps its
            right angles, any other is stretched along x, y and z, which changes its angles. flexible: ν is symmetric.
        langevin: the thermostat of the atoms.
        system: (A,) which walker an atom belongs to; n_atoms: (B,) atoms of each walker.
        freedom: (B,) float64 N_f = 3N.
        pressures: (B,) float64 P, eV/Å³.
        inverse_mass: (B, 1, 1) float64 1/W_g, 1/(amu·Å²).
        damping: exp(−γ_c Δt).
        noise: (B, 1, 1) float64 √((1 − damping²) k_B T / W_g), strain rate units.
        masses: (A, 1) float64, amu.
        unit: (3, 3) float64 unit matrix.
    """

    kind: Literal["isotropic", "anisotropic", "flexible"]
    langevin: Langevin
    system: Tensor
    n_atoms: Tensor
    freedom: Tensor
    pressures: Tensor
    inverse_mass: Tensor
    damping: float
    noise: Tensor
    masses: Tensor
    unit: Tensor

    @classmethod
    def make(
        cls,
        settings: BarostatSettings,
        *,
        timestep: float,
        temperatures_K: Tensor,
        pressures_MPa: Tensor,
        n_atoms: Tensor,
        langevin: Langevin,
        system: Tensor,
    ) -> "Barostat":
        """Coefficients for walkers of ``n_atoms`` (B,) at ``temperatures_K`` (B,) and ``pressures_MPa`` (B,).

        Args:
            settings: kind, relaxation time and friction; friction 0 leaves the cell without a thermostat.
            timestep: Δt, internal time units, the same as in ``langevin``.
            temperatures_K, pressures_MPa: per walker.
            n_atoms: atoms per walker.
            langevin: thermostat of the atoms.
            system: (A,) which walker an atom belongs to.
        """
        freedom = 3.0 * n_atoms.to(torch.float64)
        thermal = BOLTZMANN_EV_PER_K * temperatures_K.to(torch.float64)
        inverse = 3.0 / ((freedom + 3.0) * thermal * (settings.time_fs * FEMTOSECOND) ** 2)
        damping = math.exp(-settings.friction_per_ps / PICOSECOND * timestep)
        noise = torch.sqrt((1.0 - damping**2) * thermal * inverse)
        return cls(
            kind=settings.kind,
            langevin=langevin,
            system=system,
            n_atoms=n_atoms,
            freedom=freedom,
            pressures=pressures_MPa.to(torch.float64) * (1e-3 * GIGAPASCAL),
            inverse_mass=inverse.view(-1, 1, 1),
            damping=damping,
            noise=noise.view(-1, 1, 1),
            masses=1.0 / langevin.inverse_mass,
            unit=torch.eye(3, dtype=torch.float64, device=system.device),
        )

    def first_half(
        self,
        positions: Tensor,
        velocities: Tensor,
        cells: Tensor,
        strain_rate: Tensor,
        forces: Tensor,
        virials: Tensor,
        noise: Tensor,
        cell_noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """B_g B A O A: positions (A, 3), velocities (A, 3), cells (B, 3, 3) and strain rates (B, 3, 3) before the next forces.

        Args:
            positions, velocities, cells, strain_rate: where the walkers are.
            forces: (A, 3) at ``positions``; virials: (B, 3, 3) W = −∂E/∂ε, eV.
            noise: (A, 3) standard normal numbers; cell_noise: (B, 3, 3), all nine of them independent.
        """
        strain_rate = self._kick_cell(strain_rate, velocities, cells, virials)
        velocities = self._kick(velocities, strain_rate, forces)
        positions, cells = self._drift(positions, velocities, cells, strain_rate)
        velocities = self.langevin.damping * velocities + self.langevin.noise * noise
        strain_rate = self.damping * strain_rate + self.noise * self._allowed(cell_noise)
        positions, cells = self._drift(positions, velocities, cells, strain_rate)
        return positions, velocities, cells, strain_rate

    def second_half(
        self, velocities: Tensor, cells: Tensor, strain_rate: Tensor, forces: Tensor, virials: Tensor
    ) -> tuple[Tensor, Tensor]:
        """B B_g: velocities and strain rates with the forces and virials at the new positions."""
        velocities = self._kick(velocities, strain_rate, forces)
        return velocities, self._kick_cell(strain_rate, velocities, cells, virials)

    def _kick_cell(self, strain_rate: Tensor, velocities: Tensor, cells: Tensor, virials: Tensor) -> Tensor:
        """B_g: half a step of ν by the difference of inner and outer pressure."""
        each = (self.masses * velocities).unsqueeze(2) * velocities.unsqueeze(1)
        # adds in the same order every time, which index_add on a GPU does not; unsafe: lengths are not checked on the host
        kinetic = torch.segment_reduce(each, "sum", lengths=self.n_atoms, axis=0, unsafe=True)
        scalar = _trace(kinetic) / self.freedom - self.pressures * cell_volumes(cells)
        push = self._allowed(virials + kinetic) + scalar.view(-1, 1, 1) * self.unit
        return strain_rate + (0.5 * self.langevin.timestep) * self.inverse_mass * push

    def _kick(self, velocities: Tensor, strain_rate: Tensor, forces: Tensor) -> Tensor:
        """B: half a step of v̇ = F/m − v (ν + tr ν / N_f)."""
        half = 0.5 * self.langevin.timestep
        rate = strain_rate + (_trace(strain_rate) / self.freedom).view(-1, 1, 1) * self.unit
        growth, mean = self._exponential(-half * rate)
        push = half * self.langevin.inverse_mass * forces
        return self._turn(velocities, growth) + self._turn(push, mean)

    def _drift(
        self, positions: Tensor, velocities: Tensor, cells: Tensor, strain_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A: half a step of ṙ = v + r ν, ḣ = h ν."""
        half = 0.5 * self.langevin.timestep
        growth, mean = self._exponential(half * strain_rate)
        positions = self._turn(positions, growth) + self._turn(half * velocities, mean)
        return positions, torch.bmm(cells, growth)

    def _turn(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """(A, 3) vectors times the (B, 3, 3) matrix of their walker."""
        each = matrices.flatten(1).index_select(0, self.system).view(-1, 3, 3)
        return torch.matmul(vectors.unsqueeze(1), each).squeeze(1)

    def _exponential(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """eˣ and (eˣ − 1)/x of (B, 3, 3) by a Taylor series: eigenvalues would make the device wait."""
        unit = self.unit.expand_as(x)
        mean = unit + x / SERIES_ORDER
        for k in range(SERIES_ORDER - 1, 1, -1):
            mean = torch.baddbmm(unit, x, mean, alpha=1.0 / k)
        return torch.baddbmm(unit, x, mean), mean

    def _allowed(self, x: Tensor) -> Tensor:
        """The part of (B, 3, 3) matrices that this kind of cell can follow: an orthogonal projection."""
        if self.kind == "isotropic":
            return (_trace(x) / 3.0).view(-1, 1, 1) * self.unit
        if self.kind == "anisotropic":
            return x * self.unit
        return 0.5 * (x + x.transpose(1, 2))


def _trace(x: Tensor) -> Tensor:
    """(B,) traces of (B, 3, 3) matrices."""
    return x.diagonal(dim1=1, dim2=2).sum(dim=1)
