"""The stop checks on tensors, against plain loops over atoms."""

import math

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from engine import crystal, ethanol, slab, water, zoo
from test_walkers import OPEN

from pipeline.batching import make_batch
from pipeline.dynamics.stops import (
    BOND_BAND,
    PRECEDENCE,
    BondGraph,
    Bonds,
    StartCells,
    StopChecks,
    bonds,
    heights,
    start_bonds,
)
from pipeline.frames import Frame
from pipeline.records import StopReason

CUTOFF_A = 4.0
FRACTION = 1.3


def bonds_by_ase(frame):
    i, j, d = neighbor_list("ijd", frame.to_atoms(), CUTOFF_A)
    radii = covalent_radii[frame.numbers]
    near = (d < FRACTION * (radii[i] + radii[j])) & (i <= j)
    return sorted(set(zip(i[near].tolist(), j[near].tolist(), strict=True)))


def moved(frame, displacement):
    return Frame(
        numbers=frame.numbers,
        positions=frame.positions + displacement,
        cell=frame.cell,
        pbc=frame.pbc,
        system=frame.system,
    )


def test_bonds_are_those_that_ase_finds():
    frames = [f for seed in range(3) for f in zoo(seed)]
    found = bonds(make_batch(frames, CUTOFF_A), FRACTION, CUTOFF_A)
    assert [[tuple(pair) for pair in graph.tolist()] for graph in found] == [bonds_by_ase(f) for f in frames]
    apart = moved(water(), np.array([[0, 0, 0], [9.0, 0, 0], [0, 9.0, 0]]))
    assert [len(graph) for graph in bonds(make_batch([apart, water()], CUTOFF_A), FRACTION, CUTOFF_A)] == [0, 2]


def test_a_graph_has_changed_where_a_bond_has_broken_or_a_new_one_has_formed():
    rng, outcomes = np.random.default_rng(0), set()
    for spread in (0.01, 0.2, 0.4):
        starts = [ethanol(1), slab(1), water(1), crystal(1), ethanol(2)]
        later = [moved(f, rng.normal(scale=spread, size=(len(f), 3))) for f in starts]
        graphs = bonds(make_batch(starts, CUTOFF_A), FRACTION, CUTOFF_A)
        graph = BondGraph.of([Bonds(pairs, pairs) for pairs in graphs], np.array([len(f) for f in starts]))
        found = graph.changed(make_batch(later, CUTOFF_A + 1.0), FRACTION, CUTOFF_A)
        expected = [bonds_by_ase(a) != bonds_by_ase(b) for a, b in zip(starts, later, strict=True)]
        assert found.tolist() == expected
        outcomes.update(expected)
    assert outcomes == {False, True}


def test_without_any_bond_every_new_one_is_a_change():
    nothing = [np.zeros((0, 2), dtype=np.int64)] * 2
    apart = moved(water(), np.array([[0, 0, 0], [9.0, 0, 0], [0, 9.0, 0]]))
    graph = BondGraph.of([Bonds(pairs, pairs) for pairs in nothing], np.array([3, 3]))
    assert graph.changed(make_batch([apart, water()], CUTOFF_A), FRACTION, CUTOFF_A).tolist() == [False, True]


def pulled(length):
    """Water with one O-H bond of this length; the other is whole."""
    frame = water()
    bond = frame.positions[1] - frame.positions[0]
    frame.positions[1] = frame.positions[0] + bond * (length / np.linalg.norm(bond))
    return frame


@pytest.mark.parametrize("at_start", [0.97, 1.03])
def test_a_pair_that_starts_at_the_threshold_is_watched_by_neither_side(at_start):
    threshold = FRACTION * covalent_radii[[1, 8]].sum()
    wide = (1 + BOND_BAND) * CUTOFF_A
    graph = BondGraph.of(
        start_bonds(make_batch([pulled(at_start * threshold)], wide), FRACTION, CUTOFF_A), np.array([3])
    )
    for later in (0.8, 0.97, 1.03, 1.3):
        batch = make_batch([pulled(later * threshold)], CUTOFF_A)
        assert not graph.changed(batch, FRACTION, CUTOFF_A).item()
    apart = moved(water(), np.array([[0, 0, 0], [0, 0, 0], [9.0, 0, 0]]))  # the other bond is
    assert graph.changed(make_batch([apart], CUTOFF_A), FRACTION, CUTOFF_A).item()


def test_pairs_well_off_the_threshold_are_watched_to_the_threshold_itself():
    threshold = FRACTION * covalent_radii[[1, 8]].sum()
    for at_start, whole in ((0.9, True), (1.1, False)):
        starts = make_batch([pulled(at_start * threshold)], (1 + BOND_BAND) * CUTOFF_A)
        graph = BondGraph.of(start_bonds(starts, FRACTION, CUTOFF_A), np.array([3]))
        for later in (0.99, 1.01):
            batch = make_batch([pulled(later * threshold)], CUTOFF_A)
            assert graph.changed(batch, FRACTION, CUTOFF_A).item() is ((later < 1) is not whole)


def test_heights_are_volume_over_face():
    rng = np.random.default_rng(4)
    cells = rng.normal(size=(20, 3, 3)) + 3 * np.eye(3)
    volumes, found = heights(torch.from_numpy(cells))
    np.testing.assert_allclose(volumes, np.abs(np.linalg.det(cells)), rtol=1e-10)
    for cell, height in zip(cells, found.numpy(), strict=True):
        faces = [np.linalg.norm(np.cross(cell[(k + 1) % 3], cell[(k + 2) % 3])) for k in range(3)]
        np.testing.assert_allclose(height, abs(np.linalg.det(cell)) / faces, rtol=1e-10)


def sheared(angle_deg):
    return np.array(
        [[6.0, 0, 0], [6 * math.cos(math.radians(angle_deg)), 6 * math.sin(math.radians(angle_deg)), 0], [0, 0, 6.0]]
    )


def start_cells(cell, smallest=None, largest=None):
    own = abs(np.linalg.det(cell))
    limits = [[own if smallest is None else smallest, own if largest is None else largest]]
    return StartCells(torch.from_numpy(cell).unsqueeze(0), torch.tensor(limits, dtype=torch.float64))


CUBE = 6.0 * np.eye(3)
CELLS = {
    "as it was": (CUBE, False),
    "a little larger": (1.2 * CUBE, False),
    "twice the volume": (2.1 ** (1 / 3) * CUBE, True),
    "half the volume": (0.49 ** (1 / 3) * CUBE, True),
    "left-handed and well": (CUBE[[1, 0, 2]], False),
    "skewed": (sheared(45.0), False),
    "too skewed": (sheared(29.0), True),
    "too skewed the other way": (sheared(151.0), True),
    "thin": (CUBE * [0.66, 1.2, 1.2], False),
    "too thin": (CUBE * [0.45, 1.4, 1.4], True),
    "not a number": (np.nan * CUBE, True),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_that_have_gone_too_far_stop_their_walker(name):
    cell, gone = CELLS[name]
    frame = Frame.from_atoms(crystal().to_atoms(), system="test")
    start = make_batch([frame], CUTOFF_A)
    batch = start.with_geometry(start.positions, torch.from_numpy(cell).unsqueeze(0))
    checks = StopChecks(OPEN, CUTOFF_A, 100, start_cells(CUBE), None)
    code = checks.codes(
        batch,
        forces=torch.zeros(2, 3, dtype=torch.float64),
        atomic=torch.zeros(2, dtype=torch.float64),
        lost=torch.tensor([False]),
        ages=torch.tensor([3]),
    )
    assert PRECEDENCE[int(code)] is (StopReason.CELL if gone else StopReason.RUNNING)


def test_volumes_are_counted_from_the_smallest_and_largest_start_whatever_a_walker_started_from():
    checks = StopChecks(OPEN, CUTOFF_A, 100, start_cells(CUBE, smallest=150.0, largest=180.0), None)
    for volume, gone in ((76.0, False), (74.0, True), (359.0, False), (361.0, True)):
        cells = (volume ** (1 / 3) * torch.eye(3, dtype=torch.float64)).unsqueeze(0)
        assert checks._cell_gone(cells, checks.cells).item() is gone


def test_a_thin_cell_beyond_the_cutoff_goes_on():
    long = np.diag([40.0, 6.0, 6.0])
    frame = Frame.from_atoms(crystal().to_atoms(), system="test")
    start = make_batch([frame], CUTOFF_A)
    stop = OPEN.model_copy(update={"min_height_fraction": 0.9, "volume_change": 100.0})
    for heights_A, gone in (((40.0, 5.0, 5.0), False), ((40.0, 3.9, 5.0), True), ((40.0, 5.6, 6.0), False)):
        batch = start.with_geometry(
            start.positions, torch.diag(torch.tensor(heights_A, dtype=torch.float64)).unsqueeze(0)
        )
        checks = StopChecks(stop, CUTOFF_A, 100, start_cells(long), None)
        assert checks._cell_gone(batch.cells, checks.cells).item() is gone


def test_the_earliest_reason_names_the_stop_and_an_uncertainty_that_is_no_number_is_one():
    frames = [water(k) for k in range(6)]
    batch = make_batch(frames, CUTOFF_A)
    forces = torch.zeros(18, 3, dtype=torch.float64)
    atomic = torch.zeros(18, dtype=torch.float64)
    forces[3, 1], atomic[4], forces[7, 0], atomic[10] = 2e9, 2e9, torch.inf, torch.nan
    atomic[14] = 2e9
    checks = StopChecks(OPEN, CUTOFF_A, 100, None, None)
    codes = checks.codes(
        batch,
        forces=forces,
        atomic=atomic,
        lost=torch.tensor([False, False, False, False, False, True]),
        ages=torch.tensor([100, 100, 1, 1, 100, 100]),
    )
    assert [PRECEDENCE[code] for code in codes.tolist()] == [
        StopReason.COMPLETED,
        StopReason.FORCE,
        StopReason.NOT_FINITE,
        StopReason.NOT_FINITE,
        StopReason.UNCERTAIN,
        StopReason.NOT_FINITE,
    ]
