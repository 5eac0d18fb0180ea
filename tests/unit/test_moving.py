"""Rows that are reused while structures and their cells move."""

import numpy as np
import pytest
import torch
from ase import Atoms
from engine import CUTOFF_A, crystal, ethanol, gmnn, slab, water, zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from one_device import OneDevice

from pipeline.batching import make_batch
from pipeline.frames import Frame
from pipeline.moving import MovingBatch
from pipeline.potentials.base import differentiate

SKIN_A = 0.6
ROWS = ("neighbors", "shifts", "offsets", "padding")
PARTS = (*ROWS, "numbers", "positions", "cells", "pbc", "system", "n_atoms", "largest")


def placed(frames, positions, cells):
    """The same structures elsewhere."""
    spans = np.split(positions.numpy(), np.cumsum([len(frame) for frame in frames])[:-1])
    return [
        Frame(numbers=f.numbers, positions=p, cell=c, pbc=f.pbc, system=f.system)
        for f, p, c in zip(frames, spans, cells.numpy(), strict=True)
    ]


def follower(frames, **wanted):
    return MovingBatch(frames, cutoff_A=CUTOFF_A, skin_A=SKIN_A, **wanted)


def equal(one, other, names=PARTS):
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


class Wander:
    """Random steps of positions and cells, the same for the same seed."""

    def __init__(self, batch, step_A=0.05, strain=0.0):
        self.positions, self.cells, self.system = batch.positions, batch.cells, batch.system
        self.generator, self.step_A, self.strain = torch.Generator().manual_seed(0), step_A, strain

    def next(self):
        grow = torch.eye(3, dtype=torch.float64) + self.strain * self.normal(self.cells.shape)
        self.cells = self.cells @ grow
        stretched = torch.bmm(self.positions.unsqueeze(1), grow[self.system]).squeeze(1)
        self.positions = stretched + self.step_A * self.normal(self.positions.shape)
        return self.positions, self.cells

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("strain", [0.0, 0.01])
def test_rows_with_a_skin_give_the_energies_and_forces_of_fresh_rows_along_a_random_walk(strain, by_torch):
    potential, frames = gmnn(), zoo()
    walking = follower(frames, by_torch=by_torch)
    wander = Wander(walking.batch, strain=strain)
    for _ in range(12):
        positions, cells = wander.next()
        here = differentiate(potential, walking.follow(positions, cells if strain else None), virial=True)
        fresh = differentiate(potential, make_batch(placed(frames, positions, cells), CUTOFF_A), virial=True)
        torch.testing.assert_close(here.energies, fresh.energies, rtol=1e-13, atol=1e-10)
        torch.testing.assert_close(here.forces, fresh.forces, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(here.virials, fresh.virials, rtol=1e-9, atol=1e-9)
    assert 0 < walking.rebuilds < 12 * len(frames)


def near(batch):
    i, column = torch.nonzero(torch.linalg.vector_norm(batch.edges(), dim=-1) < CUTOFF_A, as_tuple=True)
    rows = torch.cat([torch.stack([i, batch.neighbors[i, column]]).T, batch.shifts[i, column].to(torch.int64)], dim=1)
    return {tuple(row) for row in rows.tolist()}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    strain=st.floats(0.0, 0.1),
    step=st.floats(0.0, 0.3),
)
def test_no_neighbour_is_missed_while_the_wear_is_below_one(seed, pbc, strain, step):
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(3, 6) + rng.normal(size=(3, 3)) * 0.5
    n = int(rng.integers(1, 6))
    frame = Frame.from_atoms(Atoms("H" * n, positions=rng.uniform(-9, 9, (n, 3)), cell=cell, pbc=pbc), system="test")
    walking = follower([frame, crystal()])
    wander = Wander(walking.batch, step_A=step, strain=strain)
    wander.generator.manual_seed(seed)
    positions, cells = wander.next()
    here = near(walking.move(positions, cells))
    wear = walking.wear()
    fresh = near(make_batch(placed([frame, crystal()], positions, cells), CUTOFF_A))
    worn = {int(atom) for atom in torch.nonzero(wear[walking.batch.system] >= 1.0)}
    assert {pair for pair in fresh - here if pair[0] not in worn} == set()
    assert here <= fresh


def pair(distance, pbc=False):
    atoms = Atoms("H2", positions=[[0, 0, 0], [distance, 0, 0]], cell=np.eye(3) * 30.0, pbc=pbc)
    return Frame.from_atoms(atoms, system="test")


def test_the_bound_of_wear_is_reached_by_atoms_that_approach_and_by_a_cell_that_shrinks():
    apart = CUTOFF_A + SKIN_A + 1e-6  # no neighbours yet
    walking = follower([pair(apart), pair(apart, pbc=True)])
    assert walking.batch.padding.all()
    towards = SKIN_A * torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64).repeat(2, 1)
    walking.move(walking.anchors + 0.5 * towards)
    torch.testing.assert_close(walking.wear(), torch.ones(2, dtype=torch.float64))
    assert near(walking.move(walking.anchors + 0.51 * towards)) == set()  # two pairs are missed
    assert (walking.wear() > 1.0).all()
    assert len(near(walking.follow(walking.anchors + 0.51 * towards))) == 4
    walking = follower([pair(apart, pbc=True)])
    walking.move(walking.anchors * (CUTOFF_A / apart), walking.anchor_cells * (CUTOFF_A / apart))
    assert float(walking.wear()) == pytest.approx(1.0, abs=1e-5)


def test_a_cell_that_only_grows_wears_nothing():
    walking = follower([crystal(), slab()])
    walking.move(walking.anchors * 1.1, walking.anchor_cells * 1.1)
    assert float(walking.wear()[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(walking.wear()[1]) > 1.0  # nothing maps back what grows where there is no lattice vector


def test_wear_of_moving_cells_that_stand_still_is_that_of_fixed_ones_to_the_last_bit():
    fixed, moving = follower(zoo()), follower(zoo())
    positions, cells = Wander(fixed.batch).next()
    fixed.move(positions)
    moving.move(positions, cells)
    assert torch.equal(fixed.wear(), moving.wear())
    assert equal(fixed.batch, moving.batch)


def test_only_the_structure_that_left_its_skin_is_rebuilt():
    frames = zoo()
    walking = follower(frames)
    anchors = walking.anchors.clone()
    positions = walking.batch.positions + 0.01
    walking.follow(positions.clone())
    assert walking.rebuilds == 0
    torch.testing.assert_close(walking.anchors, anchors, rtol=0, atol=0)
    positions[0, 0] += SKIN_A  # an atom of the first structure
    batch = walking.follow(positions.clone())
    assert walking.rebuilds == 1
    first = batch.system == 0
    torch.testing.assert_close(walking.anchors[first], positions[first], rtol=0, atol=0)
    torch.testing.assert_close(walking.anchors[~first], anchors[~first], rtol=0, atol=0)


@pytest.mark.parametrize("by_torch", [False, True])
def test_a_batch_taken_up_at_its_anchors_is_the_one_that_went_on_to_the_last_bit(by_torch):
    frames = zoo()
    walking = follower(frames, by_torch=by_torch)
    wander = Wander(walking.batch, strain=0.01)
    for _ in range(8):
        walking.follow(*wander.next())
    assert walking.rebuilds > 0
    here = placed(frames, walking.batch.positions, walking.batch.cells)
    anchors = placed(frames, walking.anchors, walking.anchor_cells)
    taken_up = follower(here, anchors=anchors, by_torch=by_torch)
    assert equal(taken_up.batch, walking.batch)
    assert torch.equal(taken_up.anchors, walking.anchors)
    assert torch.equal(taken_up.wear(), walking.wear())


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("newcomer", [ethanol(5), water(5), crystal(5)], ids=["as large", "smaller", "a crystal"])
def test_a_replaced_structure_leaves_the_rows_of_the_others_and_gives_the_batch_made_anew(newcomer, by_torch):
    frames, larger = zoo(), ethanol(8)  # than the water molecule whose place it takes
    walking = follower(frames, by_torch=by_torch)
    wander = Wander(walking.batch, strain=0.005)
    for _ in range(5):
        walking.follow(*wander.next())
    before = walking.rebuilds
    frames_now = placed(frames, walking.batch.positions, walking.batch.cells)
    anchors = placed(frames, walking.anchors, walking.anchor_cells)
    where = placed(
        [newcomer], torch.from_numpy(newcomer.positions + 0.01), torch.from_numpy(newcomer.cell[None] * 1.01)
    )
    walking.replace({0: (where[0], newcomer), 2: (larger, larger)})
    expected = follower(
        [where[0], frames_now[1], larger, frames_now[3]],
        anchors=[newcomer, anchors[1], larger, anchors[3]],
        by_torch=by_torch,
    )
    assert equal(walking.batch, expected.batch)
    assert torch.equal(walking.anchors, expected.anchors)
    assert torch.equal(walking.anchor_cells, expected.anchor_cells)
    assert torch.equal(walking.wear(), expected.wear())
    assert walking.rebuilds == before
    walking.rebuild([0, 3])
    expected.rebuild([3, 0])
    assert equal(walking.batch, expected.batch)


def test_what_was_handed_out_does_not_change_when_rows_are_rebuilt_or_replaced():
    walking = follower(zoo())
    batch, anchors = walking.batch, walking.anchors
    kept = {name: getattr(batch, name).clone() for name in (*ROWS, "positions")}
    was = anchors.clone()
    positions, cells = Wander(batch, step_A=0.5, strain=0.05).next()
    walking.follow(positions, cells)
    walking.replace({1: (ethanol(9), ethanol(9))})
    assert walking.rebuilds > 0
    assert all(torch.equal(getattr(batch, name), value) for name, value in kept.items())
    assert torch.equal(anchors, was)


def test_to_rebuild_or_replace_nothing_changes_nothing():
    walking = follower(zoo())
    before = walking.batch
    walking.rebuild([])
    walking.replace({})
    assert walking.batch is before
    assert walking.rebuilds == 0


def test_moving_and_looking_at_the_wear_never_asks_the_device_for_a_number():
    for frames in (zoo(), [water(0), water(1)]):
        walking = follower(frames, device="meta")
        with OneDevice():
            batch = walking.move(walking.batch.positions + 0.1)
            assert walking.wear().shape == (len(batch),)
            batch = walking.move(batch.positions, batch.cells * 1.01)
            assert walking.wear().shape == (len(batch),)
            assert batch.edges().shape == batch.offsets.shape


def test_away_from_the_cpu_the_width_of_rows_seldom_changes():
    width = follower(zoo()).batch.neighbors.shape[1]
    for there in (follower(zoo(), device="meta"), follower(zoo(), by_torch=True)):
        assert there.batch.neighbors.shape[1] % 8 == 0
        assert 0 <= there.batch.neighbors.shape[1] - width < 8
