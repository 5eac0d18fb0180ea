"""Both builders of neighbour rows, against each other; against ASE in test_batching."""

import numpy as np
import pytest
import torch
from engine import crystal, ethanol, slab, water, zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import neighbors
from pipeline.batching import bare_batch
from pipeline.errors import TaskError
from pipeline.frames import Frame
from pipeline.neighbors import neighbor_rows, neighbor_table

NAMES = ("neighbors", "shifts", "offsets", "padding")


def table(frames, cutoff_A, *, by_torch):
    bare = bare_batch(frames)
    return neighbor_table(
        bare.positions, bare.cells, bare.pbc, [len(frame) for frame in frames], cutoff_A, by_torch=by_torch
    )


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)


def structure(rng):
    n, pbc = int(rng.integers(1, 7)), rng.random(3) < 0.6
    cell = np.eye(3) * rng.uniform(1.5, 7.0) + rng.normal(size=(3, 3)) * rng.choice([0.0, 0.5, 1.5])
    if abs(np.linalg.det(cell)) < 3.0:
        cell = np.eye(3) * 1.5
    if rng.random() < 0.3:
        cell[~pbc] = 0.0
    positions = rng.uniform(-9, 9, (n, 3)) + rng.choice([0.0, 1e3])
    return Frame(numbers=np.ones(n, dtype=np.int64), positions=positions, cell=cell, pbc=pbc, system="test")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4))
def test_torch_and_vesin_find_the_same_rows_for_any_cells_and_any_unwrapped_positions(seed, count):
    rng = np.random.default_rng(seed)
    frames = [structure(rng) for _ in range(count)]
    assert same(table(frames, 5.0, by_torch=True), table(frames, 5.0, by_torch=False))


def test_rows_do_not_depend_on_the_pieces_in_which_torch_looks_at_them(monkeypatch):
    frames = [*zoo(), *zoo(1), crystal(2)]
    whole = table(frames, 6.0, by_torch=True)
    monkeypatch.setattr(neighbors, "CANDIDATES", 490)  # of a crystal, one atom at a time
    assert same(table(frames, 6.0, by_torch=True), whole)


@pytest.mark.parametrize("by_torch", [True, False])
def test_rows_of_structures_together_are_those_of_each_alone(by_torch):
    frames = zoo()
    together, first = table(frames, 5.0, by_torch=by_torch), 0
    for frame in frames:
        alone = neighbor_rows(frame.positions, frame.cell, frame.pbc, 5.0)
        own, width = slice(first, first + len(frame)), alone.neighbors.shape[1]
        np.testing.assert_array_equal(together.neighbors[own, :width].numpy() - first, alone.neighbors)
        np.testing.assert_array_equal(together.shifts[own, :width].numpy(), alone.shifts)
        np.testing.assert_array_equal(together.offsets[own, :width].numpy(), alone.offsets)
        assert together.padding[own, width:].all()
        first += len(frame)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_neighbour_sees_back_through_the_opposite_image(by_torch):
    rows = table([crystal()], 6.0, by_torch=by_torch)
    i, column = torch.nonzero(~rows.padding, as_tuple=True)
    j, shifts = rows.neighbors[i, column], rows.shifts[i, column].to(torch.int64)
    there = set(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))
    back = set(zip(j.tolist(), i.tolist(), map(tuple, (-shifts).tolist()), strict=True))
    assert there == back


@pytest.mark.parametrize("by_torch", [True, False])
def test_rows_are_sorted_by_neighbour_and_image(by_torch):
    rows = table([slab(), crystal()], 6.0, by_torch=by_torch)
    for neighbours, shifts, padding in zip(rows.neighbors, rows.shifts, rows.padding, strict=True):
        keys = [(int(j), *s) for j, s, none in zip(neighbours, shifts.tolist(), padding, strict=True) if not none]
        assert keys == sorted(set(keys))
        assert not padding[: len(keys)].any()


def test_an_atom_alone_has_a_row_of_padding():
    lone = Frame(
        numbers=np.array([8]), positions=np.zeros((1, 3)), cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), system="test"
    )
    for by_torch in (True, False):
        rows = table([lone], 5.0, by_torch=by_torch)
        assert rows.padding.tolist() == [[True]]
        assert rows.neighbors.tolist() == [[0]]


@pytest.mark.parametrize("by_torch", [True, False])
@pytest.mark.parametrize(
    ("cell", "position"),
    [
        (np.zeros((3, 3)), 0.0),
        (np.full((3, 3), np.nan), 0.0),
        (np.diag([5.0, 5.0, 0.02]), 0.0),
        (np.array([[5.0, 0, 0], [0, 5.0, 0], [5.0, 5.0, 0]]), 0.0),
        (np.eye(3) * 5.0, np.nan),
    ],
    ids=["no cell", "not a number", "flat", "in a plane", "atom nowhere"],
)
def test_a_cell_without_volume_and_an_atom_that_is_nowhere_are_refused(cell, position, by_torch):
    frame = Frame(
        numbers=np.array([1]),
        positions=np.array([[position, 0.0, 0.0]]),
        cell=cell,
        pbc=np.ones(3, dtype=bool),
        system="test",
    )
    with pytest.raises(TaskError):
        table([frame], 5.0, by_torch=by_torch)


def test_a_cell_with_too_many_images_in_all_is_refused_before_memory_is_asked_for():
    rng = np.random.default_rng(0)
    frame = Frame(
        numbers=np.ones(60, dtype=np.int64),
        positions=rng.uniform(0.0, 0.3, (60, 3)),
        cell=np.eye(3) * 0.25,  # 24 images within reach along each direction, as many as a thin cell may have along one
        pbc=np.ones(3, dtype=bool),
        system="test",
    )
    with pytest.raises(TaskError, match="collapsed"):
        table([frame], 6.0, by_torch=True)


def test_rows_can_be_made_wider_and_narrow_again():
    rows = table([ethanol(), water()], 5.0, by_torch=False)
    wide = rows.widened(rows.width + 3)
    assert wide.padding[:, -3:].all()
    assert (torch.linalg.vector_norm(wide.offsets[:, -3:], dim=-1) > 900.0).all()
    assert same(wide.widened(rows.width), rows)
