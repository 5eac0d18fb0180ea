"""Monte Carlo at constant pressure, in numpy: nothing of it is shared with the dynamics it judges.

Shapes: R replicas of N atoms in cubic cells, one Markov chain each. Units: Å, eV, K, eV/Å³.
"""

import numpy as np

from pipeline.units import BOLTZMANN_EV_PER_K


def switched_pairs(square, *, epsilon, sigma, onset, cutoff):
    """Lennard-Jones pair energies times a switch from ``onset`` to ``cutoff``, of squared distances."""
    sixth = (sigma**2 / square) ** 3
    ramp = (cutoff**2 - square) ** 2 * (cutoff**2 + 2.0 * square - 3.0 * onset**2) / (cutoff**2 - onset**2) ** 3
    return (
        4.0 * epsilon * (sixth**2 - sixth) * np.where(square < onset**2, 1.0, np.where(square < cutoff**2, ramp, 0.0))
    )


class Metropolis:
    """Single-atom moves and moves of ln V (Frenkel and Smit, Understanding Molecular Simulation, ch. 5.4).

    The weight of a volume move is exp(−(ΔE + P ΔV)/k_B T + (N + 1) Δln V). Images: the nearest one, so that the cutoff must be
    below half the edge.

    Args:
        scaled: (N, 3) positions in units of the edge.
        volume: of all replicas at the start.
        pressures: (R,).
        temperature_K: of all.
        pair: energy of squared distances.
        seed: of the random numbers.
    """

    STEP_A, STEP_LN_VOLUME = 0.35, 0.02

    def __init__(self, scaled, volume, pressures, temperature_K, pair, seed):
        count = len(pressures)
        self.scaled = np.repeat(scaled[None], count, axis=0)
        self.volume, self.pressures = np.full(count, float(volume)), np.asarray(pressures)
        self.thermal, self.pair = BOLTZMANN_EV_PER_K * temperature_K, pair
        self.random = np.random.default_rng(seed)
        self.upper = np.triu_indices(len(scaled), 1)

    def energies(self, volume):
        """(R,) energies at these volumes."""
        first, second = self.upper
        apart = self.scaled[:, first] - self.scaled[:, second]
        apart -= np.round(apart)
        return self.pair(np.square(apart).sum(axis=2) * volume[:, None] ** (2 / 3)).sum(axis=1)

    def sweep(self):
        """One trial move of every atom, then one of the volume."""
        for atom in range(self.scaled.shape[1]):
            self._move_atom(atom)
        change = self.STEP_LN_VOLUME * self.random.normal(size=len(self.volume))
        volume = self.volume * np.exp(change)
        work = self.energies(volume) - self.energies(self.volume) + self.pressures * (volume - self.volume)
        weight = -work / self.thermal + (self.scaled.shape[1] + 1) * change
        self.volume = np.where(self._accepted(weight), volume, self.volume)

    def _move_atom(self, atom):
        edge = np.cbrt(self.volume)[:, None]
        here = self.scaled[:, atom]
        there = here + self.STEP_A * self.random.uniform(-0.5, 0.5, here.shape) / edge
        others = np.delete(self.scaled, atom, axis=1)

        def energy(place):
            apart = others - place[:, None]
            apart -= np.round(apart)
            return self.pair(np.square(apart * edge[:, None]).sum(axis=2)).sum(axis=1)

        taken = self._accepted(-(energy(there) - energy(here)) / self.thermal)
        self.scaled[:, atom] = np.where(taken[:, None], there, here)

    def _accepted(self, log_weight):
        return np.log(self.random.uniform(size=len(log_weight))) < log_weight
