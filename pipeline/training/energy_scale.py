"""Where the network's energies start: per-element offsets and the energy unit, from the labels.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: shift from ridge regression on the composition, in float64.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.frames import FloatArray
from pipeline.records import Label

RIDGE = 1e-3
"""Penalty on differences of the offsets from the mean energy per atom: decides them when there is one composition only."""

LENGTH_A = 0.25
"""Energy unit = force RMS × this length, Å: an untrained network's forces then have about the size of the reference's."""


def composition_offsets(labels: Sequence[Label], elements: Sequence[int]) -> FloatArray:
    """(Z,) offsets E⁰_Z in eV: ridge regression of energies on element counts around the mean energy per atom.

    With a single composition every element gets the mean energy per atom.
    """
    counts = np.array([[np.count_nonzero(label.frame.numbers == z) for z in elements] for label in labels], dtype=float)
    energies = np.array([label.energy for label in labels])
    per_atom = energies.sum() / counts.sum()
    residual = energies - counts.sum(axis=1) * per_atom
    normal = counts.T @ counts + RIDGE * len(labels) * np.eye(len(elements))
    offsets: FloatArray = per_atom + np.linalg.solve(normal, counts.T @ residual)
    return offsets


def energy_unit(labels: Sequence[Label]) -> float:
    """The energy unit f in eV of the network's output."""
    square = np.concatenate([np.square(label.forces).ravel() for label in labels]).mean()
    return max(float(np.sqrt(square)) * LENGTH_A, 1e-3)
