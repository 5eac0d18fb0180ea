"""Coverage in its known limits, and against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.coverage import LEVELS, Coverage, cells_of, cumulative_coverage, mask_of, value_of_mask
from pipeline.analysis.variables import evaluate_all
from pipeline.frames import Frame
from pipeline.settings.variables import DihedralVariable, DistanceVariable, VolumeVariable

PHI = DihedralVariable(name="phi", atoms=(0, 1, 2, 3))
PSI = DihedralVariable(name="psi", atoms=(1, 2, 3, 4))
REACH = DistanceVariable(name="d", atoms=(0, 1), range_A=(1.0, 3.0))


def by_hand(points: np.ndarray, dimension: int) -> float:
    """The definition, with sets."""
    shares = []
    for level in range(1, LEVELS + 1):
        cells = {tuple(np.floor((row + 180.0) / 360.0 * 2**level).astype(int) % 2**level) for row in points}
        shares.append(len(cells) / 2 ** (dimension * level))
    return float(np.mean(shares))


@pytest.mark.parametrize("dimension", [1, 2])
def test_one_point_covers_one_cell_of_every_level(dimension: int) -> None:
    coverage = Coverage.of((PHI, PSI)[:dimension]).with_points(np.zeros((1, dimension)))
    assert coverage.value == pytest.approx(np.mean([2.0 ** (-dimension * level) for level in range(1, 6)]))


def test_a_uniform_grid_covers_everything() -> None:
    ticks = -180 + (np.arange(32) + 0.5) * 360 / 32
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    assert Coverage.of((PHI, PSI)).with_points(plane).value == 1.0
    assert Coverage.of((PHI,)).with_points(ticks).value == 1.0


def test_nothing_covers_nothing() -> None:
    assert Coverage.of((PHI, PSI)).value == 0.0
    assert Coverage.of((PHI, PSI)).with_points(np.zeros((0, 2))).value == 0.0


@given(seed=st.integers(0, 1000), n=st.integers(1, 300), dimension=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_it_is_what_counting_by_hand_gives(seed: int, n: int, dimension: int) -> None:
    points = np.random.default_rng(seed).uniform(-180, 180, size=(n, dimension))
    variables = (PHI, PSI, DihedralVariable(name="chi", atoms=(0, 2, 3, 4)))[:dimension]
    assert Coverage.of(variables).with_points(points).value == pytest.approx(by_hand(points, dimension))


@given(seed=st.integers(0, 1000), portions=st.integers(1, 5), dimension=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_cells_and_masks_of_portions_say_what_the_grid_says(seed: int, portions: int, dimension: int) -> None:
    variables = (PHI, REACH, PSI)[:dimension]
    rng = np.random.default_rng(seed)
    coverage, mask = Coverage.of(variables), 0
    again = coverage
    for _ in range(portions):
        # some values are out of the range of the distance, none of them is counted
        points = np.stack([rng.normal(scale=100, size=20), rng.uniform(0.5, 3.5, 20), rng.normal(scale=9, size=20)], 1)
        cells = cells_of(variables, points[:, :dimension])
        assert list(cells) == sorted(set(cells))
        coverage, again = coverage.with_points(points[:, :dimension]), again.with_cells(cells)
        mask |= mask_of(cells)
    np.testing.assert_array_equal(again.visited, coverage.visited)
    assert mask == mask_of(coverage.cells)
    assert value_of_mask(mask, dimension) == coverage.value


def test_masks_in_their_limits() -> None:
    assert value_of_mask(0, 2) == 0.0
    assert value_of_mask(2**1024 - 1, 2) == 1.0
    assert cells_of((PHI, PSI), np.zeros((0, 2))) == ()
    # the last variable runs fastest, and a cell begins at its lower end
    assert cells_of((PHI, PSI), [[-180.0, -180.0], [-180.0, -168.75], [-168.75, -180.0], [0.0, 0.0]]) == (0, 1, 32, 528)
    with pytest.raises(OverflowError):
        value_of_mask(2**32, 1)


def test_order_and_portions_do_not_matter_and_it_never_shrinks() -> None:
    points = np.random.default_rng(0).normal(scale=60, size=(200, 2))
    portions = np.array_split(points, 7)
    values = cumulative_coverage((PHI, PSI), portions)
    assert values == sorted(values)
    assert values[-1] == Coverage.of((PHI, PSI)).with_points(points[::-1]).value


def test_angles_wrap() -> None:
    one = Coverage.of((PHI, PSI)).with_points([[-180.0, 10.0]])
    assert one.with_points([[180.0, 370.0], [540.0, -350.0]]).value == one.value


def test_distances_outside_their_range_and_broken_values_are_not_counted() -> None:
    empty = Coverage.of((REACH,))
    assert empty.with_points([[0.5], [3.5], [np.nan], [np.inf]]).value == 0.0
    assert empty.with_points([[1.0], [3.0]]).value > 0.0


def test_volumes_of_cells_cover_a_line() -> None:
    volume = VolumeVariable(name="V", range_A3=(850.0, 1650.0))

    def cell(size: float) -> Frame:
        lattice = np.cbrt(size) * (np.eye(3) + 0.2 * np.eye(3, k=1))  # sheared: the volume is the same
        return Frame(
            numbers=np.array([13]), positions=np.zeros((1, 3)), cell=lattice, pbc=np.ones(3, dtype=np.bool_), system="x"
        )

    centres = 850.0 + (np.arange(32) + 0.5) * 25.0
    line = evaluate_all((volume,), [cell(size) for size in centres])
    np.testing.assert_allclose(line[:, 0], centres)
    assert Coverage.of((volume,)).with_points(line).value == 1.0
    # the lower half: one of two cells at every level
    assert Coverage.of((volume,)).with_points(line[:16]).value == pytest.approx(0.5)
    assert Coverage.of((volume,)).with_points(evaluate_all((volume,), [cell(800.0), cell(1700.0)])).value == 0.0


def test_structures_of_one_system_may_differ_in_size() -> None:
    def chain(reach: float, atoms: int) -> Frame:
        positions = np.arange(atoms)[:, None] * np.array([reach, 0.0, 0.0])
        return Frame(
            numbers=np.full(atoms, 6), positions=positions, cell=np.eye(3), pbc=np.zeros(3, dtype=np.bool_), system="x"
        )

    frames = [chain(1.1, 2), chain(1.7, 4), chain(2.3, 2), chain(2.9, 3)]
    np.testing.assert_allclose(evaluate_all((REACH,), frames)[:, 0], [1.1, 1.7, 2.3, 2.9])
