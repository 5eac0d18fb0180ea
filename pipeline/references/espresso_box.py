"""Cells for structures that are not periodic in all directions: a plane-wave program knows no others.

A molecule gets a right-angled box, twice as long as its electrons reach, so that the Martyna-Tuckerman correction leaves no
trace of its images (J. Chem. Phys. 110, 2810 (1999)). The sides grow in steps, and the total energy jumps a little with them
(plane waves fill a box, not a molecule): where that matters, give the molecule a cell that is large enough for all its shapes,
and this cell is taken.
"""

import numpy as np
from ase.geometry import complete_cell

from pipeline.frames import FloatArray, Frame

TAIL_A = 1.75
"""How far the electrons of an atom reach beyond it, Å: water's forces then change by less than 2% with larger boxes."""
VACUUM_A = 10.0
"""Between a slab or wire and its image, Å."""
STEP_A = 2.0
"""Sides are multiples of this, Å."""


def placed(frame: Frame) -> tuple[FloatArray, FloatArray]:
    """Cell and positions for a plane-wave program; functions of the frame alone.

    Three periodic directions: the frame's own. None: a box as above, or the frame's right-angled cell where that is at least as
    large, with the centroid of the atoms in its middle, so that forces without a net force are the gradient of the energy. One
    or two: missing lattice vectors are completed at right angles with vacuum; those that are given are taken as they are.

    Returns:
        (3, 3) Å, rows are lattice vectors; (N, 3) Å.
    """
    if frame.pbc.all():
        return frame.cell, frame.positions
    extent = np.ptp(frame.positions, axis=0)
    if not frame.pbc.any():
        needed, given = 2 * (extent + 2 * TAIL_A), np.diag(frame.cell)
        fits = np.array_equal(frame.cell, np.diag(given)) and bool((given >= needed).all())
        sides = given if fits else _stepped(needed)
        return np.diag(sides), frame.positions - frame.positions.mean(axis=0) + sides / 2
    missing = np.linalg.norm(frame.cell, axis=1) == 0
    cell = np.asarray(complete_cell(frame.cell), dtype=np.float64)
    for axis in np.flatnonzero(missing):
        direction = cell[axis] / np.linalg.norm(cell[axis])
        along = frame.positions @ direction
        cell[axis] = direction * float(_stepped(np.ptp(along) + VACUUM_A))
    return cell, frame.positions


def _stepped(length: FloatArray | float) -> FloatArray:
    """The next multiple of the step, or the length where it is one up to rounding."""
    return np.asarray(np.ceil(np.asarray(length) / STEP_A - 1e-9) * STEP_A, dtype=np.float64)
