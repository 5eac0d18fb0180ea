"""Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews 2013, Appl. Math. Res. eXpress 34).

Shapes: A atoms. Units: Å, eV, amu; time Å·√(amu/eV).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.units import BOLTZMANN_EV_PER_K

_VELOCITY_BLOCK = 2**63
"""Second half of the key of the initial velocities."""


@dataclass(frozen=True, slots=True)
class Langevin:
    """Coefficients of one time step for every atom.

    Attributes:
        timestep: Δt, internal time units.
        inverse_mass: (A, 1) float64, 1/amu.
        damping: exp(−γΔt).
        noise: (A, 1) float64 √((1 − damping²) k_B T / m), velocity units.
    """

    timestep: float
    inverse_mass: Tensor
    damping: float
    noise: Tensor

    @classmethod
    def make(cls, *, timestep: float, friction: float, masses: Tensor, temperatures_K: Tensor) -> "Langevin":
        """Coefficients for atoms of ``masses`` (A,) amu at ``temperatures_K`` (A,); ``friction`` γ per internal time unit.

        ``friction`` 0 is velocity Verlet: constant energy.
        """
        damping = math.exp(-friction * timestep)
        inverse = (1.0 / masses).unsqueeze(1)
        width = torch.sqrt((1.0 - damping**2) * BOLTZMANN_EV_PER_K * temperatures_K.unsqueeze(1) * inverse)
        return cls(timestep, inverse, damping, width)

    def first_half(self, positions: Tensor, velocities: Tensor, forces: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
        """B A O A: half kick, half drift, thermostat with standard normal ``xi`` (A, 3), half drift."""
        velocities = velocities + (0.5 * self.timestep) * self.inverse_mass * forces
        positions = positions + (0.5 * self.timestep) * velocities
        velocities = self.damping * velocities + self.noise * xi
        positions = positions + (0.5 * self.timestep) * velocities
        return positions, velocities

    def second_half(self, velocities: Tensor, forces: Tensor) -> Tensor:
        """B: half kick with the forces at the new positions."""
        return velocities + (0.5 * self.timestep) * self.inverse_mass * forces


def thermal_velocities(seed: int, masses: Tensor, temperature_K: float) -> Tensor:
    """(N, 3) Maxwell-Boltzmann velocities, drawn from the walker's seed."""
    key = np.array([seed, _VELOCITY_BLOCK], dtype=np.uint64)
    xi = torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).standard_normal((len(masses), 3)))
    return torch.sqrt(BOLTZMANN_EV_PER_K * temperature_K / masses).unsqueeze(1) * xi
