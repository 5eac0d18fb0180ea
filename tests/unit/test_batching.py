from collections import Counter

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from engine import crystal, ethanol, slab, water, zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import make_batch, sum_in_order
from pipeline.frames import Frame


def rounded(vector):
    # + 0.0 turns -0.0 into 0.0
    return tuple((np.round(vector, 5) + 0.0).tolist())


def edges_of(frame, cutoff_A):
    batch = make_batch([frame], cutoff_A)
    vectors = batch.edges().numpy()
    i, column = np.nonzero(np.linalg.norm(vectors, axis=-1) < cutoff_A)
    j = batch.neighbors.numpy()[i, column]
    return Counter((int(a), int(b), rounded(v)) for a, b, v in zip(i, j, vectors[i, column], strict=True))


def edges_by_ase(frame, cutoff_A):
    rows = zip(*neighbor_list("ijD", frame.to_atoms(), cutoff_A), strict=True)
    return Counter((int(a), int(b), rounded(v)) for a, b, v in rows)


def without_third_vector(frame):
    cell = frame.cell.copy()
    cell[2] = 0.0
    return Frame(numbers=frame.numbers, positions=frame.positions, cell=cell, pbc=frame.pbc, system="test")


@pytest.mark.parametrize(
    "frame",
    [ethanol(), water(), slab(), without_third_vector(slab()), crystal()],
    ids=["molecule", "small molecule", "slab", "slab without third lattice vector", "skewed cell"],
)
@pytest.mark.parametrize("cutoff_A", [2.0, 5.0, 7.5])
def test_neighbours_are_those_of_ase(frame, cutoff_A):
    assert edges_of(frame, cutoff_A) == edges_by_ase(frame, cutoff_A)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_neighbours_are_those_of_ase_for_any_cell_and_any_unwrapped_positions(seed, n, pbc):
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(3, 6) + rng.normal(size=(3, 3)) * 0.5
    atoms = Atoms("H" * n, positions=rng.uniform(-9, 9, (n, 3)), cell=cell, pbc=pbc)
    frame = Frame.from_atoms(atoms, system="test")
    assert edges_of(frame, 5.0) == edges_by_ase(frame, 5.0)


def test_a_batch_holds_the_neighbours_of_each_structure_and_no_others():
    frames = zoo()
    batch = make_batch(frames, 5.0)
    near = torch.linalg.vector_norm(batch.edges(), dim=-1) < 5.0
    mixed = batch.system[batch.neighbors] != batch.system[:, None]
    assert not (near & mixed).any()
    counted = batch.sum_atoms(near.sum(dim=1, keepdim=True)).squeeze(1)
    assert counted.tolist() == [edges_by_ase(frame, 5.0).total() for frame in frames]


def test_padded_neighbours_are_out_of_every_cutoff():
    batch = make_batch([ethanol(), water()], 5.0)
    distance = torch.linalg.vector_norm(batch.edges(), dim=-1)
    assert ((distance < 5.0) | (distance > 900.0)).all()


def test_strain_moves_edges_as_it_moves_atoms_and_cell():
    frame = crystal()
    strain = torch.tensor([[[0.02, 0.01, -0.03], [0.01, -0.04, 0.02], [-0.03, 0.02, 0.01]]], dtype=torch.float64)
    grow = np.eye(3) + strain[0].numpy()
    batch = make_batch([frame], 5.0)
    strained = Frame(
        numbers=frame.numbers, positions=frame.positions @ grow, cell=frame.cell @ grow, pbc=frame.pbc, system="test"
    )
    near = torch.linalg.vector_norm(batch.edges(), dim=-1) < 4.0
    found = Counter(rounded(v) for v in batch.edges(strain)[near].numpy())
    everything = {rounded(v) for v in make_batch([strained], 6.0).edges().reshape(-1, 3).numpy()}
    assert set(found) <= everything


def test_volume_is_that_of_the_cell_and_zero_where_not_fully_periodic():
    frames = zoo()
    volumes = make_batch(frames, 4.0).volumes
    assert volumes[3] == pytest.approx(frames[3].to_atoms().get_volume())
    assert volumes[:3].tolist() == [0.0, 0.0, 0.0]


def test_sums_over_atoms_are_those_of_each_structure_for_equal_and_unequal_sizes():
    for frames in (zoo(), [water(0), water(1), water(2)]):
        batch = make_batch(frames, 4.0)
        values = torch.randn((len(batch.numbers), 5), generator=torch.Generator().manual_seed(0))
        parts = torch.split(values.to(torch.float64), batch.n_atoms.tolist())
        expected = torch.stack([part.sum(dim=0) for part in parts])
        in_order = sum_in_order(values, batch.system, batch.n_atoms, batch.largest)
        for found in (batch.sum_atoms(values), in_order):
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        largest = torch.stack([part[:, 0].max() for part in parts])
        torch.testing.assert_close(batch.max_atoms(values[:, 0].to(torch.float64)), largest, rtol=0, atol=0)


def test_sums_over_atoms_in_order_have_first_and_second_derivatives():
    batch = make_batch(zoo(), 4.0)
    values = torch.randn(len(batch.numbers), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values.requires_grad_(True)

    def total(x):
        return sum_in_order(x**3, batch.system, batch.n_atoms, batch.largest)

    assert torch.autograd.gradcheck(total, values)
    assert torch.autograd.gradgradcheck(total, values)


def test_another_geometry_of_the_same_rows_has_the_edges_of_the_structures_there():
    frames = [slab(), crystal()]
    batch = make_batch(frames, 5.0)
    grow = torch.eye(3, dtype=torch.float64) + 0.01 * torch.randn(
        (2, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    positions = torch.bmm(batch.positions.unsqueeze(1), grow[batch.system]).squeeze(1)
    moved = batch.with_geometry(positions, batch.cells @ grow)
    expected = torch.bmm(batch.edges(), grow[batch.system])
    real = ~batch.padding
    torch.testing.assert_close(moved.edges()[real], expected[real], rtol=0, atol=1e-11)
    assert (torch.linalg.vector_norm(moved.edges()[batch.padding], dim=-1) > 900.0).all()
    torch.testing.assert_close(moved.volumes, batch.volumes * torch.linalg.det(grow).abs())
