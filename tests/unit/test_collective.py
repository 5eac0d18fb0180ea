"""Collective variables on the device: those of the analysis, with gradients by positions and by strain."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.geometry import cellpar_to_cell

from pipeline.analysis.variables import evaluate_all
from pipeline.batching import make_batch
from pipeline.dynamics.collective import Coordinates
from pipeline.frames import Frame
from pipeline.settings.variables import DihedralVariable, DistanceVariable, VolumeVariable

VARIABLES = (
    DihedralVariable(name="phi", atoms=(3, 0, 2, 1)),
    DistanceVariable(name="d", atoms=(4, 1), range_A=(1.0, 4.0)),
    VolumeVariable(name="V", range_A3=(10.0, 500.0)),
)
ELSEWHERE = (
    DihedralVariable(name="phi", atoms=(0, 1, 3, 5)),
    DistanceVariable(name="d", atoms=(5, 2), range_A=(1.0, 4.0)),
    VolumeVariable(name="V", range_A3=(10.0, 500.0)),
)
STEP = 1e-5


def frame(seed, atoms=5):
    rng = np.random.default_rng(seed)
    cell = cellpar_to_cell([*rng.uniform(6, 9, size=3), *rng.uniform(60, 110, size=3)])
    if seed % 2:  # a left-handed cell has a volume too
        cell = cell[[1, 0, 2]]
    positions = rng.normal(scale=3.0, size=(atoms, 3))
    return Frame(
        numbers=np.ones(atoms, dtype=np.int64), positions=positions, cell=cell, pbc=np.ones(3, bool), system="x"
    )


def batch_of(frames):
    return make_batch(frames, 1.0)


def test_values_are_those_of_the_analysis():
    frames = [frame(seed) for seed in range(40)]
    found = Coordinates([VARIABLES] * 40).values(batch_of(frames))
    np.testing.assert_allclose(found.numpy(), evaluate_all(VARIABLES, frames), rtol=1e-12, atol=1e-10)


def test_a_flat_dihedral_is_minus_180_as_in_the_analysis():
    points = np.array([[0, 1.0, 0], [0, 0, 0], [1.0, 0, 0], [1.0, -1.0, 0]])
    flat = replace(frame(0, atoms=4), positions=points)
    variables = (DihedralVariable(name="x", atoms=(0, 1, 2, 3)),)
    assert Coordinates([variables]).values(batch_of([flat])).item() == -180.0
    assert evaluate_all(variables, [flat]).item() == -180.0


def test_walkers_of_several_systems_have_the_values_each_has_alone():
    frames, variables = [frame(0), frame(1, 7), frame(2), frame(3, 7)], [VARIABLES, ELSEWHERE, VARIABLES, ELSEWHERE]
    alone = torch.cat([Coordinates([v]).values(batch_of([f])) for f, v in zip(frames, variables, strict=True)])
    together = Coordinates(variables)
    assert torch.equal(together.values(batch_of(frames)), alone)
    assert torch.equal(together.values(batch_of(frames[1:3]), walkers=slice(1, 3)), alone[1:3])
    together.exchange(torch.tensor([4, 1, 2, 3]), [ELSEWHERE])
    assert torch.equal(together.values(batch_of([frames[1], *frames[1:]])), alone[[1, 1, 2, 3]])


def test_gradients_by_positions_and_strain_match_finite_differences():
    frames = [frame(4), frame(5)]
    coordinates = Coordinates([VARIABLES] * 2)
    batch = batch_of(frames)
    positions = batch.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(batch.cells).requires_grad_(True)
    values = coordinates.values(batch.with_positions(positions), strain)

    def moved(atom, axis, shift):
        shifted = batch.positions.clone()
        shifted[atom, axis] += shift
        return coordinates.values(batch.with_positions(shifted))

    def deformed(row, column, shift):
        # the strained structure itself, by numpy and the analysis: nothing of the strain path is used
        deformation = np.eye(3)
        deformation[row, column] += 0.5 * shift
        deformation[column, row] += 0.5 * shift
        changed = [replace(f, positions=f.positions @ deformation, cell=f.cell @ deformation) for f in frames]
        return torch.from_numpy(evaluate_all(VARIABLES, changed))

    for d in range(3):
        by_position, by_strain = torch.autograd.grad(
            values[:, d].sum(), [positions, strain], retain_graph=True, materialize_grads=True
        )
        for atom in range(len(positions)):
            for axis in range(3):
                slope = (moved(atom, axis, STEP) - moved(atom, axis, -STEP))[:, d].sum() / (2 * STEP)
                assert by_position[atom, axis].item() == pytest.approx(slope.item(), abs=1e-6, rel=1e-7)
        for row in range(3):
            for column in range(3):
                slope = (deformed(row, column, STEP) - deformed(row, column, -STEP))[:, d] / (2 * STEP)
                np.testing.assert_allclose(by_strain[:, row, column].numpy(), slope.numpy(), atol=1e-6, rtol=1e-7)


def test_values_never_wait_for_the_device():
    batch = batch_of([frame(0), frame(1)]).to(torch.device("meta"))
    coordinates = Coordinates([VARIABLES] * 2, "meta")
    coordinates.exchange(torch.tensor([0, 2], device="meta"), [VARIABLES])
    assert coordinates.values(batch, torch.zeros_like(batch.cells)).shape == (2, 3)
