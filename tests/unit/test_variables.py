"""Collective variables against ASE."""

import numpy as np
import pytest
from ase import Atoms

from pipeline.analysis.variables import bounds, evaluate, evaluate_all, periodic
from pipeline.frames import Frame
from pipeline.settings.variables import DihedralVariable, DistanceVariable

NO_CELLS = np.zeros((1, 3, 3))
PHI = DihedralVariable(name="phi", atoms=(3, 0, 2, 1))
REACH = DistanceVariable(name="d", atoms=(0, 4), range_A=(1.0, 4.0))


def positions() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 5, 3))


def test_dihedrals_are_those_of_ase() -> None:
    expected = [Atoms("H5", positions=frame).get_dihedral(*PHI.atoms) for frame in positions()]
    difference = (evaluate(PHI, positions(), NO_CELLS) - np.array(expected) + 180.0) % 360.0 - 180.0
    assert np.abs(difference).max() < 1e-9


def test_distances_are_those_of_ase() -> None:
    expected = [Atoms("H5", positions=frame).get_distance(*REACH.atoms) for frame in positions()]
    np.testing.assert_allclose(evaluate(REACH, positions(), NO_CELLS), expected, rtol=1e-12)


@pytest.mark.parametrize(("height", "angle"), [(0.0, 0.0), (1.0, 90.0), (-1.0, -90.0)])
def test_the_sign_of_a_dihedral_follows_the_convention(height: float, angle: float) -> None:
    # looking from b to c, clockwise from a to d is positive
    straight = DihedralVariable(name="x", atoms=(0, 1, 2, 3))
    points = np.array([[[0, 1.0, 0], [0, 0, 0], [1.0, 0, 0], [1.0, float(height == 0), height]]])
    expected = Atoms("H4", positions=points[0]).get_dihedral(0, 1, 2, 3)
    assert evaluate(straight, points, NO_CELLS)[0] == pytest.approx((expected + 180) % 360 - 180, abs=1e-9)
    assert abs(evaluate(straight, points, NO_CELLS)[0]) == pytest.approx(abs(angle), abs=1e-9)


def test_a_flat_dihedral_is_minus_180_never_180() -> None:
    straight = DihedralVariable(name="x", atoms=(0, 1, 2, 3))
    points = np.array([[[0, 1.0, 0], [0, 0, 0], [1.0, 0, 0], [1.0, -1.0, 0]]])
    assert evaluate(straight, points, NO_CELLS)[0] == -180.0


def test_all_variables_of_frames_are_columns() -> None:
    frames = [
        Frame(numbers=np.ones(5, dtype=np.int64), positions=p, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), system="x")
        for p in positions()
    ]
    values = evaluate_all((PHI, REACH), frames)
    np.testing.assert_array_equal(values[:, 0], evaluate(PHI, positions(), NO_CELLS))
    np.testing.assert_array_equal(values[:, 1], evaluate(REACH, positions(), NO_CELLS))
    assert evaluate_all((PHI, REACH), []).shape == (0, 2)


def test_bounds_are_a_turn_or_the_range() -> None:
    assert bounds(PHI) == (-180.0, 180.0)
    assert bounds(REACH) == (1.0, 4.0)
    assert periodic(PHI)
    assert not periodic(REACH)
