"""Sanity of a label before it enters the data set. Shapes: N atoms."""

import numpy as np

from pipeline.frames import FloatArray
from pipeline.records import Cause, Limits
from pipeline.references.base import CalculationFailed, Properties

ASYMMETRY_EV_PER_A3 = 1e-5
"""Stress matrices may differ this much from their transpose: what programs round in their output."""
RELATIVE_ASYMMETRY = 1e-3
"""The same, as a share of the largest component."""


def check_label(properties: Properties, n_atoms: int, limits: Limits) -> None:
    """Refuse what is no label.

    Raises:
        CalculationFailed: BAD_OUTPUT for wrong shapes and numbers that are not finite, IMPLAUSIBLE for the rest; final for a
            net force alone, the noise of a grid, which no measure changes.
    """
    _check_numbers(properties, n_atoms)
    forces = properties.forces
    largest = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
    if largest > limits.max_force_eV_per_A:
        raise CalculationFailed(
            Cause.IMPLAUSIBLE,
            f"a force of {largest:.4g} eV/Å exceeds labels.max_force_eV_per_A ({limits.max_force_eV_per_A:g})",
        )
    if limits.energy_eV is not None:
        low, high = limits.energy_eV
        if not low <= properties.energy <= high:
            raise CalculationFailed(
                Cause.IMPLAUSIBLE,
                f"an energy of {properties.energy:.4f} eV is outside of {low:.4f} to {high:.4f} eV, where the earlier labels "
                f"of this composition let one expect it (labels.energy_window_eV_per_atom)",
            )
    # last: it is final only where it is all that is wrong
    net, allowed = float(np.linalg.norm(forces.sum(axis=0))) / max(n_atoms, 1) ** 0.5, limits.max_net_force_eV_per_A
    if allowed is not None and net > allowed:
        raise CalculationFailed(
            Cause.IMPLAUSIBLE,
            f"forces sum to {net:.3g} eV/Å over the square root of the number of atoms, more than "
            f"labels.max_net_force_eV_per_A ({allowed:g})",
            "Mostly noise of the grid: raise the cutoffs of labels.reference, or choose another xc_grid of CP2K; set the "
            "limit to null where the reference has an external field.",
            final=True,
        )


def voigt(matrix: FloatArray) -> FloatArray:
    """The six components xx, yy, zz, yz, xz, xy of a symmetric (3, 3) stress in eV/Å³.

    Raises:
        CalculationFailed: BAD_OUTPUT, it is not symmetric or not finite.
    """
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise CalculationFailed(Cause.BAD_OUTPUT, f"the stress is no matrix of numbers: {matrix.tolist()}")
    difference = float(np.abs(matrix - matrix.T).max())
    if difference > ASYMMETRY_EV_PER_A3 + RELATIVE_ASYMMETRY * float(np.abs(matrix).max()):
        raise CalculationFailed(Cause.BAD_OUTPUT, f"the stress is not symmetric: it differs by {difference:.3g} eV/Å³")
    symmetric = (matrix + matrix.T) / 2
    return np.array([symmetric[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))])


def _check_numbers(properties: Properties, n_atoms: int) -> None:
    """Shapes, and whether all is finite.

    Raises:
        CalculationFailed: BAD_OUTPUT.
    """
    arrays = {
        "energy": (np.array(properties.energy), ()),
        "forces": (properties.forces, (n_atoms, 3)),
        "stress": (properties.stress, (6,)),
        "charges": (properties.charges, (n_atoms,)),
        "magnetic moments": (properties.magnetic_moments, (n_atoms,)),
    }
    for name, (array, shape) in arrays.items():
        if array is None:
            continue
        if array.shape != shape:
            raise CalculationFailed(
                Cause.BAD_OUTPUT, f"the reference gave {name} of shape {array.shape} for {n_atoms} atoms"
            )
        if not np.isfinite(array).all():
            raise CalculationFailed(Cause.BAD_OUTPUT, f"the reference gave NaN or infinity as {name}")
