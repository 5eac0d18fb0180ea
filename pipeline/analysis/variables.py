"""Collective variables of many structures at once.

Shapes: n structures, N atoms. Units: Å, degrees.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.frames import FloatArray, Frame
from pipeline.settings.variables import DihedralVariable, DistanceVariable, Variable, VolumeVariable

FULL_TURN = 360.0


def evaluate(variable: Variable, positions: FloatArray, cells: FloatArray) -> FloatArray:
    """(n,) values of one variable from (n, N, 3) unwrapped positions and (n, 3, 3) cells: degrees in [−180, 180), Å or Å³."""
    match variable:
        case DihedralVariable():
            return dihedral(*(positions[:, atom] for atom in variable.atoms))
        case DistanceVariable():
            first, second = variable.atoms
            return np.asarray(np.linalg.norm(positions[:, second] - positions[:, first], axis=1))
        case VolumeVariable():
            return np.asarray(np.abs(np.linalg.det(cells)))


def dihedral(a: FloatArray, b: FloatArray, c: FloatArray, d: FloatArray) -> FloatArray:
    """(n,) dihedral angles in degrees, [−180, 180), IUPAC sign, from four (n, 3) positions."""
    axis = c - b
    axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    before, after = a - b, d - c
    before = before - np.sum(before * axis, axis=1, keepdims=True) * axis
    after = after - np.sum(after * axis, axis=1, keepdims=True) * axis
    x = np.sum(before * after, axis=1)
    y = np.sum(np.cross(axis, before) * after, axis=1)
    angle = np.degrees(np.arctan2(y, x))
    return np.asarray(np.where(angle >= FULL_TURN / 2, angle - FULL_TURN, angle))


def evaluate_all(variables: Sequence[Variable], frames: Sequence[Frame]) -> FloatArray:
    """(n, number of variables) values of every variable; structures may differ in size."""
    values = np.zeros((len(frames), len(variables)))
    sizes = np.array([len(frame) for frame in frames])
    for size in np.unique(sizes):
        rows = np.nonzero(sizes == size)[0].tolist()
        positions = np.stack([frames[row].positions for row in rows])
        cells = np.stack([frames[row].cell for row in rows])
        for column, variable in enumerate(variables):
            values[rows, column] = evaluate(variable, positions, cells)
    return values


def bounds(variable: Variable) -> tuple[float, float]:
    """The range coverage is measured over: a full turn in degrees, or the variable's own in Å or Å³."""
    match variable:
        case DihedralVariable():
            return -FULL_TURN / 2, FULL_TURN / 2
        case DistanceVariable():
            return variable.range_A
        case VolumeVariable():
            return variable.range_A3


def periodic(variable: Variable) -> bool:
    """Whether both ends of the range are the same point."""
    return isinstance(variable, DihedralVariable)
